"""Where a ranking of the pool is cut: one record per criterion, chosen by its key in `CRITERIA`.

A criterion sees the scores, best first, and returns how many of them pass. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pu_kd_pipeline.learning.mixture import DEFAULT_TEMPERATURE
from pu_kd_pipeline.learning.retrieval import Neighbors

Rows = NDArray[np.int64]
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class MixtureOptions:
    """Options of the rule `mixture`."""

    score: str = "pu_score"
    """By which images are related: `pu_score` or `teacher_log_odds`."""
    temperature: float = DEFAULT_TEMPERATURE
    """Share of the pool in which the probability of a related draw falls by a factor of e, > 0."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SelectionOptions:
    """What rules and criteria may use; one that needs a missing option raises ValueError."""

    criterion: str = "sign"
    """A key of `CRITERIA`, for the rules that use a criterion."""
    class_prior: float | None = None
    """Share of positives in the pool, in [0, 1]."""
    budget: int | None = None
    """Most images to keep, at least 1; a rule that finds fewer keeps all it finds."""
    target_precision: float | None = None
    """Lowest estimated precision that the criterion `precision` accepts, in (0, 1]."""
    n_likely: int | None = None
    """Top images that the rule `disagreement` takes for positives, > 0; None: the class prior's
    share."""
    held_out_ranks: NDArray[np.floating[Any]] | None = None
    """For each held-out positive: share of the unlabeled that score at least as high, in [0, 1]."""
    rng: np.random.Generator | None = None
    """Source of random draws."""
    disagreement_of: Callable[[Rows], NDArray[np.floating[Any]]] | None = None
    """(m,) pool rows -> (n,) non-negative divergence of the teacher from the proxy, per pool image.

    The proxy is a student that was distilled on those rows.
    """
    mixture: MixtureOptions = MixtureOptions()
    neighbors: Callable[[int], Neighbors] | None = None
    """Number of images to retrieve -> the pool's neighbors of the labeled images, and clusters."""

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
        if ranks is not None and not _are_shares(ranks):
            raise ValueError(
                "held_out_ranks must be a non-empty vector of shares in [0, 1], "
                f"got shape {ranks.shape}"
            )


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """Where a ranking is cut: a function and the facts about it that are read elsewhere."""

    n_passing: Callable[[NDArray[np.float32], SelectionOptions], int]
    """(scores, best first) -> how many of them pass; the options hold what it needs."""
    needs_budget: bool
    """Whether the budget is the cut; with the others it draws at random from what passes."""
    needs_held_out_ranks: bool
    """Whether it reads `SelectionOptions.held_out_ranks`."""
    cuts_by: str
    """What decides how many images pass, for logs and reports."""
    reads_class_prior: bool
    """Whether it cuts wrongly where the class prior is wrong."""
    without_class_prior: str | None = None
    """The criterion that cuts in its place where the class prior is flagged and a budget is given;
    None: no other does what it does."""
    strict_threshold: float | None
    """Scores above this constant pass; None: the lowest score that passes is the threshold."""


