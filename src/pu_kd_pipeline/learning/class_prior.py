"""How large is the share of positives in the unlabeled pool, and how sure can one be of it.

Holds estimators on the scores of a positive-versus-unlabeled classifier, the ranks that make cross-fitted scores
comparable, and the bootstrap interval. Leaves out training that classifier. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
Estimator = Callable[[Scores, Scores], tuple[float, float]]
"""(positive_scores, unlabeled_scores) -> (class prior in [0, 1], score threshold that gave it)."""

BBE_DELTA = 0.1  # Garg et al. 2021, sec. 6: one minus the confidence of the bound
BBE_GAMMA = 0.01  # Garg et al. 2021, sec. 6: slack on the bound


@dataclass(frozen=True)
class ClassPriorEstimate:
    """The estimated share of positives among the unlabeled, with its interval; all shares lie in [0, 1]."""

    value: float
    lower: float
    upper: float
    level: float
    """Nominal coverage of [lower, upper]."""
    method: str
    threshold: float
    """The score at which the estimate was read off."""
    n_positive: int
    n_unlabeled: int


def best_bin_estimate(
    positive_scores: Scores, unlabeled_scores: Scores, *, delta: float = BBE_DELTA, gamma: float = BBE_GAMMA
) -> tuple[float, float]:
    """Return the best bin estimate (BBE) of the class prior and the threshold of that bin.

    With q_S(c) the share of S that scores at least c (Garg et al. 2021, arXiv:2111.00980):

        c* = argmin_c  q_U(c)/q_P(c) + (1+gamma)/q_P(c) * (sqrt(ln(4/delta) / 2n_U) + sqrt(ln(4/delta) / 2n_P))
        class prior = q_U(c*) / q_P(c*)

    The second term grows as the bin empties and keeps the estimate away from bins of a few samples. The estimate is
    right when some top bin is nearly pure; negatives that look positive bias it upward. Only the order of the scores
    matters.

    Args:
        positive_scores: (n_P,) finite scores of positives the classifier was not trained on; n_P > 0.
        unlabeled_scores: (n_U,) finite scores of held-out unlabeled samples; n_U > 0.
        delta: one minus the confidence of the bound, in (0, 1).
        gamma: slack on the bound, >= 0.

    Returns:
        The class prior, clipped to [0, 1], and the threshold c*.

    Raises:
        ValueError: no scores on one side, a score that is not finite, or delta or gamma out of range.
    """
    if not 0.0 < delta < 1.0 or gamma < 0.0:
        raise ValueError(f"delta must lie in (0, 1) and gamma be at least 0, got delta={delta!r}, gamma={gamma!r}")
    positive_scores = _checked(positive_scores, "positive_scores")
    unlabeled_scores = _checked(unlabeled_scores, "unlabeled_scores")
    # The distinct positive scores are all thresholds worth trying: raising any other threshold to the next positive
    # score keeps q_P and cannot raise q_U. It also keeps q_P above zero.
    thresholds = np.unique(positive_scores)
    q_positive = share_at_least(thresholds, positive_scores)
    q_unlabeled = share_at_least(thresholds, unlabeled_scores)
    deviation = sum(
        np.sqrt(np.log(4.0 / delta) / (2.0 * len(scores))) for scores in (positive_scores, unlabeled_scores)
    )
    best = int(np.argmin((q_unlabeled + (1.0 + gamma) * deviation) / q_positive))
    return float(min(q_unlabeled[best] / q_positive[best], 1.0)), float(thresholds[best])


ESTIMATORS: dict[str, Estimator] = {"bbe": best_bin_estimate}


def share_at_least(scores: Scores, unlabeled_scores: Scores) -> NDArray[np.float64]:
    """Return, for each of (n,) `scores`, the share of (m,) `unlabeled_scores` that are >= it: (n,) in [0, 1]."""
    ordered = np.sort(unlabeled_scores)
    return (len(ordered) - np.searchsorted(ordered, scores, side="left")) / len(ordered)


def pooled_ranks(folds: Sequence[tuple[Scores, Scores]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the held-out scores of all folds as ranks that can be compared across folds.

    Each fold has its own classifier, so a score of 2 in one fold says nothing about a score of 2 in another. What they
    share is the unlabeled population: a score becomes 1 - (share of its fold's held-out unlabeled that score >= it),
    larger meaning more positive. Within one fold this changes nothing for an estimator that only uses the order.

    Ties take the full share, not the mid-rank: a threshold then keeps or drops tied samples together and never keeps
    more than its nominal share of any fold. `1 - rank` of a positive is the smallest top share of the pool that
    reaches it, which is what the precision rule of `selection` needs.

    Args:
        folds: for each fold the (p,) scores of its held-out positives and the (u,) scores of its held-out unlabeled;
            u > 0, and p > 0 for at least one fold.

    Returns:
        The positive ranks in [0, 1] and the unlabeled ranks in [0, 1), folds one after the other.

    Raises:
        ValueError: there is no fold, a fold has no unlabeled scores, no fold has positives, or a score is not finite.
    """
    if not any(len(positive) for positive, _ in folds):
        raise ValueError("pooled_ranks needs the held-out positive scores of at least one fold, got none")
    positive_ranks, unlabeled_ranks = [], []
    for number, (positive, unlabeled) in enumerate(folds):
        unlabeled = _checked(unlabeled, f"unlabeled scores of fold {number}")
        if len(positive):
            positive = _checked(positive, f"positive scores of fold {number}")
            positive_ranks.append(1.0 - share_at_least(positive, unlabeled))
        unlabeled_ranks.append(1.0 - share_at_least(unlabeled, unlabeled))
    return np.concatenate(positive_ranks), np.concatenate(unlabeled_ranks)


