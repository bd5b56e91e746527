"""Which pool images to keep: one record per rule, chosen by its key in `RULES`.

A record holds the function of the rule and every fact about it that parameters, comparisons,
figures and summaries need: no other module lists rules by name. Rules see the scores of the pool
and return row numbers; they read no image and write no manifest. Only `oracle`, the control with
the known truth, looks at `PoolScores.relevant`. NumPy only. Equal scores are ordered by
`PoolScores.tie_break`, never by the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pu_kd_pipeline.learning.mixture import related_probabilities
from pu_kd_pipeline.learning.ranking import (
    best_first,
    n_tied_at_cut,
    places_within_groups,
    random_order,
)
from pu_kd_pipeline.learning.selection_criteria import (
    CRITERIA,
    Rows,
    SelectionOptions,
    estimated_precision,
    quantile_criterion,
    required,
)

PROXY_SHARE = 0.5
"""Share of the budget that the rule `disagreement` draws at random for its proxy to learn from."""

MIXTURE_RANDOM_SHARE = 0.5
"""Share of a budget that the rule `mixture` draws at random, for the broad part of its batches."""

RETRIEVED_SHARE = 0.5
"""Share of the budget that the rule `retrieved` retrieves; the rest is drawn per cluster."""

RANDOM = "random"
RELATED = "related"

N_CONFIDENCE_BANDS = 10
"""Strata per class of the rule `stratified`."""


@dataclass(frozen=True, eq=False)
class PoolScores:
    """What is known about the n > 0 images of the pool, in row order.

    Raises:
        ValueError: the pool is empty, a length differs, or a score is not finite.
    """

    pu_score: NDArray[np.float32] | None
    """(n,) finite, the PU classifier's F, larger means more like the positives; None: untrained."""
    teacher_class: NDArray[np.integer[Any]]
    """(n,) the teacher's argmax."""
    teacher_confidence: NDArray[np.float32]
    """(n,) the teacher's largest softmax probability p, in [0, 1]."""
    teacher_log_odds: NDArray[np.float64] | None
    """(n,) finite, log p - log(1 - p), which still differs where p is rounded to 1; None: unknown.
    """
    tie_break: NDArray[np.uint64]
    """(n,) order of images with equal scores: of the image and a seed, not of its row."""
    relevant: NDArray[np.bool_] | None = None
    """(n,) the truth, or None where it is unknown for any image."""

    def __post_init__(self) -> None:
        n = len(self.teacher_class)
        if n == 0:
            raise ValueError("the pool holds no image: there is nothing to select from")
        for field in fields(self):
            values = getattr(self, field.name)
            # The truth may be unknown, and a classifier untrained.
            if values is None:
                continue
            if values.shape != (n,):
                raise ValueError(
                    f"{field.name} must have one value for each of the {n} pool images, "
                    f"got shape {values.shape}"
                )
            is_finite = np.isfinite(values)
            n_bad = n - int(is_finite.sum())
            if n_bad:
                raise ValueError(
                    f"{field.name} of {n_bad} of the {n} pool images is not finite: "
                    "the classifier diverged"
                )

    def __len__(self) -> int:
        return len(self.teacher_class)


