"""The estimate of the class prior with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pu_kd_pipeline.learning.class_prior.estimators import (
    Scores,
    best_bin_estimate,
    checked_scores,
    density_ratio_estimate,
    share_at_least,
)
from pu_kd_pipeline.learning.class_prior.methods import METHODS, ClassPriorMethod

N_HALF_SAMPLES = 20  # estimators that read features take seconds, not microseconds
LARGEST_FEATURE_SAMPLE = 1000


@dataclass(frozen=True)
class ClassPriorEstimate:
    """The estimated share of positives among the unlabeled, with its interval; all shares lie in [0, 1]."""

    value: float
    lower: float
    upper: float
    level: float
    """Nominal coverage of [lower, upper]."""
    method: str
    threshold: float | None
    """The score at which the estimate was read off, where one score decides."""
    n_positive: int
    n_unlabeled: int
    note: str | None
    """Why the interval is not to be trusted, where that is known."""


def pooled_ranks(
    folds: Sequence[tuple[Scores, Scores]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
        raise ValueError(
            "pooled_ranks needs the held-out positive scores of at least one fold, got none"
        )
    positive_ranks, unlabeled_ranks = [], []
    for number, (positive, unlabeled) in enumerate(folds):
        unlabeled = checked_scores(unlabeled, f"unlabeled scores of fold {number}")
        if len(positive):
            positive = checked_scores(positive, f"positive scores of fold {number}")
            positive_ranks.append(1.0 - share_at_least(positive, unlabeled))
        unlabeled_ranks.append(1.0 - share_at_least(unlabeled, unlabeled))
    return np.concatenate(positive_ranks), np.concatenate(unlabeled_ranks)


def estimate_class_prior(
    positive: Scores,
    unlabeled: Scores,
    *,
    method: str = "bbe",
    level: float = 0.9,
    n_bootstrap: int = 200,
    rng: np.random.Generator,
) -> ClassPriorEstimate:
    """Return the class prior with an interval.

    From scores, positives and unlabeled are resampled separately, n_bootstrap times, and both BBE and DEDPUL read each
    resample: the interval is the hull of their percentiles and of the value, whichever method gave it. BBE errs
    upward where negatives look positive and its own percentiles then miss the truth; where the two disagree, the
    scores do not say which is right. From features, half-samples take the place of resamples.

    Each tail is half of (1 - level) / 2, because training the classifier varies too and is not repeated here. Negatives
    that no reading can tell from positives remain uncovered: they bias every method upward.
    The value may be exactly 0 or 1; a PU risk needs it strictly between.

    Args:
        positive: the method's evidence: (n_P,) finite held-out scores or the ranks of `pooled_ranks`, or
            (n_P, F) finite features; n_P > 0.
        unlabeled: the same for the unlabeled.
        method: a key of METHODS.
        level: nominal coverage of the interval, in (0, 1).
        n_bootstrap: number of resamples, at least 1; of half-samples at most N_HALF_SAMPLES.
        rng: source of the resamples.

    Raises:
        ValueError: an unknown method, a level or n_bootstrap out of range, or unusable scores or features.
    """
    if method not in METHODS:
        raise ValueError(
            f"unknown method {method!r} for the class prior, expected one of {sorted(METHODS)}"
        )
    if not 0.0 < level < 1.0 or n_bootstrap < 1:
        raise ValueError(
            f"level must lie in (0, 1) and n_bootstrap be at least 1, got {level!r} and {n_bootstrap!r}"
        )
    estimator = METHODS[method]
    reads_features = not estimator.evidence.trains_classifier
    n_axes = 2 if reads_features else 1
    n_positive, n_unlabeled = len(positive), len(unlabeled)
    positive = checked_scores(
        positive, "positive_scores" if n_axes == 1 else "positive features", n_axes
    )
    unlabeled = checked_scores(
        unlabeled, "unlabeled_scores" if n_axes == 1 else "unlabeled features", n_axes
    )
    if reads_features:
        positive, unlabeled = (
            _some(part, LARGEST_FEATURE_SAMPLE, rng) for part in (positive, unlabeled)
        )
    value, threshold = estimator.estimate(positive, unlabeled)
    if reads_features:
        # half-samples vary about the whole as the whole varies about the truth (Shao and Wu 1989)
        values = [
            [
                estimator.estimate(
                    *(_some(part, -(-len(part) // 2), rng) for part in (positive, unlabeled))
                )[0]
            ]
            for _ in range(min(n_bootstrap, N_HALF_SAMPLES))
        ]
    else:
        values = [
            [reading(*resample)[0] for reading in (best_bin_estimate, density_ratio_estimate)]
            for resample in (
                (_resample(positive, rng), _resample(unlabeled, rng)) for _ in range(n_bootstrap)
            )
        ]
    tail = (1.0 - level) / 4.0  # half of what it would be if sampling were all that varies
    lower, upper = np.quantile(values, [tail, 1.0 - tail], axis=0)
    return ClassPriorEstimate(
        value=value,
        lower=min(float(lower.min()), value),
        upper=max(float(upper.max()), value),
        level=level,
        method=method,
        threshold=threshold,
        n_positive=n_positive,
        n_unlabeled=n_unlabeled,
        note=_note(estimator, n_positive, value),
    )


FEW_POSITIVES = 50
"""Below it the interval is reported as too narrow: see the table of `benchmarks/class_prior.py`."""


SMALL_CLASS_PRIOR = 0.1
"""An interval around a smaller estimate is reported as too narrow, by the same table."""


def _note(estimator: ClassPriorMethod, n_positive: int, value: float) -> str | None:
    if not estimator.evidence.trains_classifier:
        return (
            "the interval covers sampling alone; KM2 errs upward where negatives resemble positives"
        )
    if n_positive < FEW_POSITIVES:
        return f"with {n_positive} positives the interval is too narrow: label {FEW_POSITIVES} or more, or set the prior"
    if value < SMALL_CLASS_PRIOR:
        return "the interval is too narrow for so small a class prior: the truth is likely to lie below it"
    return None


def _resample(scores: Scores, rng: np.random.Generator) -> Scores:
    return scores[rng.integers(len(scores), size=len(scores))]


def _some(rows: Scores, n: int, rng: np.random.Generator) -> Scores:
    return rows[np.sort(rng.permutation(len(rows))[:n])]
