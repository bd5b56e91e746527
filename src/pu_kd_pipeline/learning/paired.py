"""How certain a difference of two accuracies is that were measured on the same test images.

Only images on which exactly one of the two models is right say anything about the difference. They
are called discordant. A test that treats the two accuracies as independent throws this away, and
overlooks differences that are significant.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Correct = NDArray[np.bool_]

LEVEL = 0.95  # of every interval
SIGNIFICANT = 1 - LEVEL  # p values below it

_STEPS = 4000  # of the integration of Student's t density


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


def mcnemar_p_value(n_first_only: int, n_second_only: int) -> float:
    """Return the two-sided p value of McNemar's exact test (McNemar 1947).

    Between equally good models, each discordant image favors either with probability 1/2.

    Args:
        n_first_only: images that only the first model classifies correctly.
        n_second_only: images that only the second model classifies correctly.

    Returns:
        In (0, 1]; 1 without discordant images.

    Raises:
        ValueError: a count is negative.
    """
    if n_first_only < 0 or n_second_only < 0:
        raise ValueError(f"counts must not be negative, got {n_first_only} and {n_second_only}")
    n = n_first_only + n_second_only
    fewer = min(n_first_only, n_second_only)
    # Integers, so that the sum is exact for any number of images.
    ways = 1
    n_ways = 1
    for k in range(1, fewer + 1):
        ways = ways * (n - k + 1) // k
        n_ways += ways
    p_value = 2 * n_ways / 2**n
    # Where both counts are equal, both tails hold the middle.
    return min(p_value, 1.0)


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
    n_first_only = int((first & ~second).sum())
    n_second_only = int((second & ~first).sum())
    difference = (n_first_only - n_second_only) / n
    p_value = mcnemar_p_value(n_first_only, n_second_only)

    first_only = (n_first_only + 1) / (n + 2)
    second_only = (n_second_only + 1) / (n + 2)
    center = first_only - second_only
    variance = (first_only + second_only - center**2) / (n + 2)
    margin = NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt(variance)
    interval = (center - margin, center + margin)
    return _consistent(difference, interval, p_value)


def paired_mean_difference(first: Correct, second: Correct) -> PairedDifference:
    """Return the difference of two mean accuracies over seeds, on the same images.

    Both sources of chance count: which images are in the test set, and the seeds of the trainings.
    The variance is the sum of that of the means over images and that of the means over seeds. This
    counts their interaction twice, so that the interval is rather too wide (as that of Owen's 2007
    bootstrap of rows and columns). Its degrees of freedom are Satterthwaite's (1946). With one
    seed it is `paired_difference`.

    Args:
        first: (S, N) whether the first method's student of a seed classifies an image correctly.
        second: (S, N) the same for the second method, of the same seeds and images.

    Raises:
        ValueError: the shapes differ, S or N is 0.
    """
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise ValueError(
            "expected two matrices of one shape without a side of 0, "
            f"got shapes {first.shape} and {second.shape}"
        )
    n_seeds, n_images = first.shape
    if n_seeds == 1:
        return paired_difference(first[0], second[0])
    differences = first.astype(float) - second.astype(float)
    difference = float(differences.mean())
    of_seeds = _squared_error(differences.mean(axis=1))
    of_images = _squared_error(differences.mean(axis=0))
    variance = of_seeds + of_images
    if variance == 0:
        # Every seed and image has the same difference. Nothing shows how it varies, and the exact
        # test of one seed is the most that can be said.
        return paired_difference(first[0], second[0])
    freedom = variance**2 / _per_freedom((of_seeds, n_seeds), (of_images, n_images))
    margin = t_quantile((1 + LEVEL) / 2, freedom) * math.sqrt(variance)
    p_value = 2 * t_tail(abs(difference) / math.sqrt(variance), freedom)
    interval = (difference - margin, difference + margin)
    return _consistent(difference, interval, min(p_value, 1.0))


def _squared_error(values: NDArray[np.float64]) -> float:
    """Return the squared standard error of the mean of values; 0 for a single one."""
    if len(values) < 2:
        return 0.0
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


def t_tail(t: float, freedom: float) -> float:
    """Return the probability that Student's t exceeds a value.

    Args:
        t: at least 0.
        freedom: degrees of freedom, at least 1; need not be an integer.
    """
    # With t = sqrt(freedom) tan(angle), the density becomes a power of the cosine, which is smooth
    # and has a finite range.
    start = math.atan(t / math.sqrt(freedom))
    angles = np.linspace(start, math.pi / 2, _STEPS + 1)
    density = np.cos(angles) ** (freedom - 1)
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    scale = math.exp(log_scale) / math.sqrt(math.pi)
    return scale * _simpson(density, angles[1] - angles[0])


def t_quantile(share: float, freedom: float) -> float:
    """Return the value that Student's t stays below with a probability.

    Args:
        share: the probability, in [0.5, 1).
        freedom: degrees of freedom, at least 1.
    """
    low = 0.0
    high = 1.0
    while t_tail(high, freedom) > 1 - share:
        high = 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if t_tail(middle, freedom) > 1 - share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _simpson(values: NDArray[np.float64], step: Any) -> float:
    """Return the integral of values at an odd number of equal steps, by Simpson's rule."""
    odd = values[1:-1:2].sum()
    even = values[2:-1:2].sum()
    return float(step / 3 * (values[0] + 4 * odd + 2 * even + values[-1]))