@dataclass(frozen=True, eq=False)
class Selection:
    """The kept images."""

    rows: Rows
    """(m,) int64 distinct pool rows, m > 0, in the rule's own order: best first where it ranks."""
    threshold: float | None
    """The score at which the rule cut (F, or log odds); None for a rule without a cut."""
    estimated_precision: float | None
    """Estimated share of positives among the kept images; None where only the truth gives it."""
    n_tied_at_cut: int = 0
    """How many images have the score at which a ranking was cut, if the cut separates them."""
    reasons: NDArray[np.str_] | None = None
    """(m,) why each image is kept, such as "random"; None: for the rule's only reason."""
    related_probability: NDArray[np.float64] | None = None
    """(m,) summing to one, how the related part of a batch is drawn; None: no such part."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A selection rule: its function and every fact about it that is read elsewhere.

    Raises:
        ValueError: the facts contradict each other.
    """

    select: Callable[[PoolScores, SelectionOptions], Selection]
    reason: str
    """Why an image is kept, where the selection does not say so image by image."""
    reads_pu_score: bool
    """Whether a PU classifier has to be trained for it."""
    ranked_by: Literal["pu_score", "teacher_log_odds"] | None
    """The score whose highest values are kept; None: no score decides, or low values are kept."""
    has_threshold: bool
    """Whether everything it keeps lies on one side of a cut in `ranked_by`."""
    needs_budget: bool
    """Whether it refuses to select without a budget, whatever the criterion. Where the user gives
    none, `selection_size` does."""
    cuts_by: str = "whole pool"
    """What decides the number of images where neither a budget nor a criterion does."""
    uses_criterion: bool = False
    """Whether `SelectionOptions.criterion` changes what it keeps."""
    uses_truth: bool = False
    """Whether it reads `PoolScores.relevant`, which users do not have."""
    note: str = ""
    """Added to the rule's name in the summary of a run."""
    random_share: float = 0.0
    """Share of the images that it draws at random on purpose; a random control draws the same."""
    options: str | None = None
    """Name of the option block that it reads: a key of `subset_materialization`."""
    draws_unevenly: bool = False
    """Whether some kept images are shown more often than others, so that the whole pool is a
    selection, too."""

    def __post_init__(self) -> None:
        name = self.select.__name__
        if self.has_threshold and self.ranked_by is None:
            raise ValueError(f"rule {name!r} has a threshold: set `ranked_by` to the score it cuts")
        if self.ranked_by == "pu_score" and not self.reads_pu_score:
            raise ValueError(f"rule {name!r} ranks by the PU score: set `reads_pu_score` to True")


