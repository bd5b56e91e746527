"""Exact statistics of counts: intervals of a share, and whether one classifier is better."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95  # of every interval
_N_HALVINGS = 40  # of [0, 1]: twelve digits


class Interval(NamedTuple):
    """Bounds of a share."""

    lower: float
    upper: float


def exact_interval(n_hits: int, n: int, level: float = LEVEL) -> Interval:
    """Return the interval of Clopper and Pearson (1934) for the share behind `n_hits` of `n`.

    It contains the true share with a probability of at least `level`, however few the samples.

    Raises:
        ValueError: n is 0, or n_hits is not in 0..n.
    """
    if n < 1 or not 0 <= n_hits <= n:
        raise ValueError(f"expected 0 <= n_hits <= n and n > 0, got {n_hits} of {n}")
    tail = (1 - level) / 2
    return Interval(_lower_bound(n_hits, n, tail), 1 - _lower_bound(n - n_hits, n, tail))


def _lower_bound(n_hits: int, n: int, tail: float) -> float:
    """Return the share with which `n_hits` or more of `n` have the probability `tail`."""
    if n_hits == 0:
        return 0.0
    counts = np.arange(n_hits, n + 1)
    log_ways = _log_ways(counts, n)
    low = 0.0
    high = 1.0
    for _ in range(_N_HALVINGS):
        middle = (low + high) / 2
        if _sum_of_terms(counts, log_ways, n, middle) < tail:
            low = middle
        else:
            high = middle
    return low


def upper_tail(n_hits: int, n: int, share: float) -> float:
    """Return the probability of `n_hits` or more of `n`, each with the probability `share`."""
    if n_hits <= 0 or share >= 1:
        return 1.0
    if n_hits > n or share <= 0:
        return 0.0
    counts = np.arange(n_hits, n + 1)
    return _sum_of_terms(counts, _log_ways(counts, n), n, share)


def _log_ways(counts: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Return the logarithms of the binomial coefficients, which themselves exceed every float."""
    logs = np.log(np.arange(1, n + 1))
    log_factorials = np.concatenate([[0.0], np.cumsum(logs)])
    ways: NDArray[np.float64] = (
        log_factorials[n] - log_factorials[counts] - log_factorials[n - counts]
    )
    return ways


def _sum_of_terms(
    counts: NDArray[np.int64], log_ways: NDArray[np.float64], n: int, share: float
) -> float:
    log_terms = log_ways + counts * np.log(share) + (n - counts) * np.log1p(-share)
    total = float(np.exp(log_terms).sum())
    return min(total, 1.0)


def improvement_p_value(is_correct: NDArray[np.bool_], was_correct: NDArray[np.bool_]) -> float:
    """Return the p-value of McNemar's exact test that one classifier is better than another.

    One-sided: only the images on which exactly one of the two is right count, and under the null
    hypothesis each of these is as likely to be the one's as the other's.

    Args:
        is_correct: (N,) of the classifier that may be better.
        was_correct: (N,) of the other one, on the same images.
    """
    n_gained = int((is_correct & ~was_correct).sum())
    n_lost = int((was_correct & ~is_correct).sum())
    return upper_tail(n_gained, n_gained + n_lost, 0.5)
