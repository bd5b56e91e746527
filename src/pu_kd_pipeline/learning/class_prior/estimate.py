"""The estimate of the class prior with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pu_kd_pipeline.learning.class_prior.estimators import (
    Scores,
    best_bin_estimate,
    check_scores,
    density_ratio_estimate,
    share_at_least,
)
from pu_kd_pipeline.learning.class_prior.methods import METHODS, ClassPriorMethod

N_HALF_SAMPLES = 20  # estimators that read features take seconds, not microseconds
LARGEST_FEATURE_SAMPLE = 1000

FEW_POSITIVES = 50
"""Below it the interval is reported as too narrow: see the table of `benchmarks/class_prior.py`."""

SMALL_CLASS_PRIOR = 0.1
"""An interval around a smaller estimate is reported as too narrow, by the same table."""


@dataclass(frozen=True)
class ClassPriorEstimate:
    """The estimated share of positives among the unlabeled; all shares lie in [0, 1]."""

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
    """Why the interval is unreliable, where that is known."""


def pooled_ranks(
    folds: Sequence[tuple[Scores, Scores]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the held-out scores of all folds as ranks that can be compared across folds.

    Each fold has its own classifier, so equal scores of two folds mean different things (see
    docs/decisions/0004). What the folds share is the unlabeled population: a score becomes
    1 - (share of its fold's held-out unlabeled that score >= it), larger meaning more positive.
    Within one fold this changes nothing for an estimator that only uses the order.

    Ties take the full share, not the mid-rank: a threshold then keeps or drops tied samples
    together and never keeps more than its nominal share of any fold. `1 - rank` of a positive is
    the smallest top share of the pool that includes it, which the precision rule of `selection`
    needs.

    Args:
        folds: for each fold the (p,) scores of its held-out positives and the (u,) scores of its
            held-out unlabeled; u > 0, and p > 0 for at least one fold.

    Returns:
        The positive ranks in [0, 1] and the unlabeled ranks in [0, 1), fold after fold.

    Raises:
        ValueError: there is no fold, a fold has no unlabeled scores, no fold has positives, or a
            score is not finite.
    """
    if not any(len(positive) for positive, _ in folds):
        raise ValueError(
            "pooled_ranks needs the held-out positive scores of at least one fold, got none"
        )
    positive_ranks = []
    unlabeled_ranks = []
    for number, (positive, unlabeled) in enumerate(folds):
        unlabeled = check_scores(unlabeled, f"unlabeled scores of fold {number}")
        # With few positives a fold may hold none, and only counts for the unlabeled.
        if len(positive):
            positive = check_scores(positive, f"positive scores of fold {number}")
            ranks = 1.0 - share_at_least(positive, unlabeled)
            positive_ranks.append(ranks)
        ranks = 1.0 - share_at_least(unlabeled, unlabeled)
        unlabeled_ranks.append(ranks)
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

    From scores, positives and unlabeled are resampled separately, n_bootstrap times, and both BBE
    and DEDPUL read each resample: the interval is the hull of their percentiles and of the value,
    whichever method gave it. BBE errs upward where negatives look positive, and its own
    percentiles then miss the truth; a disagreement of the two shows how little the scores
    determine. From features, half-samples take the place of resamples.

    Each tail is half of (1 - level) / 2, because training the classifier varies too and is not
    repeated here. Negatives that no estimator can distinguish from positives remain uncovered: they
    bias every method upward. The value may be exactly 0 or 1; a PU risk needs it strictly between.

    Args:
        positive: the method's evidence: (n_P,) finite held-out scores or the ranks of
            `pooled_ranks`, or (n_P, F) finite features; n_P > 0.
        unlabeled: the same for the unlabeled.
        method: a key of METHODS.
        level: nominal coverage of the interval, in (0, 1).
        n_bootstrap: number of resamples, at least 1; of half-samples at most N_HALF_SAMPLES.
        rng: source of the resamples.

    Raises:
        ValueError: an unknown method, a level or n_bootstrap out of range, or unusable scores or
            features.
    """
    if method not in METHODS:
        raise ValueError(
            f"unknown method {method!r} for the class prior, expected one of {sorted(METHODS)}"
        )
    if not 0.0 < level < 1.0 or n_bootstrap < 1:
        raise ValueError(
            "level must lie in (0, 1) and n_bootstrap be at least 1, "
            f"got {level!r} and {n_bootstrap!r}"
        )
    estimator = METHODS[method]
    reads_scores = estimator.evidence.trains_classifier
    n_positive = len(positive)
    n_unlabeled = len(unlabeled)
    if reads_scores:
        positive = check_scores(positive, "positive_scores")
        unlabeled = check_scores(unlabeled, "unlabeled_scores")
        value, threshold = estimator.estimate(positive, unlabeled)
        values = _resampled_values(positive, unlabeled, n_bootstrap, rng)
    else:
        positive = check_scores(positive, "positive features", n_axes=2)
        unlabeled = check_scores(unlabeled, "unlabeled features", n_axes=2)
        positive = _subsample(positive, LARGEST_FEATURE_SAMPLE, rng)
        unlabeled = _subsample(unlabeled, LARGEST_FEATURE_SAMPLE, rng)
        value, threshold = estimator.estimate(positive, unlabeled)
        n_half_samples = min(n_bootstrap, N_HALF_SAMPLES)
        values = _half_sample_values(estimator, positive, unlabeled, n_half_samples, rng)

    tail = (1.0 - level) / 4.0  # half of what it would be if only sampling varied
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


def _resampled_values(
    positive: Scores, unlabeled: Scores, n_resamples: int, rng: np.random.Generator
) -> list[list[float]]:
    """Return, for each resample of the scores, the class priors by BBE and by DEDPUL."""
    values = []
    for _ in range(n_resamples):
        positive_resample = _resample(positive, rng)
        unlabeled_resample = _resample(unlabeled, rng)
        bbe, _ = best_bin_estimate(positive_resample, unlabeled_resample)
        dedpul, _ = density_ratio_estimate(positive_resample, unlabeled_resample)
        values.append([bbe, dedpul])
    return values


def _half_sample_values(
    estimator: ClassPriorMethod,
    positive: Scores,
    unlabeled: Scores,
    n_half_samples: int,
    rng: np.random.Generator,
) -> list[list[float]]:
    """Return the class prior of each half-sample of the features.

    Half-samples vary around the whole as the whole varies around the truth (Shao and Wu 1989).
    """
    n_positive = _half(len(positive))
    n_unlabeled = _half(len(unlabeled))
    values = []
    for _ in range(n_half_samples):
        positive_half = _subsample(positive, n_positive, rng)
        unlabeled_half = _subsample(unlabeled, n_unlabeled, rng)
        value, _ = estimator.estimate(positive_half, unlabeled_half)
        values.append([value])
    return values


def _note(estimator: ClassPriorMethod, n_positive: int, value: float) -> str | None:
    """Return why the interval is too narrow, or None."""
    if not estimator.evidence.trains_classifier:
        return (
            "the interval covers sampling alone; KM2 errs upward where negatives resemble positives"
        )
    if n_positive < FEW_POSITIVES:
        return (
            f"with {n_positive} positives the interval is too narrow: "
            f"label {FEW_POSITIVES} or more, or set the prior"
        )
    if value < SMALL_CLASS_PRIOR:
        return (
            "the interval is too narrow for so small a class prior: "
            "the truth is likely to lie below it"
        )
    return None


def _resample(scores: Scores, rng: np.random.Generator) -> Scores:
    """Return as many scores, drawn with replacement."""
    n = len(scores)
    drawn = rng.integers(n, size=n)
    return scores[drawn]


def _subsample(rows: Scores, n: int, rng: np.random.Generator) -> Scores:
    """Return at most n rows, drawn without replacement, in their order."""
    order = rng.permutation(len(rows))
    drawn = np.sort(order[:n])
    return rows[drawn]


def _half(n: int) -> int:
    """Return half of n, rounded up so that one sample remains one."""
    return (n + 1) // 2
