"""Class priors from scores: ranks of folds, the interval, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from pu_kd_pipeline.learning.class_prior.estimate import (
    ClassPriorEstimate,
    estimate_class_prior,
    pooled_ranks,
)
from pu_kd_pipeline.learning.class_prior.estimators import best_bin_estimate
from tests.learning.class_prior.mixtures import Array, mixture, score_arrays


def estimated(positive: Array, unlabeled: Array, *, seed: int = 0, **options) -> ClassPriorEstimate:
    rng = np.random.default_rng(seed)
    return estimate_class_prior(positive, unlabeled, rng=rng, **options)


@settings(deadline=None, max_examples=40)
@given(positive=score_arrays, unlabeled=score_arrays)
def test_one_fold_of_ranks_gives_the_estimate_of_the_raw_scores(
    positive: Array, unlabeled: Array
) -> None:
    positive_ranks, unlabeled_ranks = pooled_ranks([(positive, unlabeled)])
    by_rank, _ = best_bin_estimate(positive_ranks, unlabeled_ranks)
    by_score, _ = best_bin_estimate(positive, unlabeled)

    assert by_rank == pytest.approx(by_score, abs=1e-12)


def scores_on_other_scales() -> list[tuple[Array, Array]]:
    """Return four folds whose classifiers have scales and offsets of their own."""
    folds = []
    for fold in range(4):
        positive, unlabeled = mixture(0.3, 1_000, 1_000 * 2**fold, seed=fold)
        scale = 10.0 ** (fold - 2)
        offset = 100.0 * fold
        scaled_positive = scale * positive + offset
        scaled_unlabeled = scale * unlabeled + offset
        folds.append((scaled_positive, scaled_unlabeled))
    return folds


def test_ranks_pool_folds_whose_scores_cannot_be_compared() -> None:
    folds = scores_on_other_scales()
    positive_ranks, unlabeled_ranks = pooled_ranks(folds)
    by_rank, _ = best_bin_estimate(positive_ranks, unlabeled_ranks)

    assert len(positive_ranks) == 4_000
    assert len(unlabeled_ranks) == 15_000
    assert by_rank == pytest.approx(0.3, abs=0.04)

    positive_scores = [positive for positive, _ in folds]
    unlabeled_scores = [unlabeled for _, unlabeled in folds]
    all_positive = np.concatenate(positive_scores)
    all_unlabeled = np.concatenate(unlabeled_scores)
    by_score, _ = best_bin_estimate(all_positive, all_unlabeled)

    # Scale and offset separate the raw scores of each fold from those of the others.
    error = abs(by_score - 0.3)
    assert error > 0.1


def test_a_rank_is_one_minus_the_share_of_the_fold_that_scores_at_least_as_high() -> None:
    # A tie, a score above all unlabeled ones, and one below all.
    positive = np.array([2.0, 9.0, -1.0])
    unlabeled = np.array([1.0, 2.0, 2.0, 3.0])
    positive_ranks, unlabeled_ranks = pooled_ranks([(positive, unlabeled)])

    assert_allclose(positive_ranks, [0.25, 1, 0])
    assert_allclose(unlabeled_ranks, [0, 0.25, 0.25, 0.75])


def test_a_fold_may_lack_positives() -> None:
    none = np.array([])
    first_positive = np.array([2.0])
    first_unlabeled = np.array([1.0, 3.0])
    second_unlabeled = np.array([5.0, 4.0])
    first_fold = (first_positive, first_unlabeled)
    second_fold = (none, second_unlabeled)

    positive_ranks, unlabeled_ranks = pooled_ranks([first_fold, second_fold])

    assert_allclose(positive_ranks, [0.5])
    assert_allclose(unlabeled_ranks, [0, 0.5, 0.5, 0])


def width(estimate: ClassPriorEstimate) -> float:
    return estimate.upper - estimate.lower


def test_interval_brackets_value_and_truth_and_shrinks_with_more_samples() -> None:
    few_scores = mixture(0.2, 200, 800, seed=3)
    many_scores = mixture(0.2, 5_000, 20_000, seed=3)
    small = estimated(*few_scores)
    large = estimated(*many_scores)

    for estimate in (small, large):
        assert estimate.lower <= estimate.value <= estimate.upper
        # One interval of ten may miss the truth, hence the margin.
        lowest = estimate.lower - 0.02
        highest = estimate.upper + 0.02
        assert lowest <= 0.2 <= highest

    # 25 times as many samples: a fifth of the width is expected.
    half_width = 0.5 * width(small)
    assert width(large) < half_width
    assert large.n_positive == 5_000
    assert large.n_unlabeled == 20_000
    assert large.method == "bbe"
    assert large.level == 0.9


def test_bbe_and_dedpul_have_the_same_interval_which_holds_both() -> None:
    scores = mixture(0.1, 300, 2_000)
    bbe = estimated(*scores, method="bbe")
    dedpul = estimated(*scores, method="dedpul")
    lower_value, higher_value = sorted([bbe.value, dedpul.value])

    assert bbe.lower == dedpul.lower
    assert bbe.upper == dedpul.upper
    assert bbe.lower <= lower_value
    assert lower_value < higher_value
    assert higher_value <= bbe.upper


def test_the_interval_holds_the_truth_as_often_as_its_level_promises() -> None:
    is_covered = []
    widths = []
    for seed in range(40):
        scores = mixture(0.1, 150, 2_000, seed)
        estimate = estimated(*scores, seed=seed, method="dedpul", n_bootstrap=40)
        holds_truth = estimate.lower <= 0.1 <= estimate.upper
        is_covered.append(holds_truth)
        widths.append(width(estimate))

    assert np.mean(is_covered) >= 0.9
    # Covering is easy for a wide interval.
    assert np.mean(widths) < 0.15


def test_an_interval_from_few_positives_has_a_note_that_it_is_too_narrow() -> None:
    few_scores = mixture(0.2, 10, 500)
    few = estimated(*few_scores)
    assert few.note is not None
    assert "with 10 positives the interval is too narrow" in few.note

    many_scores = mixture(0.2, 100, 500)
    many = estimated(*many_scores)
    assert many.note is None


def test_an_interval_around_a_small_value_has_a_note_that_it_is_too_narrow() -> None:
    scores = mixture(0.03, 100, 5_000)
    small = estimated(*scores, method="dedpul")

    assert small.note is not None
    assert "too narrow for so small a class prior" in small.note


# A single resample has no spread, so only the hull can hold the value.
@settings(deadline=None, max_examples=40)
@given(positive=score_arrays, unlabeled=score_arrays, seed=st.integers(0, 99))
def test_interval_holds_the_value_even_where_the_percentiles_miss_it(
    positive: Array, unlabeled: Array, seed: int
) -> None:
    estimate = estimated(positive, unlabeled, seed=seed, n_bootstrap=1)
    assert 0 <= estimate.lower <= estimate.value <= estimate.upper <= 1


def test_a_higher_level_widens_the_interval_and_the_same_seed_repeats_it() -> None:
    scores = mixture(0.4, 300, 900)
    narrow = estimated(*scores, seed=1, level=0.5)
    wide = estimated(*scores, seed=1, level=0.99)
    again = estimated(*scores, seed=1, level=0.99)

    narrow_width = width(narrow)
    assert narrow_width > 0
    assert width(wide) > narrow_width
    assert again == wide


ONE = np.array([1.0])
NONE = np.array([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "em"},
            r"unknown method 'em' for the class prior, expected one of \['bbe', 'dedpul'",
        ),
        (
            {"method": "km2"},
            r"positive features must be a non-empty matrix .* got shape \(1,\)",
        ),
        ({"level": 1.0}, r"level must lie in \(0, 1\)"),
        ({"n_bootstrap": 0}, "n_bootstrap be at least 1, got 0.9 and 0"),
    ],
)
def test_unusable_options_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        estimated(ONE, ONE, **options)


def test_a_fold_without_unlabeled_samples_is_refused() -> None:
    complete_fold = (ONE, ONE)
    fold_without_unlabeled = (ONE, NONE)
    expected = "unlabeled scores of fold 1 must be a non-empty vector"
    with pytest.raises(ValueError, match=expected):
        pooled_ranks([complete_fold, fold_without_unlabeled])


@pytest.mark.parametrize("folds", [[], [(NONE, ONE)]])
def test_folds_without_any_positive_are_refused(folds) -> None:
    with pytest.raises(ValueError, match="held-out positive scores of at least one fold"):
        pooled_ranks(folds)
