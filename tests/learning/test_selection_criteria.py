"""Criteria of the rule `nnpu`: properties over random pools, and a simulated mixture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.learning.selection_criteria import CRITERIA
from tests.learning.selection_pools import make_options, make_pool, select, simulated

# The highest score is positive, so that every criterion passes something.
pool_scores = st.lists(st.integers(-8, 8), min_size=1, max_size=40).map(lambda values: [*values, 9])


def budget_for(criterion: str, budget: int) -> int | None:
    """Return the budget where it is the cut; with the other criteria it would be a random draw."""
    if CRITERIA[criterion].needs_budget:
        return budget
    return None


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None, max_examples=25)
@given(scores=pool_scores)
def test_nnpu_keeps_the_best_first_and_everything_above_its_threshold(
    criterion: str, scores: list[float]
) -> None:
    pool = make_pool(scores)
    options = make_options(criterion, budget_for(criterion, 7))
    selection = select("nnpu", pool, options)
    rows = selection.rows
    kept = pool.pu_score[rows]

    step = np.diff(kept)
    assert (step <= 0).all()
    assert kept.min() >= selection.threshold
    every_row = np.arange(len(pool))
    left_out = np.setdiff1d(every_row, rows)
    if len(left_out) > 0:
        best_left_out = pool.pu_score[left_out].max()
        assert best_left_out <= kept.min()

    # Ties are in the order of the tie break.
    tie_break = pool.tie_break[rows].astype(np.int64)
    step_of_ties = np.diff(tie_break)[step == 0]
    assert (step_of_ties > 0).all()


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), n=st.integers(5, 50))
def test_permuting_the_pool_permutes_the_selection(criterion: str, seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    # Distinct scores: the tie break of `make_pool` is one of rows, which a permutation changes.
    scores = rng.permutation(n) - 2.5
    order = rng.permutation(n)
    options = make_options(criterion, budget_for(criterion, 3))
    pool = make_pool(scores)
    permuted = make_pool(scores[order])

    expected = select("nnpu", pool, options)
    actual = select("nnpu", permuted, options)
    np.testing.assert_array_equal(order[actual.rows], expected.rows)
    assert actual.threshold == expected.threshold


def test_sign_keeps_what_scores_above_zero() -> None:
    # Zero itself is left out.
    pool = make_pool([0.5, -1, 0, 2, 0.1])
    options = make_options("sign")
    selection = select("nnpu", pool, options)
    rows = selection.rows.tolist()
    assert rows == [3, 0, 4]
    assert selection.threshold == 0


def test_quantile_keeps_the_rounded_share_and_breaks_ties_by_the_tie_break() -> None:
    # 0.55 of 5 images is 2.75, rounded to 3: the best, and two of the three ties.
    pool = make_pool([1, 3, 1, 1, 0])
    pool = replace(pool, tie_break=np.array([2, 9, 1, 0, 5], dtype=np.uint64))
    options = make_options("quantile", class_prior=0.55)
    selection = select("nnpu", pool, options)
    assert selection.rows.tolist() == [1, 3, 2]
    assert selection.n_tied_at_cut == 3
    assert selection.threshold == 1


@settings(deadline=None, max_examples=25)
@given(scores=pool_scores, one=st.floats(0.1, 1), other=st.floats(0.1, 1))
def test_a_larger_prior_only_adds_images(scores: list[float], one: float, other: float) -> None:
    pool = make_pool(scores)
    # At least one image: a smaller prior is refused.
    smallest = 1 / len(pool)
    low = max(smallest, min(one, other))
    high = max(smallest, max(one, other))
    small_prior = make_options("quantile", class_prior=low)
    large_prior = make_options("quantile", class_prior=high)

    fewer = select("nnpu", pool, small_prior)
    more = select("nnpu", pool, large_prior)
    assert set(fewer.rows) <= set(more.rows)
    assert fewer.threshold >= more.threshold


@settings(deadline=None, max_examples=25)
@given(scores=pool_scores, one=st.floats(0.1, 1), other=st.floats(0.1, 1))
def test_a_lower_target_only_adds_images(scores: list[float], one: float, other: float) -> None:
    pool = make_pool(scores)
    low = min(one, other)
    high = max(one, other)
    # With ranks of zero and a prior of one the best images reach every target.
    options = make_options("precision", class_prior=1.0, held_out_ranks=np.zeros(5))
    strict = replace(options, target_precision=high)
    lenient = replace(options, target_precision=low)

    fewer = select("nnpu", pool, strict)
    more = select("nnpu", pool, lenient)
    assert set(fewer.rows) <= set(more.rows)
    assert fewer.threshold >= more.threshold


def slow_search(
    scores: np.ndarray, ranks: np.ndarray, class_prior: float, target: float
) -> tuple[float, float, float]:
    """Return share, threshold and precision of the largest top share that reaches the target."""
    best_share = 0.0
    best_threshold = np.inf
    best_precision = 0.0
    for threshold in scores:
        share = (scores >= threshold).mean()
        # A billionth of slack: the ranks and the share are rounded independently.
        is_above = ranks <= share + 1e-9
        q_positive = is_above.mean()
        precision = min(1.0, class_prior * q_positive / share)
        if precision >= target and share > best_share:
            best_share = share
            best_threshold = threshold
            best_precision = precision
    return best_share, best_threshold, best_precision


@pytest.mark.parametrize("target", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("n_decimals", [0, 8])
def test_precision_criterion_equals_the_slow_search_and_never_splits_ties(
    n_decimals: int, target: float
) -> None:
    pool, ranks = simulated(n=300)
    # Whole numbers have many ties, eight decimals none.
    scores = pool.pu_score.round(n_decimals)
    pool = replace(pool, pu_score=scores)
    options = make_options(
        "precision", class_prior=0.2, target_precision=target, held_out_ranks=ranks
    )

    selection = select("nnpu", pool, options)
    share, threshold, precision = slow_search(scores, ranks, 0.2, target)
    n_expected = round(share * 300)
    assert len(selection.rows) == n_expected
    assert selection.threshold == threshold
    assert selection.estimated_precision == pytest.approx(precision)


@pytest.mark.parametrize("target", [0.6, 0.8, 0.9])
def test_precision_criterion_reaches_its_target_on_a_simulated_mixture(target: float) -> None:
    pool, ranks = simulated()
    assert pool.relevant is not None
    options = make_options(
        "precision", class_prior=0.2, target_precision=target, held_out_ranks=ranks
    )

    selection = select("nnpu", pool, options)
    is_hit = pool.relevant[selection.rows]
    precision = is_hit.mean()
    assert precision == pytest.approx(target, abs=0.04)
    assert selection.estimated_precision == pytest.approx(target, abs=0.005)
    # A handful of the best images would reach any precision.
    n_relevant = pool.relevant.sum()
    recall = is_hit.sum() / n_relevant
    assert recall > 0.25


@pytest.mark.parametrize("criterion", ["sign", "quantile", "budget"])
def test_estimated_precision_is_close_to_the_truth_for_every_criterion(criterion: str) -> None:
    pool, ranks = simulated()
    budget = budget_for(criterion, 2_000)
    options = make_options(criterion, budget, class_prior=0.2, held_out_ranks=ranks)

    selection = select("nnpu", pool, options)
    assert pool.relevant is not None
    is_hit = pool.relevant[selection.rows]
    assert selection.estimated_precision == pytest.approx(is_hit.mean(), abs=0.04)

    # Nothing can be estimated without held-out positives.
    options_without_ranks = replace(options, held_out_ranks=None)
    without_ranks = select("nnpu", pool, options_without_ranks)
    assert without_ranks.estimated_precision is None


@pytest.mark.parametrize("criterion", ["sign", "quantile", "precision"])
def test_a_budget_keeps_only_images_that_pass(criterion: str) -> None:
    pool, ranks = simulated()
    options = make_options(criterion, class_prior=0.2, held_out_ranks=ranks)
    with_budget = replace(options, budget=1_000)
    passing = select("nnpu", pool, options)
    drawn = select("nnpu", pool, with_budget)

    assert len(drawn.rows) == 1_000
    assert set(drawn.rows) <= set(passing.rows)
    # A random part is as precise as the whole.
    assert drawn.threshold == passing.threshold
    assert drawn.estimated_precision == passing.estimated_precision


@pytest.mark.parametrize("criterion", ["sign", "quantile", "precision"])
def test_a_budget_draws_evenly_from_what_passes_instead_of_taking_the_top(criterion: str) -> None:
    pool, ranks = simulated()
    options = make_options(criterion, class_prior=0.2, held_out_ranks=ranks)
    with_budget = replace(options, budget=1_000)
    passing = select("nnpu", pool, options)
    drawn = select("nnpu", pool, with_budget)

    # Places from 0, the best, to 1: the top would have places near zero.
    n_passing = len(passing.rows)
    is_drawn = np.isin(passing.rows, drawn.rows)
    places = np.flatnonzero(is_drawn) / n_passing
    mean_place = places.mean()
    assert mean_place == pytest.approx(0.5, abs=0.05)

    scores = pool.pu_score[drawn.rows]
    best_first = np.sort(scores)[::-1]
    np.testing.assert_array_equal(scores, best_first)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"criterion": "top"}, "unknown criterion 'top', expected one of"),
        ({"class_prior": 1.2}, r"class_prior must lie in \[0, 1\], got 1.2"),
        ({"budget": 0}, "budget must be at least 1, got 0"),
        ({"target_precision": 0.0}, r"target_precision must lie in \(0, 1\], got 0.0"),
        (
            {"held_out_ranks": np.array([0.5, 1.5])},
            "held_out_ranks must be a non-empty vector of shares",
        ),
    ],
)
def test_bad_options_are_refused(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_options(**wanted)  # type: ignore[arg-type]
