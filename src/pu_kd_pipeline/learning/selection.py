"""Which pool images to keep: one record per rule, chosen by its key in `RULES`.

A record holds the function of the rule and every fact about it that parameters, comparisons, figures and summaries need.
No other module lists rules or criteria by name.

Rules see the scores of the pool and return row numbers; they read no image and write no manifest. Only `oracle`, the
control with the known truth, looks at `PoolScores.relevant`. NumPy only; ties keep the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Value = TypeVar("Value")

PROXY_SHARE = 0.5
"""Share of the budget that the rule `disagreement` draws at random, and that its proxy learns from."""

N_CONFIDENCE_BANDS = 10
"""Strata a class of the rule `stratified`."""


@dataclass(frozen=True, eq=False)
class PoolScores:
    """What is known about the n > 0 images of the pool, in row order."""

    pu_score: NDArray[np.float32]
    """(n,) finite, the PU classifier's F, larger means more like the positives."""
    teacher_class: NDArray[np.integer[Any]]
    """(n,) the teacher's argmax."""
    teacher_confidence: NDArray[np.float32]
    """(n,) the teacher's largest softmax probability, in [0, 1]."""
    relevant: NDArray[np.bool_] | None = None
    """(n,) the truth, or None where it is unknown for any image."""

    def __post_init__(self) -> None:
        n = len(self.pu_score)
        if n == 0:
            raise ValueError("the pool holds no image: there is nothing to select from")
        for name in ("pu_score", "teacher_class", "teacher_confidence", "relevant"):
            values = getattr(self, name)
            if values is not None and values.shape != (n,):
                raise ValueError(
                    f"{name} must have one value for each of the {n} pool images, got shape {values.shape}"
                )
        for name in ("pu_score", "teacher_confidence"):
            n_bad = int((~np.isfinite(getattr(self, name))).sum())
            if n_bad:
                raise ValueError(
                    f"{name} of {n_bad} of the {n} pool images is not finite: the classifier diverged"
                )

    def __len__(self) -> int:
        return len(self.pu_score)


@dataclass(frozen=True, eq=False, kw_only=True)
class SelectionOptions:
    """What the rules may use; each rule reads what it needs and refuses when that is missing."""

    criterion: str = "sign"
    """A key of `CRITERIA`: where the rule `nnpu` cuts."""
    class_prior: float | None = None
    """Share of positives in the pool, in [0, 1]."""
    budget: int | None = None
    """Most images to keep, at least 1; a rule that finds fewer keeps what there is."""
    target_precision: float | None = None
    """Least estimated precision of the criterion `precision`, in (0, 1]."""
    held_out_ranks: NDArray[np.floating[Any]] | None = None
    """For each held-out positive the share of the unlabeled that score at least as high, in [0, 1]."""
    rng: np.random.Generator | None = None
    """Source of random draws."""
    disagreement_of: Callable[[Rows], NDArray[np.floating[Any]]] | None = None
    """Maps (m,) pool rows to the (n,) non-negative divergence, on every pool image, of the teacher from a student that
    was distilled on those rows (the proxy)."""

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ValueError(
                f"unknown criterion {self.criterion!r}, expected one of {sorted(CRITERIA)}"
            )
        if self.class_prior is not None and not 0.0 <= self.class_prior <= 1.0:
            raise ValueError(f"class_prior must lie in [0, 1], got {self.class_prior!r}")
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget must be at least 1, got {self.budget!r}")
        if self.target_precision is not None and not 0.0 < self.target_precision <= 1.0:
            raise ValueError(f"target_precision must lie in (0, 1], got {self.target_precision!r}")
        ranks = self.held_out_ranks
        if ranks is not None and (
            ranks.ndim != 1 or len(ranks) == 0 or not ((ranks >= 0) & (ranks <= 1)).all()
        ):
            raise ValueError(
                f"held_out_ranks must be a non-empty vector of shares in [0, 1], got shape {ranks.shape}"
            )


