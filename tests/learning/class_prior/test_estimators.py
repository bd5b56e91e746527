"""BBE and DEDPUL: known mixtures, slow references and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.learning.class_prior.estimate import estimate_class_prior
from pu_kd_pipeline.learning.class_prior.estimators import (
    best_bin_estimate,
    density_ratio_estimate,
    isotonic,
    share_at_least,
)
from tests.learning.class_prior.mixtures import Array, mixture, score_arrays


@pytest.mark.parametrize("class_prior", [0.05, 0.2, 0.5, 0.8])
def test_known_mixtures_are_recovered(class_prior: float) -> None:
    scores = mixture(class_prior, 10_000, 20_000)
    bbe, threshold = best_bin_estimate(*scores)
    assert bbe == pytest.approx(class_prior, abs=0.03)
    assert 0 < threshold < 4
    dedpul, _ = density_ratio_estimate(*scores)
    assert dedpul == pytest.approx(class_prior, abs=0.03)


def test_dedpul_errs_less_upward_than_bbe_where_positives_are_rare() -> None:
    bbe_errors = []
    dedpul_errors = []
    for seed in range(20):
        scores = mixture(0.05, 100, 4_000, seed)
        bbe, _ = best_bin_estimate(*scores)
        dedpul, _ = density_ratio_estimate(*scores)
        bbe_errors.append(bbe - 0.05)
        dedpul_errors.append(dedpul - 0.05)
    assert np.mean(bbe_errors) > 0.015
    assert abs(np.mean(dedpul_errors)) < 0.005


def slow_bbe(positive: Array, unlabeled: Array, delta: float, gamma: float) -> float:
    """The formula at every score of both sides, one at a time."""
    log_term = math.log(4 / delta)
    positive_deviation = math.sqrt(log_term / 2 / len(positive))
    unlabeled_deviation = math.sqrt(log_term / 2 / len(unlabeled))
    deviation = unlabeled_deviation + positive_deviation
    lowest_bound = math.inf
    best_ratio = math.nan
    for threshold in np.concatenate([positive, unlabeled]):
        q_positive = float((positive >= threshold).mean())
        q_unlabeled = float((unlabeled >= threshold).mean())
        if q_positive == 0:
            continue
        ratio = q_unlabeled / q_positive
        bound = ratio + (1 + gamma) / q_positive * deviation
        if bound < lowest_bound:
            lowest_bound = bound
            best_ratio = ratio
    return min(best_ratio, 1.0)


@settings(deadline=None, max_examples=80)
@given(
    positive=score_arrays,
    unlabeled=score_arrays,
    delta=st.floats(0.01, 0.9),
    gamma=st.floats(0, 20),
)
def test_bbe_equals_the_slow_formula_over_all_thresholds(
    positive: Array, unlabeled: Array, delta: float, gamma: float
) -> None:
    value, threshold = best_bin_estimate(positive, unlabeled, delta=delta, gamma=gamma)
    assert 0 <= value <= 1
    assert value == pytest.approx(slow_bbe(positive, unlabeled, delta, gamma), abs=1e-12)
    q_positive = (positive >= threshold).mean()
    q_unlabeled = (unlabeled >= threshold).mean()
    assert q_positive > 0
    assert value == pytest.approx(min(q_unlabeled / q_positive, 1.0))


def _affine(scores: Array) -> Array:
    return 7 * scores - 3


@pytest.mark.parametrize("transform", [np.exp, np.arctan, _affine])
@settings(deadline=None, max_examples=40)
@given(positive=score_arrays, unlabeled=score_arrays)
def test_only_the_order_of_the_scores_matters(transform, positive: Array, unlabeled: Array) -> None:
    moved_positive = transform(positive)
    moved_unlabeled = transform(unlabeled)
    value, threshold = best_bin_estimate(positive, unlabeled)
    moved_value, moved_threshold = best_bin_estimate(moved_positive, moved_unlabeled)
    assert moved_value == value
    assert moved_threshold == transform(threshold)
    dedpul = density_ratio_estimate(positive, unlabeled)
    assert density_ratio_estimate(moved_positive, moved_unlabeled) == dedpul


@settings(deadline=None, max_examples=40)
@given(positive=score_arrays, unlabeled=score_arrays)
def test_dedpul_turns_any_scores_into_a_class_prior(positive: Array, unlabeled: Array) -> None:
    value, threshold = density_ratio_estimate(positive, unlabeled)
    assert 0 < value <= 1
    assert threshold is None


def slow_isotonic(values: Array, weight: Array) -> list[float]:
    """The minimax formula: the largest, over all starts, of the smallest mean over all ends."""

    def mean(start: int, end: int) -> float:
        return float(np.average(values[start : end + 1], weights=weight[start : end + 1]))

    heights = []
    for place in range(len(values)):
        smallest_means = []
        for start in range(place + 1):
            means = [mean(start, end) for end in range(place, len(values))]
            smallest_means.append(min(means))
        heights.append(max(smallest_means))
    return heights


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 5)), min_size=1, max_size=12))
def test_isotonic_regression_equals_the_minimax_formula(rows: list[tuple[int, int]]) -> None:
    values, weight = np.array(rows, dtype=float).T
    np.testing.assert_allclose(isotonic(values, weight), slow_isotonic(values, weight), atol=1e-12)


def test_extremes_reach_the_ends_of_the_range() -> None:
    positive = np.linspace(1, 2, 50)
    negative = np.linspace(-2, -1, 50)
    assert best_bin_estimate(positive, negative)[0] == 0
    assert density_ratio_estimate(positive, negative)[0] < 0.05
    assert best_bin_estimate(positive, positive)[0] == 1
    # DEDPUL smooths the densities, so it only comes near to 1.
    assert density_ratio_estimate(positive, positive)[0] > 0.7
    assert best_bin_estimate(positive, positive + 5)[0] == 1


def test_share_at_least_counts_ties() -> None:
    thresholds = np.array([0.0, 1.0, 1.5, 3.0])
    scores = np.array([2.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(share_at_least(thresholds, scores), [1, 0.75, 0.25, 0])


def _estimate(positive: Array, unlabeled: Array) -> object:
    return estimate_class_prior(positive, unlabeled, rng=np.random.default_rng(0))


@pytest.mark.parametrize("estimator", [best_bin_estimate, density_ratio_estimate, _estimate])
@pytest.mark.parametrize(
    ("positive", "unlabeled", "message"),
    [
        ([], [1.0], r"positive_scores must be a non-empty vector, got shape \(0,\)"),
        ([1.0], [[1.0]], r"unlabeled_scores must be a non-empty vector, got shape \(1, 1\)"),
        ([1.0, np.nan, np.inf], [1.0], "positive_scores holds 2 values that are not finite"),
    ],
)
def test_unusable_scores_are_refused(
    estimator, positive: list[float], unlabeled: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        estimator(np.array(positive), np.array(unlabeled))


def test_bbe_refuses_a_confidence_outside_of_the_open_interval() -> None:
    one = np.array([1.0])
    with pytest.raises(ValueError, match=r"delta must lie in \(0, 1\)"):
        best_bin_estimate(one, one, delta=0.0)
