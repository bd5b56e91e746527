"""Exact statistics of proportions: the interval of Clopper and Pearson, and McNemar's test."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Correct = NDArray[np.bool_]
Alternative = Literal["two-sided", "greater"]

LEVEL = 0.95  # of every interval


class Interval(NamedTuple):
    """Bounds of a proportion."""

    lower: float
    upper: float


def clopper_pearson_interval(n_hits: int, n: int, level: float = LEVEL) -> Interval:
    """Return the exact interval for the proportion behind `n_hits` of `n`.

    Clopper and Pearson 1934. The interval contains the true proportion with a probability of at
    least `level`, however few the samples.

    Raises:
        ValueError: n is 0, or n_hits is not in 0..n.
    """
    # imported late: it takes a second
    from scipy import stats

    if n < 1 or not 0 <= n_hits <= n:
        raise ValueError(f"expected 0 <= n_hits <= n and n > 0, got {n_hits} of {n}")
    n_misses = n - n_hits
    tail = (1 - level) / 2
    lower = 0.0
    upper = 1.0
    # The tails of the binomial distribution, solved for the proportion, are beta quantiles.
    if n_hits > 0:
        lower = float(stats.beta.ppf(tail, n_hits, n_misses + 1))
    if n_misses > 0:
        upper = float(stats.beta.isf(tail, n_hits + 1, n_misses))
    return Interval(lower, upper)


def count_discordant(first: Correct, second: Correct) -> tuple[int, int]:
    """Return the number of images that only the first, and that only the second model gets right.

    Args:
        first: (N,) whether the first model classifies an image correctly.
        second: (N,) the same for the second model, of the same images in the same order.
    """
    n_first_only = int((first & ~second).sum())
    n_second_only = int((second & ~first).sum())
    return n_first_only, n_second_only


def mcnemar_p_value(
    n_first_only: int, n_second_only: int, alternative: Alternative = "two-sided"
) -> float:
    """Return the p value of McNemar's exact test (McNemar 1947).

    Between equally good models, each discordant image favors either with probability 1/2.

    Args:
        n_first_only: images that only the first model classifies correctly.
        n_second_only: images that only the second model classifies correctly.
        alternative: "two-sided": the models differ; "greater": the first model is better.

    Returns:
        In [0, 1]; 1 without discordant images.

    Raises:
        ValueError: a count is negative.
    """
    # imported late: it takes a second
    from scipy import stats

    if n_first_only < 0 or n_second_only < 0:
        raise ValueError(f"counts must not be negative, got {n_first_only} and {n_second_only}")
    n_discordant = n_first_only + n_second_only
    if alternative == "greater":
        return float(stats.binom.sf(n_first_only - 1, n_discordant, 0.5))
    fewer = min(n_first_only, n_second_only)
    tail = float(stats.binom.cdf(fewer, n_discordant, 0.5))
    # Both tails are equal. Where both counts are equal, each of them contains the middle.
    return min(1.0, 2 * tail)