@dataclass(frozen=True, eq=False)
class Selection:
    """The kept images."""

    rows: Rows
    """(m,) int64 distinct pool rows, m > 0, in the rule's own order: best first where it ranks."""
    threshold: float | None
    """The score at which the rule cut (its own score: F, or the confidence), None for a rule without one."""
    estimated_precision: float | None
    """Estimated share of positives among the kept images, None where it cannot be told without the truth."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """Where a rule that uses criteria cuts the ranking: a function and the facts about it."""

    n_passing: Callable[[NDArray[np.float32], SelectionOptions], int]
    """(scores, best first) -> how many of them pass; the options hold what it needs."""
    needs_budget: bool
    """Whether the budget is the cut. With the other criteria a budget draws at random from what passes."""
    needs_held_out_ranks: bool
    """Whether it reads `SelectionOptions.held_out_ranks`."""
    strict_threshold: float | None
    """Scores above this constant pass; None: the lowest score that passes is the threshold."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A selection rule: its function and every fact about it that is read elsewhere.

    Raises:
        ValueError: the facts contradict each other.
    """

    select: Callable[[PoolScores, SelectionOptions], Selection]
    reads_pu_score: bool
    """Whether a PU classifier has to be trained for it."""
    ranked_by: Literal["pu_score", "teacher_confidence"] | None
    """The score whose ranking decides which images are kept; None: no score does."""
    has_threshold: bool
    """Whether everything it keeps lies on one side of a cut in `ranked_by`."""
    needs_budget: bool
    """Whether it refuses to select without a budget, whatever the criterion."""
    uses_criterion: bool = False
    """Whether `SelectionOptions.criterion` changes what it keeps."""
    uses_truth: bool = False
    """Whether it reads `PoolScores.relevant`, which users do not have."""
    note: str = ""
    """What the line of a summary that names the rule adds to its name."""

    def __post_init__(self) -> None:
        name = self.select.__name__
        if self.has_threshold and self.ranked_by is None:
            raise ValueError(f"rule {name!r} has a threshold: set `ranked_by` to the score it cuts")
        if self.ranked_by == "pu_score" and not self.reads_pu_score:
            raise ValueError(f"rule {name!r} ranks by the PU score: set `reads_pu_score` to True")


def nnpu(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep the images that the PU classifier ranks highest, down to where `options.criterion` cuts.

    `sign`: F > 0, as the paper. `quantile`: the top round(class_prior * n). `precision`: the largest top share whose
    estimated precision reaches the target. `budget`: the top `budget`. With the first three a `budget` draws that many
    at random from what passes (PU-s2 of the paper), so that the draw is as wide as the criterion.

    Raises:
        ValueError: nothing passes, or an option that the criterion needs is missing.
    """
    order = _best_first(pool.pu_score)
    scores = pool.pu_score[order]
    criterion = options.criterion
    record = CRITERIA[criterion]
    n_passing = record.n_passing(scores, options)
    precision = None
    if options.class_prior is not None and options.held_out_ranks is not None:
        precision = float(_estimated_precision(np.array([n_passing]), len(pool), options)[0])
    rows = order[:n_passing]
    if not record.needs_budget and options.budget is not None and options.budget < n_passing:
        rng = _needed(options.rng, "rng", f"rule 'nnpu' with criterion {criterion!r} and a budget")
        rows = rows[np.sort(rng.choice(n_passing, size=options.budget, replace=False))]
    threshold = record.strict_threshold
    if threshold is None:
        threshold = float(scores[n_passing - 1])
    return Selection(rows, threshold, precision)


