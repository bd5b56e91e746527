"""Selection rules: properties over random pools, and the errors."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.learning.selection import RULES, PoolScores, Selection, needs_budget
from pu_kd_pipeline.learning.selection_criteria import MixtureOptions
from tests.learning.selection_pools import CASES, flat, make_options, make_pool, select

# The highest score is positive, so that every criterion passes something.
pool_scores = st.lists(st.integers(-8, 8), min_size=1, max_size=40).map(lambda values: [*values, 9])


@pytest.mark.parametrize(("rule", "criterion"), CASES)
@settings(deadline=None, max_examples=25)
@given(scores=pool_scores, budget=st.integers(1, 60), seed=st.integers(0, 99))
def test_rows_are_distinct_pool_rows_within_the_budget_and_repeat_with_the_seed(
    rule: str, criterion: str, scores: list[float], budget: int, seed: int
) -> None:
    relevant = np.array(scores) > 2
    pool = make_pool(scores, relevant, seed)

    def selection() -> Selection:
        # New options each time: a generator continues where it was left.
        options = make_options(criterion, budget, seed, disagreement_of=flat(len(pool)))
        return select(rule, pool, options)

    first = selection()
    rows = first.rows
    n_distinct = len(np.unique(rows))
    assert rows.dtype == np.int64
    assert n_distinct == len(rows)
    assert n_distinct > 0
    assert rows.min() >= 0
    assert rows.max() < len(pool)
    # The rule `all` is the control without a budget.
    if rule != "all":
        assert len(rows) <= budget

    second = selection()
    np.testing.assert_array_equal(rows, second.rows)
    assert first.threshold == second.threshold


def test_random_is_nested() -> None:
    pool = make_pool(np.arange(30))
    few = make_options(budget=5)
    more = make_options(budget=12)
    # A larger budget adds images, so that budgets can be compared.
    small = select("random", pool, few)
    large = select("random", pool, more)
    first_of_large = large.rows[:5]
    np.testing.assert_array_equal(first_of_large, small.rows)


def test_the_precision_of_random_is_the_class_prior() -> None:
    pool = make_pool(np.arange(30))
    options = make_options(budget=5, class_prior=0.5)
    selection = select("random", pool, options)
    assert selection.threshold is None
    assert selection.estimated_precision == 0.5


def test_random_follows_its_seed() -> None:
    pool = make_pool(np.arange(30))
    options = make_options(budget=5)
    options_of_other_seed = make_options(budget=5, seed=1)

    selection = select("random", pool, options)
    other = select("random", pool, options_of_other_seed)
    assert other.rows.tolist() != selection.rows.tolist()


def test_random_with_a_budget_beyond_the_pool_keeps_the_pool() -> None:
    pool = make_pool(np.arange(30))
    options = make_options(budget=100)
    whole = select("random", pool, options)
    assert len(whole.rows) == 30


def test_oracle_keeps_the_relevant_and_only_them() -> None:
    numbers = np.arange(20)
    relevant = numbers % 3 == 0
    pool = make_pool(numbers, relevant)

    every = select("oracle", pool, make_options())
    assert every.rows.tolist() == [0, 3, 6, 9, 12, 15, 18]

    # A budget draws from the relevant images alone.
    few = select("oracle", pool, make_options(budget=4))
    is_hit = relevant[few.rows]
    assert len(few.rows) == 4
    assert is_hit.all()


def test_confident_ranks_by_the_teacher() -> None:
    # Exactly 1 in float32: the log odds alone tell rows 1 and 3 apart.
    confidence = np.array([0.2, 1, 0.5, 1], dtype=np.float32)
    log_odds = np.array([-1.4, 20, 0, 90])
    pool = make_pool([0, 0, 0, 0])
    pool = replace(pool, teacher_confidence=confidence, teacher_log_odds=log_odds)
    options = make_options(budget=3)

    selection = select("confident", pool, options)
    assert selection.rows.tolist() == [3, 1, 2]
    assert selection.threshold == 0
    assert selection.n_tied_at_cut == 0


TIED_CASES = [
    ("nnpu", "quantile"),
    ("nnpu", "budget"),
    ("confident", "sign"),
    ("disagreement", "sign"),
]


def ranked_part(rule: str, criterion: str, pool: PoolScores, n_kept: int) -> Selection:
    """Return what a rule keeps because of its ranking, of a pool of 100 images."""
    options = make_options(criterion, n_kept, class_prior=n_kept / 100)
    if rule == "disagreement":
        options = make_options(
            budget=100, class_prior=n_kept / 100, disagreement_of=lambda _: np.arange(100.0)
        )
    return select(rule, pool, options)


@pytest.mark.parametrize(("rule", "criterion"), TIED_CASES)
def test_equal_scores_are_ordered_by_the_tie_break_and_counted(rule: str, criterion: str) -> None:
    # 10 images are better than the 90 others, which tie.
    is_better = np.arange(100) % 10 == 0
    pool = make_pool(is_better.astype(np.float32))
    pool = replace(pool, teacher_log_odds=is_better.astype(np.float64))
    selection = ranked_part(rule, criterion, pool, n_kept=30)
    assert selection.n_tied_at_cut == 90
    assert ranked_part(rule, criterion, pool, n_kept=10).n_tied_at_cut == 0
    if rule == "disagreement":
        return  # draws from the top images, and fills up with others

    others = np.flatnonzero(~is_better)
    by_tie_break = others[np.argsort(pool.tie_break[others])]
    assert sorted(selection.rows[:10]) == np.flatnonzero(is_better).tolist()
    assert selection.rows[10:].tolist() == by_tie_break[:20].tolist()


def test_the_likely_positives_of_disagreement_are_cut_by_the_tie_break() -> None:
    pool = make_pool(np.zeros(1_000))
    rng = np.random.default_rng(0)
    options = make_options(
        budget=400, class_prior=0.2, rng=rng, disagreement_of=lambda _: np.ones(1_000)
    )
    rows = select("disagreement", pool, options).rows
    # 200 at random, then likely positives: all of those that are not among the 200.
    is_likely = pool.tie_break < 200
    n_likely_left = int(is_likely.sum() - is_likely[rows[:200]].sum())
    assert is_likely[rows[200 : 200 + n_likely_left]].all()


def test_images_without_any_disagreement_are_drawn_at_random() -> None:
    # Their times until the draw would all be infinite, and the order of the rows would decide.
    pool = make_pool(np.arange(1_000))
    options = make_options(budget=500, class_prior=1.0, disagreement_of=lambda _: np.zeros(1_000))
    rows = select("disagreement", pool, options).rows
    drawn = rows[250:]
    assert 400 < drawn.mean() < 600
    assert not (np.diff(drawn) > 0).all()


@pytest.mark.parametrize("rule", ["nnpu", "disagreement"])
def test_a_rule_that_ranks_by_a_missing_score_says_so(rule: str) -> None:
    pool = replace(make_pool([1, 2, 3]), pu_score=None)
    options = make_options("quantile", budget=2, disagreement_of=flat(3))
    with pytest.raises(ValueError, match=f"rule '{rule}'.* needs `pu_score`"):
        select(rule, pool, options)


def test_all_keeps_everything_whatever_the_budget() -> None:
    pool = make_pool([0, 0, 0, 0])
    options = make_options(budget=1)
    selection = select("all", pool, options)
    rows = selection.rows.tolist()
    assert rows == [0, 1, 2, 3]


# A stratum: the class that the teacher predicts, and the tenth that its confidence falls into.
some_stratum = st.tuples(st.integers(0, 2), st.integers(0, 9))
some_strata = st.lists(some_stratum, min_size=1, max_size=60)


def pool_of_strata(strata: list[tuple[int, int]]) -> PoolScores:
    classes, bands = np.array(strata).T
    # The middle of each band, so that rounding moves none into the next.
    confidence = (bands + 0.5) / 10
    return PoolScores(
        pu_score=None,
        teacher_class=classes,
        teacher_confidence=confidence.astype(np.float32),
        teacher_log_odds=None,
        tie_break=np.arange(len(strata), dtype=np.uint64),
    )


@settings(deadline=None, max_examples=50)
@given(strata=some_strata, budget=st.integers(1, 70), seed=st.integers(0, 9))
def test_stratified_fills_the_strata_evenly(
    strata: list[tuple[int, int]], budget: int, seed: int
) -> None:
    """No stratum gives two images more than another that still has some left."""
    pool = pool_of_strata(strata)
    options = make_options(budget=budget, seed=seed)
    selection = select("stratified", pool, options)
    assert len(selection.rows) == min(budget, len(strata))

    n_in_pool = Counter(strata)
    n_kept = Counter(strata[row] for row in selection.rows)
    # Where every stratum is used up, any number is even.
    fewest = len(strata)
    for stratum, n in n_in_pool.items():
        has_some_left = n_kept[stratum] < n
        if has_some_left:
            fewest = min(fewest, n_kept[stratum])
    most = max(n_kept.values())
    assert most <= fewest + 1


@settings(deadline=None, max_examples=50)
@given(strata=some_strata, budget=st.integers(1, 70), seed=st.integers(0, 9))
def test_stratified_is_nested(strata: list[tuple[int, int]], budget: int, seed: int) -> None:
    pool = pool_of_strata(strata)
    options = make_options(budget=budget, seed=seed)
    kept = select("stratified", pool, options).rows

    # New options, because the generator of the first has moved on.
    half = max(1, budget // 2)
    options = make_options(budget=half, seed=seed)
    smaller = select("stratified", pool, options).rows
    first = kept[: len(smaller)]
    assert first.tolist() == smaller.tolist()


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
    rng = np.random.default_rng(seed)
    pool = make_pool(rng.permutation(n))
    rows_of_proxies = []

    def proxy(rows: np.ndarray) -> np.ndarray:
        rows_of_proxies.append(rows)
        return np.ones(n)

    options = make_options(budget=budget, seed=seed, class_prior=class_prior, disagreement_of=proxy)
    rows = select("disagreement", pool, options).rows
    n_kept = min(budget, n)
    assert len(rows) == n_kept

    # One proxy, a student of the random half.
    [random_half] = rows_of_proxies
    n_random = len(random_half)
    assert n_random == max(1, round(n_kept / 2))
    np.testing.assert_array_equal(rows[:n_random], random_half)

    # Scores are 0..n-1: the likely positives are the highest of them.
    n_likely = round(class_prior * n)
    is_likely = pool.pu_score >= n - n_likely
    every_likely = np.flatnonzero(is_likely)
    likely = np.setdiff1d(every_likely, random_half)
    drawn = rows[n_random:]
    # Random images follow only where the likely positives do not suffice.
    drawn_first = drawn[: len(likely)]
    assert np.isin(drawn_first, likely).all()


def test_disagreement_draws_in_proportion_to_the_divergence() -> None:
    n = 20_000
    pool = make_pool(np.arange(n))
    is_odd = np.arange(n) % 2 == 1
    divergence = np.where(is_odd, 3.0, 1.0)

    options = make_options(budget=2_000, disagreement_of=lambda _: divergence)
    rows = select("disagreement", pool, options).rows
    random_half = rows[:1000]
    drawn_half = rows[1000:]
    assert 0.45 < is_odd[random_half].mean() < 0.55
    # Three times as likely as the others: 0.75 but for chance.
    assert 0.71 < is_odd[drawn_half].mean() < 0.79


def test_a_number_of_likely_positives_replaces_the_class_prior() -> None:
    n = 2_000
    pool = make_pool(np.arange(n))
    options = make_options(budget=300, class_prior=0.001, n_likely=300, disagreement_of=flat(n))
    rows = select("disagreement", pool, options).rows
    # The second half is drawn from the 300 highest scores, not from the class prior's two.
    assert np.isin(rows[150:], np.arange(n - 300, n)).mean() > 0.8


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_a_proxy_that_diverged_chooses_nothing(bad: float) -> None:
    pool = make_pool(np.arange(9))
    divergence = np.full(9, bad)
    options = make_options(budget=4, disagreement_of=lambda _: divergence)
    # Probabilities made of such numbers would fail deep in NumPy.
    with pytest.raises(ValueError, match="the proxy diverged"):
        select("disagreement", pool, options)


CASES_WITHOUT_TRUTH = [case for case in CASES if not RULES[case[0]].uses_truth]
CASES_WITH_PU_SCORE = [case for case in CASES if RULES[case[0]].reads_pu_score]
CASES_WITHOUT_PU_SCORE = [case for case in CASES if not RULES[case[0]].reads_pu_score]


@pytest.mark.parametrize(("rule", "criterion"), CASES_WITHOUT_TRUTH)
def test_a_rule_reads_the_truth_only_where_its_record_says_so(rule: str, criterion: str) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=50)
    # The opposite of what the scores suggest: a rule that read it would choose others.
    truth = scores < 0

    def rows(relevant: np.ndarray | None) -> np.ndarray:
        pool = make_pool(scores, relevant)
        options = make_options(criterion, 9, disagreement_of=flat(50))
        return select(rule, pool, options).rows

    np.testing.assert_array_equal(rows(None), rows(truth))


@pytest.mark.parametrize(("rule", "criterion"), CASES_WITHOUT_PU_SCORE)
def test_a_rule_reads_pu_scores_only_where_its_record_says_so(rule: str, criterion: str) -> None:
    # In no order: that of equal scores must not pass for theirs.
    numbers = np.random.default_rng(5).permutation(50)
    is_even = numbers % 2 == 0
    pool = make_pool(numbers, is_even)
    no_scores = np.zeros(50, dtype=np.float32)
    without_scores = replace(pool, pu_score=no_scores)

    # New options each time: a generator continues where it was left.
    expected = select(rule, pool, make_options(criterion, 9))
    actual = select(rule, without_scores, make_options(criterion, 9))
    np.testing.assert_array_equal(actual.rows, expected.rows)


@pytest.mark.parametrize(("rule", "criterion"), CASES_WITH_PU_SCORE)
def test_a_rule_whose_record_says_so_reads_pu_scores(rule: str, criterion: str) -> None:
    numbers = np.random.default_rng(5).permutation(50)
    every_relevant = np.ones(50, dtype=bool)
    pool = make_pool(numbers + 1, every_relevant)
    reversed_scores = pool.pu_score[::-1].copy()
    other = replace(pool, pu_score=reversed_scores)

    rows = select(rule, pool, make_options(criterion, 9, disagreement_of=flat(50))).rows
    other_rows = select(rule, other, make_options(criterion, 9, disagreement_of=flat(50))).rows
    # Otherwise a PU classifier would be trained for nothing.
    assert not np.array_equal(rows, other_rows)


@pytest.mark.parametrize(("rule", "criterion"), CASES)
def test_the_record_of_a_rule_describes_what_it_keeps(rule: str, criterion: str) -> None:
    scores = np.random.default_rng(5).normal(size=50)
    pool = make_pool(scores, scores > 0)
    options = make_options(criterion, 9, disagreement_of=flat(50))
    selection = select(rule, pool, options)
    record = RULES[rule]

    # Figures mark a cut exactly where the record promises one.
    assert (selection.threshold is not None) == record.has_threshold

    if record.ranked_by is not None:
        ranking = getattr(pool, record.ranked_by)
        is_kept = np.isin(np.arange(50), selection.rows)
        # Figures and AUC take higher for better.
        assert ranking[is_kept].mean() > ranking[~is_kept].mean()


@pytest.mark.parametrize(("rule", "criterion"), CASES)
def test_rules_that_need_a_budget_are_known_before_the_run(rule: str, criterion: str) -> None:
    # All relevant and with positive scores, so that nothing but the budget is missing.
    every_relevant = np.ones(8, dtype=bool)
    pool = make_pool(np.arange(1, 9), every_relevant)
    options = make_options(criterion, disagreement_of=flat(8))
    if needs_budget(rule, criterion):
        message = rf"rule '{rule}'.* needs `budget`"
        with pytest.raises(ValueError, match=message):
            select(rule, pool, options)
    else:
        selection = select(rule, pool, options)
        assert len(selection.rows) > 0


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
    # No score is positive, so that even `sign` passes nothing.
    pool = make_pool([-3, -1, -2])
    options = make_options(**wanted)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        select(rule, pool, options)


def test_oracle_without_a_relevant_image_is_refused() -> None:
    none_relevant = np.zeros(2, dtype=bool)
    pool = make_pool([1, 2], none_relevant)
    with pytest.raises(ValueError, match="none of the 2 pool images is relevant"):
        select("oracle", pool, make_options())


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="the pool holds no image"):
        make_pool([])


def test_a_ragged_pool_is_refused() -> None:
    for_three_images = np.ones(3, dtype=bool)
    expected = r"relevant must have one value for each of the 2 pool images, got shape \(3,\)"
    with pytest.raises(ValueError, match=expected):
        make_pool([1, 2], for_three_images)


def test_a_pool_with_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="pu_score of 1 of the 2 pool images is not finite"):
        make_pool([1, np.nan])


def test_mixture_keeps_the_whole_pool_and_prefers_the_best() -> None:
    pool = make_pool(np.arange(200))
    selection = select("mixture", pool, make_options())
    related = selection.related_probability
    assert related is not None
    assert selection.reasons is not None
    # Best first, and no class prior, rng or threshold.
    assert selection.rows.tolist() == list(range(199, -1, -1))
    assert related.sum() == pytest.approx(1.0)
    is_related = selection.reasons == "related"
    assert related[is_related].min() > 1 / 200 >= related[~is_related].max()


def test_mixture_ranks_by_the_teacher_where_it_is_told_to() -> None:
    pool = replace(make_pool(np.arange(50)), pu_score=None)
    by_teacher = MixtureOptions(score="teacher_log_odds")
    selection = select("mixture", pool, make_options(mixture=by_teacher))
    assert pool.teacher_log_odds is not None
    ranked = pool.teacher_log_odds[selection.rows]
    assert (np.diff(ranked) <= 0).all()
    with pytest.raises(ValueError, match="needs `pu_score`"):
        select("mixture", pool, make_options())


def test_a_budget_of_a_mixture_is_half_random_and_half_related() -> None:
    pool = make_pool(np.arange(400))
    selection = select("mixture", pool, make_options(budget=40))
    random = select("random", pool, make_options(budget=20))
    np.testing.assert_array_equal(selection.rows[:20], random.rows)
    others = selection.rows[20:]
    assert others.mean() > 300  # of 0 to 399, the best are last
    assert selection.related_probability is not None
    assert selection.related_probability.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("rule", "criterion"), CASES)
def test_every_kept_image_has_a_reason(rule: str, criterion: str) -> None:
    pool = make_pool(np.arange(40), np.arange(40) > 5)
    options = make_options(criterion, budget=12, disagreement_of=flat(40))
    selection = select(rule, pool, options)
    if selection.reasons is not None:
        assert len(selection.reasons) == len(selection.rows)
        assert all(selection.reasons)
    assert RULES[rule].reason


def test_disagreement_says_which_half_is_random() -> None:
    pool = make_pool(np.arange(40))
    options = make_options(budget=12, disagreement_of=flat(40))
    selection = select("disagreement", pool, options)
    assert selection.reasons is not None
    assert selection.reasons.tolist() == ["random"] * 6 + ["disagreement"] * 6