def estimate_class_prior(
    positive_scores: Scores,
    unlabeled_scores: Scores,
    *,
    method: str = "bbe",
    level: float = 0.9,
    n_bootstrap: int = 200,
    rng: np.random.Generator,
) -> ClassPriorEstimate:
    """Return the class prior with a bootstrap percentile interval.

    Positives and unlabeled are resampled separately, n_bootstrap times. The interval covers the sampling of the scores
    alone, neither the training of the classifier nor the upward bias of hard negatives; where the percentiles miss
    the estimate itself (a minimum is biased under resampling) the interval is widened to hold it. The value may be
    exactly 0 or 1; a PU risk needs it strictly between.

    Args:
        positive_scores: (n_P,) finite held-out scores, or the ranks of `pooled_ranks`; n_P > 0.
        unlabeled_scores: (n_U,) the same for the unlabeled; n_U > 0.
        method: a key of ESTIMATORS.
        level: nominal coverage of the interval, in (0, 1).
        n_bootstrap: number of resamples, at least 1.
        rng: source of the resamples.

    Raises:
        ValueError: an unknown method, a level or n_bootstrap out of range, or unusable scores.
    """
    if method not in ESTIMATORS:
        raise ValueError(f"unknown method {method!r} for the class prior, expected one of {sorted(ESTIMATORS)}")
    if not 0.0 < level < 1.0 or n_bootstrap < 1:
        raise ValueError(f"level must lie in (0, 1) and n_bootstrap be at least 1, got {level!r} and {n_bootstrap!r}")
    positive_scores = _checked(positive_scores, "positive_scores")
    unlabeled_scores = _checked(unlabeled_scores, "unlabeled_scores")
    estimator = ESTIMATORS[method]
    value, threshold = estimator(positive_scores, unlabeled_scores)
    resampled = [
        estimator(_resample(positive_scores, rng), _resample(unlabeled_scores, rng))[0] for _ in range(n_bootstrap)
    ]
    lower, upper = np.quantile(resampled, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return ClassPriorEstimate(
        value=value,
        lower=min(float(lower), value),
        upper=max(float(upper), value),
        level=level,
        method=method,
        threshold=threshold,
        n_positive=len(positive_scores),
        n_unlabeled=len(unlabeled_scores),
    )


def _resample(scores: Scores, rng: np.random.Generator) -> Scores:
    return scores[rng.integers(len(scores), size=len(scores))]


def _checked(scores: Scores, name: str) -> Scores:
    scores = np.asarray(scores)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"{name} must be a non-empty vector, got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(scores)).sum())} values that are not finite")
    return scores
