"""BBE and DEDPUL: known mixtures, slow references and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.class_prior_simulated import Setting, draw_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from pu_kd_pipeline.learning.class_prior.estimate import estimate_class_prior
from pu_kd_pipeline.learning.class_prior.estimators import (
    best_bin_estimate,
    density_ratio_estimate,
    isotonic_regression,
    share_at_least,
)
from tests.learning.class_prior.mixtures import Array, mixture, score_arrays


@pytest.mark.parametrize("class_prior", [0.05, 0.2, 0.5, 0.8])
def test_known_mixtures_are_recovered(class_prior: float) -> None:
    positive, unlabeled = mixture(class_prior, 10_000, 20_000)
    bbe, threshold = best_bin_estimate(positive, unlabeled)
    dedpul, _ = density_ratio_estimate(positive, unlabeled)

    assert bbe == pytest.approx(class_prior, abs=0.03)
    # Between the centers, or a little above that of the positives.
    assert 0 < threshold < 4
    assert dedpul == pytest.approx(class_prior, abs=0.03)


def test_dedpul_errs_less_upward_than_bbe_where_positives_are_rare() -> None:
    bbe_errors = []
    dedpul_errors = []

    for seed in range(20):
        positive, unlabeled = mixture(0.05, 100, 4_000, seed)
        bbe, _ = best_bin_estimate(positive, unlabeled)
        dedpul, _ = density_ratio_estimate(positive, unlabeled)
        bbe_errors.append(bbe - 0.05)
        dedpul_errors.append(dedpul - 0.05)
    bbe_bias = np.mean(bbe_errors)
    dedpul_bias = np.mean(dedpul_errors)

    # Of single estimates the sign of the error is chance; the mean of twenty is the bias.
    assert bbe_bias > 0.015
    assert abs(dedpul_bias) < 0.005


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
        # No ratio exists above the highest positive.
        if q_positive == 0:
            continue
        ratio = q_unlabeled / q_positive
        bound = ratio + (1 + gamma) / q_positive * deviation
        if bound < lowest_bound:
            lowest_bound = bound
            best_ratio = ratio
    # A share; sampling can push the ratio above it.
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
    expected = slow_bbe(positive, unlabeled, delta, gamma)

    assert 0 <= value <= 1
    assert value == pytest.approx(expected, abs=1e-12)

    # The threshold belongs to the value.
    q_positive = (positive >= threshold).mean()
    q_unlabeled = (unlabeled >= threshold).mean()

    assert q_positive > 0

    value_at_threshold = min(q_unlabeled / q_positive, 1.0)
    assert value == pytest.approx(value_at_threshold)


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
    moved_dedpul = density_ratio_estimate(moved_positive, moved_unlabeled)

    assert moved_dedpul == dedpul


@settings(deadline=None, max_examples=40)
@given(positive=score_arrays, unlabeled=score_arrays)
def test_dedpul_turns_any_scores_into_a_class_prior(positive: Array, unlabeled: Array) -> None:
    value, threshold = density_ratio_estimate(positive, unlabeled)
    assert 0 < value <= 1
    assert threshold is None


def slow_isotonic(values: Array, weight: Array) -> list[float]:
    """The minimax formula: the largest, over all starts, of the smallest mean over all ends."""

    def mean(start: int, end: int) -> float:
        block = slice(start, end + 1)
        return float(np.average(values[block], weights=weight[block]))

    n = len(values)
    heights = []
    for place in range(n):
        smallest_means = []
        for start in range(place + 1):
            means = [mean(start, end) for end in range(place, n)]
            smallest_means.append(min(means))
        heights.append(max(smallest_means))
    return heights


values_and_weights = st.lists(
    st.tuples(st.integers(-9, 9), st.integers(1, 5)), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=60)
@given(rows=values_and_weights)
def test_isotonic_regression_equals_the_minimax_formula(rows: list[tuple[int, int]]) -> None:
    values, weight = np.array(rows, dtype=float).T
    fitted = isotonic_regression(values, weight)
    expected = slow_isotonic(values, weight)

    assert_allclose(fitted, expected, atol=1e-12)


def test_without_overlap_the_class_prior_is_zero() -> None:
    positive = np.linspace(1, 2, 50)
    negative = np.linspace(-2, -1, 50)

    bbe, _ = best_bin_estimate(positive, negative)
    dedpul, _ = density_ratio_estimate(positive, negative)

    assert bbe == 0
    assert dedpul < 0.05


def test_where_all_unlabeled_look_positive_the_class_prior_is_one() -> None:
    positive = np.linspace(1, 2, 50)
    bbe, _ = best_bin_estimate(positive, positive)
    dedpul, _ = density_ratio_estimate(positive, positive)
    bbe_of_higher_scores, _ = best_bin_estimate(positive, positive + 5)

    assert bbe == 1
    # DEDPUL smooths the densities, so it only comes near to 1.
    assert dedpul > 0.7
    assert bbe_of_higher_scores == 1


def test_share_at_least_counts_ties() -> None:
    thresholds = np.array([0.0, 1.0, 1.5, 3.0])
    scores = np.array([2.0, 1.0, 1.0, 0.0])
    shares = share_at_least(thresholds, scores)

    assert_array_equal(shares, [1, 0.75, 0.25, 0])


def _estimate(positive: Array, unlabeled: Array) -> object:
    rng = np.random.default_rng(0)
    return estimate_class_prior(positive, unlabeled, rng=rng)


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
    positive_scores = np.array(positive)
    unlabeled_scores = np.array(unlabeled)

    with pytest.raises(ValueError, match=message):
        estimator(positive_scores, unlabeled_scores)


def test_bbe_refuses_a_confidence_outside_of_the_open_interval() -> None:
    one = np.array([1.0])
    with pytest.raises(ValueError, match=r"delta must lie in \(0, 1\)"):
        best_bin_estimate(one, one, delta=0.0)


def test_dedpul_errs_little_with_few_positives() -> None:
    errors = []
    for seed in range(10):
        for class_prior in (0.05, 0.12, 0.25, 0.5):
            setting = Setting(2.5, class_prior, n_positive=50, seed=seed)
            positive, unlabeled = draw_scores(setting)
            value, _ = density_ratio_estimate(positive, unlabeled)
            errors.append(abs(value - class_prior))
    # 0.029; the sharpest bend alone has 0.039.
    assert np.mean(errors) < 0.033