def random(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep `budget` images at random, the control that selection has to beat; a larger budget extends a smaller one.

    Its precision is the class prior.

    Raises:
        ValueError: no budget or no rng.
    """
    budget = _needed(options.budget, "budget", "rule 'random'")
    order = _needed(options.rng, "rng", "rule 'random'").permutation(len(pool))
    return Selection(order[:budget].astype(np.int64), None, options.class_prior)


def oracle(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep the truly relevant images in row order, a random `budget` of them where one is given.

    Raises:
        ValueError: the truth is unknown, no image is relevant, or a budget comes without rng.
    """
    if pool.relevant is None:
        raise ValueError(
            "rule 'oracle' needs to know which pool images are relevant, and this pool does not say: "
            "give its sources labels with `labels: truth`, or choose another rule"
        )
    rows = np.flatnonzero(pool.relevant)
    if len(rows) == 0:
        raise ValueError(
            f"rule 'oracle' selects nothing: none of the {len(pool)} pool images is relevant; "
            "check the `label_map` of the pool's sources, or choose another rule"
        )
    if options.budget is not None and options.budget < len(rows):
        rng = _needed(options.rng, "rng", "rule 'oracle' with a budget")
        rows = np.sort(rng.choice(rows, size=options.budget, replace=False))
    return Selection(rows.astype(np.int64), None, 1.0)


def confident(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep the `budget` images of which the teacher is surest (DFND: Chen et al., CVPR 2021).

    Raises:
        ValueError: no budget.
    """
    rows = _best_first(pool.teacher_confidence)[
        : _needed(options.budget, "budget", "rule 'confident'")
    ]
    return Selection(rows, float(pool.teacher_confidence[rows[-1]]), None)


def stratified(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep `budget` images drawn evenly over strata of the teacher's class and confidence.

    There are `N_CONFIDENCE_BANDS` bands of equal width a class. Each stratum gives the same number of images, and one
    that has fewer gives all it has (coverage-centric selection: Zheng et al., ICLR 2023, arXiv:2210.15809, whose strata
    are those of the score alone). What the student sees then spans the teacher's answers, from sure to undecided, where
    the top of any score is narrow. A larger budget extends a smaller one.

    Raises:
        ValueError: no budget or no rng.
    """
    budget = _needed(options.budget, "budget", "rule 'stratified'")
    order = _needed(options.rng, "rng", "rule 'stratified'").permutation(len(pool))
    bands = np.minimum(
        (pool.teacher_confidence * N_CONFIDENCE_BANDS).astype(np.int64), N_CONFIDENCE_BANDS - 1
    )
    strata = (pool.teacher_class.astype(np.int64) * N_CONFIDENCE_BANDS + bands)[order]
    by_stratum = np.argsort(strata, kind="stable")
    starts = np.flatnonzero(np.diff(strata[by_stratum], prepend=-1))
    turns = np.empty(len(pool), dtype=np.int64)  # an image's turn among those of its stratum
    turns[by_stratum] = np.arange(len(pool)) - np.repeat(starts, np.diff(starts, append=len(pool)))
    return Selection(order[np.argsort(turns, kind="stable")][:budget].astype(np.int64), None, None)


def disagreement(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep `budget` images: half at random, half likely positives on which a student of the first half errs.

    The proxy, a student distilled on the first half, is asked about the whole pool. The second half is drawn without
    replacement from the PU classifier's top round(class_prior * n), each image with a probability in proportion to
    KL(teacher || proxy). So the first half keeps the pool's breadth, and the second spends the rest of the budget where
    it is related and not yet learned. Without a budget as many are kept as `quantile` would. Where the likely positives
    do not suffice, more random images follow.

    Raises:
        ValueError: no class prior, rng or proxy, or a divergence that is not finite.
    """
    who = "rule 'disagreement'"
    rng, disagreement_of = (
        _needed(options.rng, "rng", who),
        _needed(options.disagreement_of, "disagreement_of", who),
    )
    n_likely = quantile_criterion(pool.pu_score, options, who)
    budget = min(options.budget or n_likely, len(pool))
    order = rng.permutation(len(pool)).astype(np.int64)
    first, others = np.split(order, [max(1, round(PROXY_SHARE * budget))])
    divergence = np.asarray(disagreement_of(first), dtype=np.float64)
    if divergence.shape != (len(pool),) or not (np.isfinite(divergence) & (divergence >= 0)).all():
        raise ValueError(
            f"{who} needs a finite divergence for each of the {len(pool)} pool images: the proxy diverged"
        )
    is_open = np.zeros(len(pool), dtype=bool)
    is_open[_best_first(pool.pu_score)[:n_likely]] = True
    is_open[first] = False
    likely = np.flatnonzero(is_open)
    # the smallest of exponential variables of these rates: draws in proportion, without replacement
    turn = rng.exponential(size=len(likely)) / np.maximum(
        divergence[likely], np.finfo(np.float64).tiny
    )
    rows = np.concatenate(
        [first, likely[np.argsort(turn, kind="stable")], others[~is_open[others]]]
    )
    return Selection(rows[:budget], None, None)


def everything(pool: PoolScores, options: SelectionOptions) -> Selection:
    """The rule `all`: keep the whole pool in row order, whatever the budget. Its precision is the class prior."""
    return Selection(np.arange(len(pool), dtype=np.int64), None, options.class_prior)


def sign_criterion(scores: NDArray[np.float32], options: SelectionOptions) -> int:
    """Return how many scores are above zero.

    Raises:
        ValueError: none is.
    """
    n_passing = int((scores > 0).sum())
    if n_passing == 0:
        raise ValueError(
            f"rule 'nnpu' with criterion 'sign' selects nothing: the best PU score of the pool is {scores[0]:.4g}, "
            "none is above 0. Choose criterion 'quantile' or 'budget', or train the PU classifier with a larger prior"
        )
    return n_passing


def quantile_criterion(
    scores: NDArray[np.float32],
    options: SelectionOptions,
    who: str = "rule 'nnpu' with criterion 'quantile'",
) -> int:
    """Return round(class_prior * n).

    Raises:
        ValueError: no class prior, or it rounds to no image.
    """
    class_prior = _needed(options.class_prior, "class_prior", who)
    n_passing = round(class_prior * len(scores))
    if n_passing == 0:
        raise ValueError(
            f"{who} selects nothing: class_prior {class_prior:.4g} of {len(scores)} pool images rounds to none. "
            "Choose rule 'nnpu' with criterion 'budget', or give the class prior if the estimate is too low"
        )
    return n_passing


def precision_criterion(scores: NDArray[np.float32], options: SelectionOptions) -> int:
    """Return the largest number of top images whose estimated precision min(1, pi q_P(t) / t) reaches the target.

    t is their share of the pool and q_P(t) the share of held-out positives that rank within t. Images with the same
    score pass together or not at all.

    Raises:
        ValueError: class prior, target or ranks are missing, or no share reaches the target.
    """
    name = "rule 'nnpu' with criterion 'precision'"
    target = _needed(options.target_precision, "target_precision", name)
    _needed(options.class_prior, "class_prior", name)
    _needed(options.held_out_ranks, "held_out_ranks", name)
    counts = np.append(np.flatnonzero(np.diff(scores)) + 1, len(scores))
    precision = _estimated_precision(counts, len(scores), options)
    reaching = counts[precision >= target]
    if len(reaching) == 0:
        raise ValueError(
            f"{name} selects nothing: no top share of the pool reaches an estimated precision of {target:.4g}, the "
            f"best is {precision.max():.4g}. Lower target_precision, or choose criterion 'quantile' or 'budget'"
        )
    return int(reaching[-1])


def budget_criterion(scores: NDArray[np.float32], options: SelectionOptions) -> int:
    """Return the budget, or the size of the pool where that is smaller.

    Raises:
        ValueError: no budget.
    """
    return min(
        _needed(options.budget, "budget", "rule 'nnpu' with criterion 'budget'"), len(scores)
    )


CRITERIA: dict[str, Criterion] = {
    "sign": Criterion(
        n_passing=sign_criterion,
        needs_budget=False,
        needs_held_out_ranks=False,
        strict_threshold=0.0,
    ),
    "quantile": Criterion(
        n_passing=quantile_criterion,
        needs_budget=False,
        needs_held_out_ranks=False,
        strict_threshold=None,
    ),
    "precision": Criterion(
        n_passing=precision_criterion,
        needs_budget=False,
        needs_held_out_ranks=True,
        strict_threshold=None,
    ),
    "budget": Criterion(
        n_passing=budget_criterion,
        needs_budget=True,
        needs_held_out_ranks=False,
        strict_threshold=None,
    ),
}
RULES: dict[str, Rule] = {
    "nnpu": Rule(
        select=nnpu,
        reads_pu_score=True,
        ranked_by="pu_score",
        has_threshold=True,
        needs_budget=False,
        uses_criterion=True,
    ),
    "random": Rule(
        select=random,
        reads_pu_score=False,
        ranked_by=None,
        has_threshold=False,
        needs_budget=True,
    ),
    "oracle": Rule(
        select=oracle,
        reads_pu_score=False,
        ranked_by=None,
        has_threshold=False,
        needs_budget=False,
        uses_truth=True,
    ),
    "confident": Rule(
        select=confident,
        reads_pu_score=False,
        ranked_by="teacher_confidence",
        has_threshold=True,
        needs_budget=True,
    ),
    "stratified": Rule(
        select=stratified,
        reads_pu_score=False,
        ranked_by=None,
        has_threshold=False,
        needs_budget=True,
    ),
    "disagreement": Rule(
        select=disagreement,
        reads_pu_score=True,
        ranked_by="pu_score",
        has_threshold=False,
        needs_budget=False,
        note="half of them at random",
    ),
    "all": Rule(
        select=everything,
        reads_pu_score=False,
        ranked_by=None,
        has_threshold=False,
        needs_budget=False,
    ),
}


def needs_budget(rule: str, criterion: str) -> bool:
    """Return whether a rule cannot do without a budget, for checks before any work is done."""
    record = RULES[rule]
    return record.needs_budget or (record.uses_criterion and CRITERIA[criterion].needs_budget)


def _best_first(scores: NDArray[np.float32]) -> Rows:
    return np.argsort(-scores, kind="stable").astype(np.int64)


def _estimated_precision(
    counts: NDArray[np.integer[Any]], n_pool: int, options: SelectionOptions
) -> NDArray[np.float64]:
    """Return min(1, pi q_P(t) / t) for the top `counts` of the pool; class prior and ranks are given."""
    assert options.class_prior is not None
    assert options.held_out_ranks is not None
    ranks = np.sort(options.held_out_ranks)
    # Half an image of slack: a rank that was stored or computed with rounding still falls on its own image.
    q_positive = np.searchsorted(ranks, (counts + 0.5) / n_pool, side="right") / len(ranks)
    return np.minimum(1.0, options.class_prior * q_positive * n_pool / counts)


def _needed(value: Value | None, name: str, who: str) -> Value:
    if value is None:
        raise ValueError(f"{who} needs `{name}`, and it is not given")
    return value
