"""How certain a difference of two accuracies is that were measured on the same test images.

Only images on which exactly one of the two models is right say anything about the difference. They
are called discordant. A test that treats the two accuracies as independent throws this away, and
overlooks differences that are significant.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pu_kd_pipeline.learning.proportions import (
    LEVEL,
    Correct,
    count_discordant,
    mcnemar_p_value,
)

SIGNIFICANT = 1 - LEVEL  # p values below it
_UPPER_SHARE = (1 + LEVEL) / 2  # of a distribution below the upper bound


class PairedDifference(NamedTuple):
    """The accuracy of one model minus that of another, with a 95 % interval."""

    difference: float
    """In [-1, 1]."""
    lower: float
    upper: float
    p_value: float
    """Probability of such a difference or a larger one between models that are equally good."""

    @property
    def is_significant(self) -> bool:
        """Whether chance does not explain the difference; the interval then leaves out 0."""
        return self.p_value < SIGNIFICANT


def paired_difference(first: Correct, second: Correct) -> PairedDifference:
    """Return the difference of two accuracies on the same images, tested exactly.

    The interval is Wald's with the Laplace adjustment of Bonett and Price (2012), which holds its
    level for small samples, and without discordant images. It is widened to 0 where the exact test
    does not reject 0, so that test and interval never contradict each other.

    Args:
        first: (N,) whether the first model classifies an image correctly; N > 0.
        second: (N,) the same for the second model, of the same images in the same order.

    Raises:
        ValueError: the shapes differ, or N is 0.
    """
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(
            "expected two vectors of one length above 0, "
            f"got shapes {first.shape} and {second.shape}"
        )
    n = len(first)
    n_first_only, n_second_only = count_discordant(first, second)
    difference = (n_first_only - n_second_only) / n
    p_value = mcnemar_p_value(n_first_only, n_second_only)

    first_only = (n_first_only + 1) / (n + 2)
    second_only = (n_second_only + 1) / (n + 2)
    center = first_only - second_only
    variance = (first_only + second_only - center**2) / (n + 2)
    quantile = NormalDist().inv_cdf(_UPPER_SHARE)
    margin = quantile * math.sqrt(variance)
    interval = (center - margin, center + margin)
    return _consistent(difference, interval, p_value)


def paired_mean_difference(first: Correct, second: Correct) -> PairedDifference:
    """Return the difference of two mean accuracies over seeds, on the same images.

    Both sources of chance count: which images are in the test set, and the seeds of the trainings.
    The variance is the sum of that of the means over images and that of the means over seeds. This
    counts their interaction twice, so that the interval is rather too wide (as that of Owen's 2007
    bootstrap of rows and columns). Its degrees of freedom are Satterthwaite's (1946). The images
    have the same adjustment as in `paired_difference`: one more image that only the first method
    gets right and one that only the second does, because a few discordant images show little,
    however many seeds agree on them. With one seed it is `paired_difference`.

    Args:
        first: (S, N) whether the first method's student of a seed classifies an image correctly.
        second: (S, N) the same for the second method, of the same seeds and images.

    Raises:
        ValueError: the shapes differ, S or N is 0.
    """
    # imported late: it takes a second
    from scipy import stats

    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise ValueError(
            "expected two matrices of one shape without a side of 0, "
            f"got shapes {first.shape} and {second.shape}"
        )
    n_seeds = len(first)
    if n_seeds == 1:
        return paired_difference(first[0], second[0])
    differences = first.astype(float) - second.astype(float)
    difference = float(differences.mean())
    of_seeds = _squared_error(differences.mean(axis=1))
    adjusted = np.append(differences.mean(axis=0), [1.0, -1.0])
    of_images = _squared_error(adjusted)
    variance = of_seeds + of_images
    freedom = variance**2 / _per_freedom((of_seeds, n_seeds), (of_images, len(adjusted)))
    standard_error = math.sqrt(variance)
    center = float(adjusted.mean())
    t = abs(center) / standard_error
    p_value = 2 * float(stats.t.sf(t, freedom))
    quantile = float(stats.t.ppf(_UPPER_SHARE, freedom))
    margin = quantile * standard_error
    interval = (center - margin, center + margin)
    return _consistent(difference, interval, p_value)


def _squared_error(values: NDArray[np.float64]) -> float:
    """Return the squared standard error of the mean of values, at least two."""
    return float(values.var(ddof=1)) / len(values)


def _per_freedom(*parts: tuple[float, int]) -> float:
    """Return the sum of squared variances per degree of freedom, over (variance, sample size)."""
    total = 0.0
    for variance, size in parts:
        if variance:
            total += variance**2 / (size - 1)
    return total


def _consistent(
    difference: float, interval: tuple[float, float], p_value: float
) -> PairedDifference:
    lower, upper = interval
    if p_value >= SIGNIFICANT:
        lower = min(lower, 0.0)
        upper = max(upper, 0.0)
    # The adjustment moves the center towards 0, and the difference itself is always possible.
    lower = max(min(lower, difference), -1.0)
    upper = min(max(upper, difference), 1.0)
    return PairedDifference(difference, lower, upper, p_value)


class GapClosed(NamedTuple):
    """The share of the way from a control to a goal that a method gains, with a 95 % interval."""

    share: float
    """0: as good as the control; 1: as the goal. It may be negative, and above 1."""
    lower: float
    upper: float


def gap_closed(student: Correct, control: Correct, goal: Correct) -> GapClosed | None:
    """Return (student - control) / (goal - control) of mean accuracies on the same images.

    The interval is that of Fieller (1954): all shares r for which a test does not reject that
    (student - control) - r (goal - control) is 0 in the mean. Variances and covariance are sums of
    those over images and over seeds, and the degrees of freedom are Satterthwaite's, as in
    `paired_mean_difference`. A bootstrap of three seeds would be too narrow: it divides by the
    number of seeds where the variance of a sample divides by one less, and knows no t quantiles.

    Args:
        student: (S, N) whether the method's student of a seed classifies an image correctly.
        control: (S, N) the same for the control, of the same seeds and images.
        goal: (S, N) the same for the goal.

    Returns:
        None where the goal is not significantly better than the control: no share is excluded then.

    Raises:
        ValueError: the shapes differ, S or N is 0.
    """
    # imported late: it takes a second
    from scipy import stats

    if student.ndim != 2 or student.size == 0 or not student.shape == control.shape == goal.shape:
        raise ValueError(
            "expected three matrices of one shape without a side of 0, "
            f"got shapes {student.shape}, {control.shape} and {goal.shape}"
        )
    gains = student.astype(float) - control
    gaps = goal.astype(float) - control
    gain = float(gains.mean())
    gap = float(gaps.mean())
    if gap <= 0:
        return None
    of_seeds = _mean_covariance(gains.mean(axis=1), gaps.mean(axis=1))
    # Two more images for each of both differences, as in `paired_mean_difference`.
    of_images = _mean_covariance(
        np.append(gains.mean(axis=0), [1.0, -1.0, 0.0, 0.0]),
        np.append(gaps.mean(axis=0), [0.0, 0.0, 1.0, -1.0]),
    )
    covariance = of_seeds + of_images
    direction = np.array([1.0, -gain / gap])
    seeds_part = float(direction @ of_seeds @ direction)
    images_part = float(direction @ of_images @ direction)
    n_seeds, n_images = student.shape
    per_freedom = _per_freedom((seeds_part, n_seeds), (images_part, n_images + 4))
    freedom = (seeds_part + images_part) ** 2 / per_freedom
    squared_quantile = float(stats.t.ppf(_UPPER_SHARE, freedom)) ** 2

    # The bounds solve (gain - r gap)² = t² Var(gain - r gap), a quadratic equation in r.
    quadratic = gap**2 - squared_quantile * covariance[1, 1]
    linear = gain * gap - squared_quantile * covariance[0, 1]
    constant = gain**2 - squared_quantile * covariance[0, 0]
    if quadratic <= 0:
        return None
    # At r = gain / gap the left side is 0, so that there are two solutions around it.
    root = math.sqrt(max(linear**2 - quadratic * constant, 0.0))
    lower = (linear - root) / quadratic
    upper = (linear + root) / quadratic
    return GapClosed(gain / gap, float(lower), float(upper))


def _mean_covariance(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (2, 2) the covariance of the means of two series; 0 for series of one value."""
    if len(first) == 1:
        return np.zeros((2, 2))
    return np.cov(first, second) / len(first)