def nnpu(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep the images that the PU classifier ranks highest, down to where `options.criterion` cuts.

    `sign`: F > 0, as in the paper. `quantile`: the top round(class_prior * n). `precision`: the
    largest top share whose estimated precision reaches the target. `budget`: the top `budget`. With
    the first three a `budget` draws that many at random from what passes (PU-s2 of the paper), so
    that the draw is as wide as the criterion.

    Raises:
        ValueError: nothing passes, or an option that the criterion needs is missing.
    """
    pu_score = required(pool.pu_score, "pu_score", "rule 'nnpu'")
    order = best_first(pu_score, pool.tie_break)
    scores = pu_score[order]
    criterion = CRITERIA[options.criterion]
    n_passing = criterion.n_passing(scores, options)
    precision = None
    can_estimate = options.class_prior is not None and options.held_out_ranks is not None
    if can_estimate:
        counts = np.array([n_passing])
        precisions = estimated_precision(counts, len(pool), options)
        precision = float(precisions[0])
    # Where the criterion cuts, which is not the lowest score of a random draw from what passes.
    threshold = criterion.strict_threshold
    if threshold is None:
        lowest_passing = scores[n_passing - 1]
        threshold = float(lowest_passing)
    rows = order[:n_passing]
    budget = options.budget
    if criterion.needs_budget:
        budget = None  # the criterion has cut there already
    if budget is not None and budget < n_passing:
        who = f"rule 'nnpu' with criterion {options.criterion!r} and a budget"
        rng = required(options.rng, "rng", who)
        drawn = rng.choice(n_passing, size=budget, replace=False)
        rows = rows[np.sort(drawn)]  # sorted: best first, as without a budget
    n_tied = n_tied_at_cut(scores, n_passing)
    return Selection(rows, threshold, precision, n_tied)


def random(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep `budget` images at random, the control that selection has to beat.

    A larger budget extends a smaller one. The precision is the class prior.

    Raises:
        ValueError: no budget or no rng.
    """
    budget = required(options.budget, "budget", "rule 'random'")
    rng = required(options.rng, "rng", "rule 'random'")
    # Always the whole permutation: its start does not depend on the budget.
    order = random_order(len(pool), rng)
    rows = order[:budget]
    return Selection(rows, None, options.class_prior)


def oracle(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep the truly relevant images in row order, a random `budget` of them where one is given.

    Raises:
        ValueError: the truth is unknown, no image is relevant, or a budget comes without rng.
    """
    if pool.relevant is None:
        raise ValueError(
            "rule 'oracle' needs to know which pool images are relevant, and this pool does not "
            "say: give its sources labels with `labels: truth`, or choose another rule"
        )
    rows = np.flatnonzero(pool.relevant)
    n_relevant = len(rows)
    if n_relevant == 0:
        raise ValueError(
            f"rule 'oracle' selects nothing: none of the {len(pool)} pool images is relevant; "
            "check the `label_map` of the pool's sources, or choose another rule"
        )
    budget = options.budget
    if budget is not None and budget < n_relevant:
        rng = required(options.rng, "rng", "rule 'oracle' with a budget")
        drawn = rng.choice(rows, size=budget, replace=False)
        rows = np.sort(drawn)
    # By the truth, the precision is known: every image is relevant.
    return Selection(rows.astype(np.int64), None, 1.0)


def confident(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep the `budget` images of which the teacher is surest (DFND: Chen et al., CVPR 2021).

    By the log odds of its class, which order the images as its probability does. That one is
    exactly 1 in float32 for thousands of images.

    Raises:
        ValueError: no budget.
    """
    budget = required(options.budget, "budget", "rule 'confident'")
    log_odds = required(pool.teacher_log_odds, "teacher_log_odds", "rule 'confident'")
    order = best_first(log_odds, pool.tie_break)
    rows = order[:budget]
    last = rows[-1]
    threshold = float(log_odds[last])
    n_tied = n_tied_at_cut(log_odds[order], len(rows))
    return Selection(rows, threshold, None, n_tied)


def stratified(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep `budget` images drawn evenly over strata of the teacher's class and confidence.

    Each class has `N_CONFIDENCE_BANDS` bands of equal width in the probability: one that is
    rounded to 1 is in the highest band, where it belongs. Each stratum gives the same number of
    images, and one that has fewer gives all it has (coverage-centric selection: Zheng et al., ICLR
    2023, arXiv:2210.15809, whose strata are those of the score alone). A larger budget extends a
    smaller one.

    Raises:
        ValueError: no budget or no rng.
    """
    budget = required(options.budget, "budget", "rule 'stratified'")
    rng = required(options.rng, "rng", "rule 'stratified'")
    order = random_order(len(pool), rng)
    position = pool.teacher_confidence * N_CONFIDENCE_BANDS
    bands = position.astype(np.int64)
    bands = np.minimum(bands, N_CONFIDENCE_BANDS - 1)  # a confidence of 1 is in the highest band
    classes = pool.teacher_class.astype(np.int64)
    strata = classes * N_CONFIDENCE_BANDS + bands
    # Sorted by their place within the stratum, the first `budget` images visit the strata in turn.
    places = places_within_groups(strata[order])
    by_place = np.argsort(places, kind="stable")
    rows = order[by_place]
    return Selection(rows[:budget], None, None)


def disagreement(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep `budget` images: half at random, half likely positives that a proxy gets wrong.

    The proxy, a student distilled on the first half, answers for the whole pool. The second half is
    drawn without replacement from the PU classifier's top round(class_prior * n), each image with a
    probability in proportion to KL(teacher || proxy). `SelectionOptions.n_likely` replaces their
    number. Where the likely positives do not suffice, more random images follow.

    Raises:
        ValueError: no budget, class prior, rng or proxy, or a divergence that is not finite.
    """
    who = "rule 'disagreement'"
    budget = required(options.budget, "budget", who)
    rng = required(options.rng, "rng", who)
    disagreement_of = required(options.disagreement_of, "disagreement_of", who)
    n_pool = len(pool)
    pu_score = required(pool.pu_score, "pu_score", who)
    n_likely = options.n_likely or quantile_criterion(pu_score, options, who)
    n_likely = min(n_likely, n_pool)
    budget = min(budget, n_pool)
    order = random_order(len(pool), rng)
    n_first = max(1, round(PROXY_SHARE * budget))
    first = order[:n_first]
    others = order[n_first:]
    divergence = np.asarray(disagreement_of(first), dtype=np.float64)
    is_valid = np.isfinite(divergence) & (divergence >= 0)
    if divergence.shape != (n_pool,) or not is_valid.all():
        raise ValueError(
            f"{who} needs a finite divergence for each of the {n_pool} pool images: "
            "the proxy diverged"
        )
    ranking = best_first(pu_score, pool.tie_break)
    top = ranking[:n_likely]
    n_tied = n_tied_at_cut(pu_score[ranking], n_likely)
    is_likely = np.zeros(n_pool, dtype=bool)
    is_likely[top] = True
    is_likely[first] = False  # the student has these already
    likely = np.flatnonzero(is_likely)
    second = _in_proportion(likely, divergence[likely], rng)
    # More random images, for where the likely positives do not suffice.
    is_other_likely = is_likely[others]
    unlikely = others[~is_other_likely]
    rows = np.concatenate([first, second, unlikely])
    reasons = np.repeat([RANDOM, "disagreement", RANDOM], [len(first), len(second), len(unlikely)])
    return Selection(rows[:budget], None, None, n_tied, reasons[:budget])


def mixture(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep the whole pool, with the probability of each image in the related part of a batch.

    See `mixture.related_probabilities`; no threshold decides anything. The images come best first.
    An image is "related" where related draws show it more often than uniform ones do, else
    "random".

    A budget keeps that many images: half at random, the same ones as `random`, and half drawn from
    the others without replacement, with these probabilities. Uniform draws are then those of the
    kept images, and the probabilities are those of the kept images, summing to one.

    Raises:
        ValueError: the score that it ranks by is missing, or a budget comes without rng.
    """
    who = "rule 'mixture'"
    score_name = options.mixture.score
    scores = required(getattr(pool, score_name), score_name, who)
    probabilities = related_probabilities(
        scores,
        pool.teacher_class,
        pool.tie_break,
        temperature=options.mixture.temperature,
    )
    n_pool = len(pool)
    rows = best_first(scores, pool.tie_break)
    budget = options.budget
    if budget is not None and budget < n_pool:
        rng = required(options.rng, "rng", f"{who} with a budget")
        order = random_order(n_pool, rng)
        n_first = max(1, round(MIXTURE_RANDOM_SHARE * budget))
        first = order[:n_first]
        others = order[n_first:]
        drawn = _in_proportion(others, probabilities[others], rng)
        rows = np.concatenate([first, drawn])[:budget]
    kept = probabilities[rows]
    total = kept.sum()
    even = 1.0 / len(rows)
    # Where only the worst images of a small pool are kept, their probabilities may round to zero.
    kept = np.full(len(rows), even) if total == 0 else kept / total
    reasons = np.where(kept > even, RELATED, RANDOM)
    return Selection(rows, None, None, reasons=reasons, related_probability=kept)


def retrieved(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep `budget` images: half retrieved for the labeled images, half spread over clusters.

    The labeled images take turns; each takes the nearest pool image that is not taken yet and is
    no copy of one of its own (`retrieval.Neighbors.in_turn`). The other half are equal draws from
    each cluster of the pool; a cluster that has fewer gives all it has. Where the neighbors do not
    suffice, more are drawn from the clusters. Class-balanced by the labeled images, and needs
    neither PU classifier nor class prior (balanced retrieval, with clusters in the space of the
    teacher: PCoreSet 2025). Our proposal.

    Raises:
        ValueError: no budget, rng or neighbors.
    """
    who = "rule 'retrieved'"
    budget = required(options.budget, "budget", who)
    rng = required(options.rng, "rng", who)
    neighbors_of = required(options.neighbors, "neighbors", who)
    n_pool = len(pool)
    budget = min(budget, n_pool)
    n_first = max(1, round(RETRIEVED_SHARE * budget))
    neighbors = neighbors_of(n_first)
    first, found_for = neighbors.in_turn(n_first)
    is_taken = np.zeros(n_pool, dtype=bool)
    is_taken[first] = True
    order = random_order(n_pool, rng)
    others = order[~is_taken[order]]
    # Sorted by their place within the cluster, the first images visit the clusters in turn.
    places = places_within_groups(neighbors.clusters[others])
    second = others[np.argsort(places, kind="stable")][: budget - len(first)]
    for_each = [f"retrieved for {name}" for name in neighbors.names[found_for]]
    reasons = np.array([*for_each, *["cluster"] * len(second)])
    return Selection(np.concatenate([first, second]), None, None, reasons=reasons)


def rolling(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep the whole pool, or `budget` random images of it: the student chooses while it trains.

    Distillation measures several times on which of a fresh random sample the student disagrees
    with the teacher, and draws these more often until it measures again
    (`training.rolling.RollingDraws`).

    Raises:
        ValueError: a budget comes without rng.
    """
    rows = np.arange(len(pool), dtype=np.int64)
    if options.budget is not None and options.budget < len(pool):
        rng = required(options.rng, "rng", "rule 'rolling' with a budget")
        rows = random_order(len(pool), rng)[: options.budget]
    return Selection(rows, None, options.class_prior)


def _in_proportion(
    rows: Rows, weights: NDArray[np.floating[Any]], rng: np.random.Generator
) -> Rows:
    """Return the rows in the order of draws in proportion to their weights, without replacement.

    Args:
        rows: (m,) rows.
        weights: (m,) non-negative.
        rng: fixes the draws.
    """
    # Sorting exponential variables of these rates draws in proportion, without replacement. A rate
    # of zero has no logarithm; the smallest positive number puts that image last. Logarithms,
    # because the times of such images would all be infinite, and tie.
    smallest_rate = np.finfo(np.float64).tiny
    rates = np.maximum(weights, smallest_rate)
    unit_times = rng.exponential(size=len(rows))
    log_arrival_times = np.log(unit_times) - np.log(rates)
    # The first arrivals are the draw.
    by_arrival = np.argsort(log_arrival_times, kind="stable")
    return rows[by_arrival]


def everything(pool: PoolScores, options: SelectionOptions) -> Selection:
    """Keep the whole pool in row order, whatever the budget: the rule `all`.

    The precision is the class prior.
    """
    rows = np.arange(len(pool), dtype=np.int64)
    return Selection(rows, None, options.class_prior)


RULES: dict[str, Rule] = {
    "nnpu": Rule(
        select=nnpu,
        reason=RELATED,
        reads_pu_score=True,
        ranked_by="pu_score",
        has_threshold=True,
        needs_budget=False,
        uses_criterion=True,
    ),
    "random": Rule(
        select=random,
        reason=RANDOM,
        reads_pu_score=False,
        ranked_by=None,
        has_threshold=False,
        needs_budget=True,
    ),
    "oracle": Rule(
        select=oracle,
        reason="relevant",
        reads_pu_score=False,
        ranked_by=None,
        has_threshold=False,
        needs_budget=False,
        cuts_by="truth",
        uses_truth=True,
    ),
    "confident": Rule(
        select=confident,
        reason="confident",
        reads_pu_score=False,
        ranked_by="teacher_log_odds",
        has_threshold=True,
        needs_budget=True,
    ),
    "stratified": Rule(
        select=stratified,
        reason="stratum",
        reads_pu_score=False,
        ranked_by=None,
        has_threshold=False,
        needs_budget=True,
    ),
    "disagreement": Rule(
        select=disagreement,
        reason="disagreement",
        reads_pu_score=True,
        ranked_by="pu_score",
        has_threshold=False,
        needs_budget=True,
        note="half of them at random",
        random_share=0.5,
    ),
    "mixture": Rule(
        select=mixture,
        reason=RELATED,
        reads_pu_score=True,
        ranked_by="pu_score",
        has_threshold=False,
        needs_budget=False,
        note="drawn by relatedness",
        random_share=MIXTURE_RANDOM_SHARE,
        options="mixture",
        draws_unevenly=True,
    ),
    "retrieved": Rule(
        select=retrieved,
        reason="retrieved",
        reads_pu_score=False,
        ranked_by=None,
        has_threshold=False,
        needs_budget=True,
        note="half of them spread over clusters",
        options="retrieved",
    ),
    "rolling": Rule(
        select=rolling,
        reason="candidate of rolling disagreement",
        reads_pu_score=False,
        ranked_by=None,
        has_threshold=False,
        needs_budget=False,
        note="drawn by disagreement",
        random_share=1.0,
        options="rolling",
        draws_unevenly=True,
    ),
    "all": Rule(
        select=everything,
        reason="whole pool",
        reads_pu_score=False,
        ranked_by=None,
        has_threshold=False,
        needs_budget=False,
    ),
}


def needs_budget(rule: str, criterion: str) -> bool:
    """Return whether a rule cannot do without a budget, for checks before any work is done."""
    record = RULES[rule]
    if record.needs_budget:
        return True
    if not record.uses_criterion:
        return False
    return CRITERIA[criterion].needs_budget
