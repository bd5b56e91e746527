"""Selection rules: properties over random pools, a simulated mixture, and the sentences of the errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.learning.class_prior.estimators import share_at_least
from pu_kd_pipeline.learning.selection import (
    CRITERIA,
    RULES,
    PoolScores,
    SelectionOptions,
    needs_budget,
)


def make_pool(
    pu_score: list[float] | np.ndarray, relevant: np.ndarray | None = None, seed: int = 0
) -> PoolScores:
    n = len(pu_score)
    rng = np.random.default_rng(seed)
    return PoolScores(
        pu_score=np.asarray(pu_score, dtype=np.float32),
        teacher_class=rng.integers(10, size=n),
        teacher_confidence=rng.random(n, dtype=np.float32),
        relevant=relevant,
    )


def options(
    criterion: str = "sign", budget: int | None = None, seed: int = 0, **others: object
) -> SelectionOptions:
    everything: dict[str, object] = {
        "class_prior": 0.5,
        "target_precision": 0.4,
        "held_out_ranks": np.linspace(0, 0.6, 20),
        "rng": np.random.default_rng(seed),
    }
    return SelectionOptions(criterion=criterion, budget=budget, **{**everything, **others})  # type: ignore[arg-type]


def simulated(
    class_prior: float = 0.2, n: int = 20_000, seed: int = 0
) -> tuple[PoolScores, np.ndarray]:
    """A pool of N(2, 1) positives among N(0, 1), and the ranks of 2,000 held-out positives."""
    rng = np.random.default_rng(seed)
    relevant = rng.random(n) < class_prior
    scores = (rng.normal(size=n) + 2.0 * relevant).astype(np.float32)
    return make_pool(scores, relevant), share_at_least(rng.normal(2, 1, 2_000), scores)


def flat(n: int) -> Callable[[np.ndarray], np.ndarray]:
    """A proxy that diverges from the teacher by the same everywhere."""
    return lambda _: np.ones(n, dtype=np.float32)


CASES = [("nnpu", criterion) for criterion in CRITERIA] + [
    (rule, "sign") for rule in RULES if rule != "nnpu"
]
pool_scores = st.lists(st.integers(-8, 8), min_size=1, max_size=40).map(lambda values: [*values, 9])


@pytest.mark.parametrize(("rule", "criterion"), CASES)
@settings(deadline=None, max_examples=25)
@given(scores=pool_scores, budget=st.integers(1, 60), seed=st.integers(0, 99))
def test_rows_are_distinct_pool_rows_within_the_budget_and_repeat_with_the_seed(
    rule: str, criterion: str, scores: list[float], budget: int, seed: int
) -> None:
    pool = make_pool(scores, relevant=np.array(scores) > 2, seed=seed)
    proxy = flat(len(pool))
    first, second = (
        RULES[rule].select(pool, options(criterion, budget, seed, disagreement_of=proxy))
        for _ in range(2)
    )
    assert first.rows.dtype == np.int64
    assert len(np.unique(first.rows)) == len(first.rows) > 0
    assert first.rows.min() >= 0
    assert first.rows.max() < len(pool)
    assert rule == "all" or len(first.rows) <= budget
    np.testing.assert_array_equal(first.rows, second.rows)
    assert first.threshold == second.threshold


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None, max_examples=25)
@given(scores=pool_scores)
def test_nnpu_keeps_the_best_first_and_everything_above_its_threshold(
    criterion: str, scores: list[float]
) -> None:
    pool = make_pool(scores)
    selection = RULES["nnpu"].select(pool, options(criterion, 7 if criterion == "budget" else None))
    kept = pool.pu_score[selection.rows]
    assert (np.diff(kept) <= 0).all()
    assert kept.min() >= selection.threshold
    left_out = np.setdiff1d(np.arange(len(pool)), selection.rows)
    if len(left_out):
        assert pool.pu_score[left_out].max() <= kept.min()
    ties = np.diff(kept) == 0
    assert (np.diff(selection.rows)[ties] > 0).all()


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), n=st.integers(5, 50))
def test_permuting_the_pool_permutes_the_selection(criterion: str, seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    scores, order = rng.permutation(n) - 2.5, rng.permutation(n)
    wanted = options(criterion, 3 if criterion == "budget" else None)
    expected = RULES["nnpu"].select(make_pool(scores), wanted)
    actual = RULES["nnpu"].select(make_pool(scores[order]), wanted)
    np.testing.assert_array_equal(order[actual.rows], expected.rows)
    assert actual.threshold == expected.threshold


def test_sign_keeps_what_scores_above_zero() -> None:
    selection = RULES["nnpu"].select(make_pool([0.5, -1, 0, 2, 0.1]), options("sign"))
    assert selection.rows.tolist() == [3, 0, 4]
    assert selection.threshold == 0


def test_quantile_keeps_the_rounded_share_and_breaks_ties_by_row() -> None:
    selection = RULES["nnpu"].select(
        make_pool([1, 3, 1, 1, 0]), options("quantile", class_prior=0.55)
    )
    assert selection.rows.tolist() == [1, 0, 2]
    assert selection.threshold == 1


@settings(deadline=None, max_examples=25)
@given(scores=pool_scores, low=st.floats(0.1, 1), high=st.floats(0.1, 1))
def test_a_larger_prior_or_a_lower_target_only_adds_images(
    scores: list[float], low: float, high: float
) -> None:
    low, high = sorted((low, high))
    pool = make_pool(scores)
    fewer, more = (
        RULES["nnpu"].select(pool, options("quantile", class_prior=max(p, 1 / len(pool))))
        for p in (low, high)
    )
    assert set(fewer.rows) <= set(more.rows)
    assert fewer.threshold >= more.threshold
    sure = np.zeros(5)  # with a prior of 1 the best images then reach every target
    fewer, more = (
        RULES["nnpu"].select(
            pool, options("precision", class_prior=1.0, target_precision=p, held_out_ranks=sure)
        )
        for p in (high, low)
    )
    assert set(fewer.rows) <= set(more.rows)
    assert fewer.threshold >= more.threshold


@pytest.mark.parametrize("n_decimals", [0, 8])
def test_precision_criterion_equals_the_slow_search_and_never_splits_ties(n_decimals: int) -> None:
    pool, ranks = simulated(n=300)
    pool = replace(pool, pu_score=pool.pu_score.round(n_decimals))
    for target in (0.5, 0.7, 0.9):
        selection = RULES["nnpu"].select(
            pool,
            options("precision", class_prior=0.2, target_precision=target, held_out_ranks=ranks),
        )
        best = 0, np.inf, 0.0
        for threshold in pool.pu_score:
            share = (pool.pu_score >= threshold).mean()
            precision = min(1.0, 0.2 * (ranks <= share + 1e-9).mean() / share)
            if precision >= target and share > best[0]:
                best = share, threshold, precision
        assert len(selection.rows) == round(best[0] * 300)
        assert selection.threshold == best[1]
        assert selection.estimated_precision == pytest.approx(best[2])


@pytest.mark.parametrize("target", [0.6, 0.8, 0.9])
def test_precision_criterion_reaches_its_target_on_a_simulated_mixture(target: float) -> None:
    pool, ranks = simulated()
    selection = RULES["nnpu"].select(
        pool, options("precision", class_prior=0.2, target_precision=target, held_out_ranks=ranks)
    )
    assert pool.relevant is not None
    assert pool.relevant[selection.rows].mean() == pytest.approx(target, abs=0.04)
    assert selection.estimated_precision == pytest.approx(target, abs=0.005)
    assert pool.relevant[selection.rows].sum() / pool.relevant.sum() > 0.25


@pytest.mark.parametrize("criterion", ["sign", "quantile", "budget"])
def test_estimated_precision_is_close_to_the_truth_for_every_criterion(criterion: str) -> None:
    pool, ranks = simulated()
    known = options(
        criterion, 2_000 if criterion == "budget" else None, class_prior=0.2, held_out_ranks=ranks
    )
    selection = RULES["nnpu"].select(pool, known)
    assert pool.relevant is not None
    assert selection.estimated_precision == pytest.approx(
        pool.relevant[selection.rows].mean(), abs=0.04
    )
    assert (
        RULES["nnpu"].select(pool, replace(known, held_out_ranks=None)).estimated_precision is None
    )


@pytest.mark.parametrize("criterion", ["sign", "quantile", "precision"])
def test_a_budget_draws_evenly_from_what_passes_instead_of_taking_the_top(criterion: str) -> None:
    pool, ranks = simulated()
    passing = RULES["nnpu"].select(pool, options(criterion, class_prior=0.2, held_out_ranks=ranks))
    drawn = RULES["nnpu"].select(
        pool, options(criterion, 1_000, class_prior=0.2, held_out_ranks=ranks)
    )
    assert len(drawn.rows) == 1_000
    assert set(drawn.rows) <= set(passing.rows)
    assert (drawn.threshold, drawn.estimated_precision) == (
        passing.threshold,
        passing.estimated_precision,
    )
    position = np.flatnonzero(np.isin(passing.rows, drawn.rows)) / len(passing.rows)
    assert position.mean() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_array_equal(
        pool.pu_score[drawn.rows], np.sort(pool.pu_score[drawn.rows])[::-1]
    )


def test_random_is_nested_and_its_precision_is_the_class_prior() -> None:
    pool = make_pool(np.arange(30))
    small, large = (RULES["random"].select(pool, options(budget=budget)) for budget in (5, 12))
    np.testing.assert_array_equal(large.rows[:5], small.rows)
    assert small.threshold is None
    assert small.estimated_precision == 0.5
    assert (
        RULES["random"].select(pool, options(budget=5, seed=1)).rows.tolist() != small.rows.tolist()
    )
    assert len(RULES["random"].select(pool, options(budget=100)).rows) == 30


def test_oracle_keeps_the_relevant_and_only_them() -> None:
    relevant = np.arange(20) % 3 == 0
    pool = make_pool(np.arange(20), relevant)
    assert RULES["oracle"].select(pool, options()).rows.tolist() == [0, 3, 6, 9, 12, 15, 18]
    few = RULES["oracle"].select(pool, options(budget=4))
    assert len(few.rows) == 4
    assert relevant[few.rows].all()


def test_confident_ranks_by_the_teacher_and_all_keeps_everything() -> None:
    pool = replace(
        make_pool([0, 0, 0, 0]), teacher_confidence=np.array([0.2, 0.9, 0.5, 0.9], dtype=np.float32)
    )
    selection = RULES["confident"].select(pool, options(budget=3))
    assert selection.rows.tolist() == [1, 3, 2]
    assert selection.threshold == 0.5
    assert RULES["all"].select(pool, options(budget=1)).rows.tolist() == [0, 1, 2, 3]


@settings(deadline=None, max_examples=50)
@given(
    strata=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=60),
    budget=st.integers(1, 70),
    seed=st.integers(0, 9),
)
def test_stratified_fills_the_strata_evenly(
    strata: list[tuple[int, int]], budget: int, seed: int
) -> None:
    """No stratum gives two images more than another that still has some left."""
    pool = PoolScores(
        pu_score=np.zeros(len(strata), dtype=np.float32),
        teacher_class=np.array([teacher_class for teacher_class, _ in strata]),
        teacher_confidence=np.array([(band + 0.5) / 10 for _, band in strata], dtype=np.float32),
    )
    kept = RULES["stratified"].select(pool, options(budget=budget, seed=seed)).rows
    assert len(kept) == min(budget, len(strata))
    sizes = {stratum: strata.count(stratum) for stratum in strata}
    taken = {stratum: sum(strata[row] == stratum for row in kept) for stratum in strata}
    unfinished = [taken[stratum] for stratum in sizes if taken[stratum] < sizes[stratum]]
    assert max(taken.values()) <= min(unfinished, default=len(strata)) + 1
    smaller = RULES["stratified"].select(pool, options(budget=max(1, budget // 2), seed=seed)).rows
    assert kept[: len(smaller)].tolist() == smaller.tolist()


@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(4, 60),
    budget=st.integers(2, 70),
    class_prior=st.floats(0.3, 0.9),
    seed=st.integers(0, 99),
)
def test_disagreement_is_half_random_and_half_likely_positives(
    n: int, budget: int, class_prior: float, seed: int
) -> None:
    pool, asked = make_pool(np.random.default_rng(seed).permutation(n)), []

    def proxy(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return np.ones(n)

    wanted = options(budget=budget, seed=seed, class_prior=class_prior, disagreement_of=proxy)
    rows = RULES["disagreement"].select(pool, wanted).rows
    assert len(rows) == min(budget, n)
    [first] = asked
    assert len(first) == max(1, round(min(budget, n) / 2))
    np.testing.assert_array_equal(rows[: len(first)], first)
    likely = np.setdiff1d(np.flatnonzero(pool.pu_score >= n - round(class_prior * n)), first)
    drawn = rows[len(first) :]
    assert np.isin(
        drawn[: len(likely)], likely
    ).all()  # random ones only where these do not suffice


def test_disagreement_draws_in_proportion_to_the_divergence() -> None:
    n = 20_000
    pool = make_pool(np.arange(n))
    divergence = np.where(np.arange(n) % 2, 3.0, 1.0)
    rows = (
        RULES["disagreement"]
        .select(pool, options(budget=2_000, disagreement_of=lambda first: divergence))
        .rows
    )
    first, drawn = rows[:1000], rows[1000:]
    assert 0.45 < (first % 2).mean() < 0.55
    assert 0.71 < (drawn % 2).mean() < 0.79  # three times as likely; 0.75 but for chance
    without = (
        RULES["disagreement"]
        .select(pool, options(class_prior=0.1, disagreement_of=lambda first: divergence))
        .rows
    )
    assert len(without) == 2_000  # as many as the criterion quantile keeps


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_a_proxy_that_diverged_chooses_nothing(bad: float) -> None:
    with pytest.raises(ValueError, match="the proxy diverged"):
        RULES["disagreement"].select(
            make_pool(np.arange(9)), options(budget=4, disagreement_of=lambda _: np.full(9, bad))
        )


def test_no_rule_but_the_oracle_reads_the_truth() -> None:
    scores = np.random.default_rng(0).normal(size=50)
    for rule, criterion in CASES:
        if rule != "oracle":
            blind, told = (
                RULES[rule].select(
                    make_pool(scores, truth), options(criterion, 9, disagreement_of=flat(50))
                )
                for truth in (None, scores < 0)
            )
            np.testing.assert_array_equal(blind.rows, told.rows)


@pytest.mark.parametrize(("rule", "criterion"), CASES)
def test_rules_that_need_a_budget_are_known_before_the_run(rule: str, criterion: str) -> None:
    pool = make_pool(np.arange(1, 9), relevant=np.ones(8, dtype=bool))
    if needs_budget(rule, criterion):
        with pytest.raises(ValueError, match=rf"rule '{rule}'.* needs `budget`"):
            RULES[rule].select(pool, options(criterion))
    else:
        assert len(RULES[rule].select(pool, options(criterion, disagreement_of=flat(8))).rows)


@pytest.mark.parametrize(
    ("rule", "wanted", "message"),
    [
        (
            "nnpu",
            {"criterion": "sign"},
            r"'nnpu' with criterion 'sign' selects nothing: the best PU score.* is -1.*Choose",
        ),
        (
            "nnpu",
            {"criterion": "quantile", "class_prior": 0.1},
            "'quantile' selects nothing: class_prior 0.1 of 3 pool",
        ),
        (
            "nnpu",
            {"criterion": "precision", "target_precision": 0.99, "class_prior": 0.1},
            "reaches an estimated precision of 0.99, the best",
        ),
        ("nnpu", {"criterion": "precision", "held_out_ranks": None}, "needs `held_out_ranks`"),
        ("nnpu", {"criterion": "quantile", "class_prior": None}, "needs `class_prior`"),
        ("nnpu", {"criterion": "precision", "target_precision": None}, "needs `target_precision`"),
        ("random", {"budget": 2, "rng": None}, "rule 'random' needs `rng`"),
        ("oracle", {}, "rule 'oracle' needs to know which pool images are relevant"),
    ],
)
def test_a_selection_that_cannot_be_made_says_why_and_what_to_do(
    rule: str, wanted: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RULES[rule].select(make_pool([-3, -1, -2]), options(**wanted))  # type: ignore[arg-type]


def test_oracle_without_a_relevant_image_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the 2 pool images is relevant"):
        RULES["oracle"].select(make_pool([1, 2], np.zeros(2, dtype=bool)), options())


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
        options(**wanted)  # type: ignore[arg-type]


def test_an_empty_ragged_or_diverged_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="the pool holds no image"):
        make_pool([])
    with pytest.raises(
        ValueError,
        match=r"relevant must have one value for each of the 2 pool images, got shape \(3,\)",
    ):
        make_pool([1, 2], np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="pu_score of 1 of the 2 pool images is not finite"):
        make_pool([1, np.nan])
