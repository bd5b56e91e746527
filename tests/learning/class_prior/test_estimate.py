"""Class prior from scores: known mixtures, slow references, invariances, folds and the interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pu_kd_pipeline.learning.class_prior.estimate import estimate_class_prior, pooled_ranks
from pu_kd_pipeline.learning.class_prior.estimators import (
    best_bin_estimate,
    density_ratio_estimate,
    isotonic,
    share_at_least,
)

Array = NDArray[np.float64]


def mixture(
    class_prior: float, n_positive: int, n_unlabeled: int, seed: int = 0
) -> tuple[Array, Array]:
    """Scores of positives N(3, 1), and of unlabeled samples that hold `class_prior` of them among N(0, 1)."""
    rng = np.random.default_rng(seed)
    n_hidden = round(class_prior * n_unlabeled)
    hidden, negative = rng.normal(3, 1, n_hidden), rng.normal(0, 1, n_unlabeled - n_hidden)
    return rng.normal(3, 1, n_positive), np.concatenate([hidden, negative])


def slow_bbe(positive: Array, unlabeled: Array, delta: float, gamma: float) -> float:
    """The formula at every score of both sides, one at a time."""
    best = (math.inf, math.nan)
    for threshold in np.concatenate([positive, unlabeled]):
        q_p = sum(score >= threshold for score in positive) / len(positive)
        q_u = sum(score >= threshold for score in unlabeled) / len(unlabeled)
        if q_p > 0:
            slack = math.sqrt(math.log(4 / delta) / 2 / len(unlabeled)) + math.sqrt(
                math.log(4 / delta) / 2 / len(positive)
            )
            best = min(best, (q_u / q_p + (1 + gamma) / q_p * slack, q_u / q_p))
    return min(best[1], 1.0)


scores = st.lists(st.integers(-5, 5), min_size=1, max_size=15).map(
    lambda values: np.array(values, dtype=float)
)


def slow_isotonic(values: Array, weight: Array) -> list[float]:
    """The minimax formula: the largest over all starts of the smallest over all ends of the mean in between."""

    def mean(start: int, end: int) -> float:
        return float(np.average(values[start : end + 1], weights=weight[start : end + 1]))

    n = len(values)
    return [max(min(mean(a, b) for b in range(i, n)) for a in range(i + 1)) for i in range(n)]


@pytest.mark.parametrize("class_prior", [0.05, 0.2, 0.5, 0.8])
def test_known_mixtures_are_recovered(class_prior: float) -> None:
    scores = mixture(class_prior, 10_000, 20_000)
    value, threshold = best_bin_estimate(*scores)
    assert value == pytest.approx(class_prior, abs=0.03)
    assert 0 < threshold < 4
    assert density_ratio_estimate(*scores)[0] == pytest.approx(class_prior, abs=0.03)


def test_dedpul_errs_less_upward_than_bbe_where_positives_are_rare() -> None:
    bbe, dedpul = (
        np.mean([reading(*mixture(0.05, 100, 4_000, seed))[0] - 0.05 for seed in range(20)])
        for reading in (best_bin_estimate, density_ratio_estimate)
    )
    assert bbe > 0.015
    assert abs(dedpul) < 0.005


@settings(deadline=None, max_examples=80)
@given(positive=scores, unlabeled=scores, delta=st.floats(0.01, 0.9), gamma=st.floats(0, 20))
def test_estimate_equals_the_slow_formula_over_all_thresholds(
    positive: Array, unlabeled: Array, delta: float, gamma: float
) -> None:
    value, threshold = best_bin_estimate(positive, unlabeled, delta=delta, gamma=gamma)
    assert 0 <= value <= 1
    assert value == pytest.approx(slow_bbe(positive, unlabeled, delta, gamma), abs=1e-12)
    q_p, q_u = (positive >= threshold).mean(), (unlabeled >= threshold).mean()
    assert q_p > 0
    assert value == pytest.approx(min(q_u / q_p, 1.0))


@settings(deadline=None, max_examples=40)
@given(positive=scores, unlabeled=scores)
def test_only_the_order_of_the_scores_matters(positive: Array, unlabeled: Array) -> None:
    value, threshold = best_bin_estimate(positive, unlabeled)
    for transform in (np.exp, np.arctan, lambda s: 7 * s - 3):
        moved, moved_threshold = best_bin_estimate(transform(positive), transform(unlabeled))
        assert moved == value
        assert moved_threshold == transform(threshold)
        assert density_ratio_estimate(
            transform(positive), transform(unlabeled)
        ) == density_ratio_estimate(positive, unlabeled)


@settings(deadline=None, max_examples=40)
@given(positive=scores, unlabeled=scores)
def test_any_scores_give_a_class_prior(positive: Array, unlabeled: Array) -> None:
    value, threshold = density_ratio_estimate(positive, unlabeled)
    assert 0 < value <= 1
    assert threshold is None


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 5)), min_size=1, max_size=12))
def test_isotonic_regression_equals_the_minimax_formula(rows: list[tuple[int, int]]) -> None:
    values, weight = np.array(rows, dtype=float).T
    np.testing.assert_allclose(isotonic(values, weight), slow_isotonic(values, weight), atol=1e-12)


def test_extremes_reach_the_ends_of_the_range() -> None:
    positive = np.linspace(1, 2, 50)
    assert best_bin_estimate(positive, np.linspace(-2, -1, 50))[0] == 0
    assert density_ratio_estimate(positive, np.linspace(-2, -1, 50))[0] < 0.05
    assert best_bin_estimate(positive, positive)[0] == 1
    assert density_ratio_estimate(positive, positive)[0] > 0.7
    assert best_bin_estimate(positive, positive + 5)[0] == 1


def test_share_at_least_counts_ties() -> None:
    np.testing.assert_array_equal(
        share_at_least(np.array([0.0, 1.0, 1.5, 3.0]), np.array([2.0, 1.0, 1.0, 0.0])),
        [1, 0.75, 0.25, 0],
    )


@settings(deadline=None, max_examples=40)
@given(positive=scores, unlabeled=scores)
def test_one_fold_of_ranks_gives_the_estimate_of_the_raw_scores(
    positive: Array, unlabeled: Array
) -> None:
    ranks = pooled_ranks([(positive, unlabeled)])
    assert best_bin_estimate(*ranks)[0] == pytest.approx(
        best_bin_estimate(positive, unlabeled)[0], abs=1e-12
    )


def test_ranks_pool_folds_whose_scores_cannot_be_compared() -> None:
    folds = []
    for fold in range(4):
        positive, unlabeled = mixture(0.3, 1_000, 1_000 * 2**fold, seed=fold)
        scale, offset = (
            10.0 ** (fold - 2),
            100.0 * fold,
        )  # each fold's classifier has a scale of its own
        folds.append((scale * positive + offset, scale * unlabeled + offset))
    positive_ranks, unlabeled_ranks = pooled_ranks(folds)
    assert len(positive_ranks) == 4_000
    assert len(unlabeled_ranks) == 15_000
    assert best_bin_estimate(positive_ranks, unlabeled_ranks)[0] == pytest.approx(0.3, abs=0.04)
    raw_positive, raw_unlabeled = (np.concatenate(side) for side in zip(*folds, strict=True))
    assert abs(best_bin_estimate(raw_positive, raw_unlabeled)[0] - 0.3) > 0.1


def test_a_rank_is_one_minus_the_share_that_scores_at_least_as_high_and_folds_may_lack_positives() -> (
    None
):
    positive_ranks, unlabeled_ranks = pooled_ranks(
        [
            (np.array([2.0, 9.0, -1.0]), np.array([1.0, 2.0, 2.0, 3.0])),
            (np.array([]), np.array([5.0, 4.0])),
        ]
    )
    np.testing.assert_allclose(positive_ranks, [0.25, 1, 0])
    np.testing.assert_allclose(unlabeled_ranks, [0, 0.25, 0.25, 0.75, 0.5, 0])


def test_interval_brackets_value_and_truth_and_shrinks_with_more_samples() -> None:
    small, large = (
        estimate_class_prior(*mixture(0.2, n, 4 * n, seed=3), rng=np.random.default_rng(0))
        for n in (200, 5_000)
    )
    for estimate in (small, large):
        assert estimate.lower <= estimate.value <= estimate.upper
        assert estimate.lower - 0.02 <= 0.2 <= estimate.upper + 0.02
    assert large.upper - large.lower < 0.5 * (small.upper - small.lower)
    assert (large.n_positive, large.n_unlabeled, large.method, large.level) == (
        5_000,
        20_000,
        "bbe",
        0.9,
    )


def test_the_interval_is_the_same_whichever_reading_gives_the_value_and_holds_both() -> None:
    bbe, dedpul = (
        estimate_class_prior(*mixture(0.1, 300, 2_000), method=method, rng=np.random.default_rng(0))
        for method in ("bbe", "dedpul")
    )
    assert (bbe.lower, bbe.upper) == (dedpul.lower, dedpul.upper)
    assert bbe.lower <= min(bbe.value, dedpul.value) < max(bbe.value, dedpul.value) <= bbe.upper


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    estimates = [
        estimate_class_prior(
            *mixture(0.1, 150, 2_000, seed),
            method="dedpul",
            n_bootstrap=40,
            rng=np.random.default_rng(seed),
        )
        for seed in range(40)
    ]
    assert np.mean([e.lower <= 0.1 <= e.upper for e in estimates]) >= 0.9
    assert np.mean([e.upper - e.lower for e in estimates]) < 0.15


def test_intervals_known_to_be_too_narrow_say_so() -> None:
    few, many = (
        estimate_class_prior(*mixture(0.2, n, 500), rng=np.random.default_rng(0)) for n in (10, 100)
    )
    assert few.note is not None
    assert "with 10 positives the interval is too narrow" in few.note
    assert many.note is None
    small = estimate_class_prior(
        *mixture(0.03, 100, 5_000), method="dedpul", rng=np.random.default_rng(0)
    )
    assert small.note is not None
    assert "too narrow for so small a class prior" in small.note


@settings(deadline=None, max_examples=40)
@given(positive=scores, unlabeled=scores, seed=st.integers(0, 99))
def test_interval_holds_the_value_even_where_the_percentiles_miss_it(
    positive: Array, unlabeled: Array, seed: int
) -> None:
    estimate = estimate_class_prior(
        positive, unlabeled, n_bootstrap=1, rng=np.random.default_rng(seed)
    )
    assert 0 <= estimate.lower <= estimate.value <= estimate.upper <= 1


def test_a_higher_level_widens_the_interval_and_the_same_seed_repeats_it() -> None:
    narrow, wide, again = (
        estimate_class_prior(*mixture(0.4, 300, 900), level=level, rng=np.random.default_rng(1))
        for level in (0.5, 0.99, 0.99)
    )
    assert wide.upper - wide.lower > narrow.upper - narrow.lower > 0
    assert wide == again


@pytest.mark.parametrize(
    ("positive", "unlabeled", "message"),
    [
        ([], [1.0], r"positive_scores must be a non-empty vector, got shape \(0,\)"),
        ([1.0], [[1.0]], r"unlabeled_scores must be a non-empty vector, got shape \(1, 1\)"),
        ([1.0, np.nan, np.inf], [1.0], "positive_scores holds 2 values that are not finite"),
    ],
)
def test_unusable_scores_are_refused(
    positive: list[float], unlabeled: list[float], message: str
) -> None:
    for estimate in (
        best_bin_estimate,
        density_ratio_estimate,
        lambda p, u: estimate_class_prior(p, u, rng=np.random.default_rng(0)),
    ):
        with pytest.raises(ValueError, match=message):
            estimate(np.array(positive), np.array(unlabeled))


def test_bad_options_and_empty_folds_are_refused() -> None:
    one, rng = np.array([1.0]), np.random.default_rng(0)
    with pytest.raises(
        ValueError,
        match=r"unknown method 'em' for the class prior, expected one of \['bbe', 'dedpul'",
    ):
        estimate_class_prior(one, one, method="em", rng=rng)
    with pytest.raises(
        ValueError, match=r"positive features must be a non-empty matrix .* got shape \(1,\)"
    ):
        estimate_class_prior(one, one, method="km2", rng=rng)
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\)"):
        estimate_class_prior(one, one, level=1.0, rng=rng)
    with pytest.raises(ValueError, match=r"delta must lie in \(0, 1\)"):
        best_bin_estimate(one, one, delta=0.0)
    with pytest.raises(ValueError, match="unlabeled scores of fold 1 must be a non-empty vector"):
        pooled_ranks([(one, one), (one, np.array([]))])
    with pytest.raises(ValueError, match="held-out positive scores of at least one fold"):
        pooled_ranks([])