def sign_criterion(scores: NDArray[np.float32], options: SelectionOptions) -> int:
    """Return how many scores are above zero.

    Raises:
        ValueError: no score is.
    """
    is_passing = scores > 0
    n_passing = int(is_passing.sum())
    if n_passing == 0:
        raise ValueError(
            "rule 'nnpu' with criterion 'sign' selects nothing: the best PU score of the pool is "
            f"{scores[0]:.4g}, none is above 0. Choose criterion 'quantile' or 'budget', "
            "or train the PU classifier with a larger prior"
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
    class_prior = required(options.class_prior, "class_prior", who)
    n_passing = round(class_prior * len(scores))
    if n_passing == 0:
        raise ValueError(
            f"{who} selects nothing: class_prior {class_prior:.4g} of {len(scores)} pool images "
            "rounds to none. Choose rule 'nnpu' with criterion 'budget', "
            "or give the class prior if the estimate is too low"
        )
    return n_passing


def precision_criterion(scores: NDArray[np.float32], options: SelectionOptions) -> int:
    """Return the largest number of top images whose estimated precision reaches the target.

    The estimate is min(1, pi q_P(t) / t): t is their share of the pool and q_P(t) the share of
    held-out positives that rank within t. Images with the same score pass together or not at all.

    Raises:
        ValueError: class prior, target or ranks are missing, or no share reaches the target.
    """
    who = "rule 'nnpu' with criterion 'precision'"
    target = required(options.target_precision, "target_precision", who)
    required(options.class_prior, "class_prior", who)
    required(options.held_out_ranks, "held_out_ranks", who)
    # A cut is possible only where the score changes: equal scores pass together.
    ends_of_ties = np.flatnonzero(np.diff(scores)) + 1
    counts = np.append(ends_of_ties, len(scores))
    precision = estimated_precision(counts, len(scores), options)
    is_reached = precision >= target
    if not is_reached.any():
        raise ValueError(
            f"{who} selects nothing: no top share of the pool reaches an estimated precision of "
            f"{target:.4g}, the best is {precision.max():.4g}. Lower target_precision, "
            "or choose criterion 'quantile' or 'budget'"
        )
    return int(counts[is_reached][-1])


def budget_criterion(scores: NDArray[np.float32], options: SelectionOptions) -> int:
    """Return the budget, or the size of the pool where that is smaller.

    Raises:
        ValueError: no budget.
    """
    budget = required(options.budget, "budget", "rule 'nnpu' with criterion 'budget'")
    return min(budget, len(scores))


CRITERIA: dict[str, Criterion] = {
    "sign": Criterion(
        n_passing=sign_criterion,
        needs_budget=False,
        needs_held_out_ranks=False,
        cuts_by="PU score above 0",
        reads_class_prior=False,
        strict_threshold=0.0,
    ),
    "quantile": Criterion(
        n_passing=quantile_criterion,
        needs_budget=False,
        needs_held_out_ranks=False,
        cuts_by="class prior",
        reads_class_prior=True,
        without_class_prior="budget",
        strict_threshold=None,
    ),
    "precision": Criterion(
        n_passing=precision_criterion,
        needs_budget=False,
        needs_held_out_ranks=True,
        cuts_by="estimated precision",
        reads_class_prior=True,
        strict_threshold=None,
    ),
    "budget": Criterion(
        n_passing=budget_criterion,
        needs_budget=True,
        needs_held_out_ranks=False,
        cuts_by="budget",
        reads_class_prior=False,
        strict_threshold=None,
    ),
}


def estimated_precision(
    counts: NDArray[np.integer[Any]], n_pool: int, options: SelectionOptions
) -> NDArray[np.float64]:
    """Return the estimated precision min(1, pi q_P(t) / t) of the top `counts` of a ranked pool.

    Args:
        counts: (m,) numbers of top images, each in 1..n_pool.
        n_pool: number of pool images.
        options: class prior and held-out ranks are given.
    """
    assert options.class_prior is not None
    assert options.held_out_ranks is not None
    ranks = np.sort(options.held_out_ranks)
    # Half an image of slack: a rank that was stored or computed with rounding still falls on its
    # own image.
    shares = (counts + 0.5) / n_pool
    n_within = np.searchsorted(ranks, shares, side="right")
    q_positive = n_within / len(ranks)
    # With few held-out positives, the estimate may exceed 1.
    precision = options.class_prior * q_positive * n_pool / counts
    return np.minimum(1.0, precision)


def required(value: Value | None, name: str, who: str) -> Value:
    """Return an option's value.

    Raises:
        ValueError: it is None.
    """
    if value is None:
        raise ValueError(f"{who} needs `{name}`, and it is not given")
    return value


def _are_shares(ranks: NDArray[np.floating[Any]]) -> bool:
    if ranks.ndim != 1 or len(ranks) == 0:
        return False
    # Written so that NaN, for which both are false, is refused.
    is_share = (ranks >= 0) & (ranks <= 1)
    return bool(is_share.all())
