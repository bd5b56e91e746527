"""The share of positives in a pool, from a stratified sample: its estimate and an exact interval.

The pool is cut into six strata of ranks, fine at the top, where related images are expected, and
coarse at the bottom. Whatever the ranking is worth, each stratum is a random sample of its ranks,
so that nothing is assumed about where images come from; a ranking that is worth something makes the
estimate more precise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pu_kd_pipeline.learning.proportions import LEVEL

Counts = NDArray[np.int64]

# Share of the pool in each stratum, from the top, in parts of 32; and of 100 answers, how many it
# gets. Chosen for a small error over class priors of 2 % to 47 %
# (docs/decisions/0048-the-pool-audit.md).
STRATUM_PARTS = (1, 1, 2, 4, 8, 16)
ANSWERS_OF_100 = (8, 8, 12, 16, 24, 32)
# Steps of the statistic that orders the possible answers. With the parts above, and a hundred
# answers, it is proportional to the estimate. Any statistic gives an exact interval.
_STEPS = 12
_FEASIBLE = 1e-4  # relative error of a probability, up to which the solver's result is used
# Probabilities outside of these limits only have to tell the solver that it is far off.
_SMALLEST = 1e-14
_LARGEST = 1 - 1e-14
_HALVINGS = 40
_N_RANDOM_STARTS = 8
# Limits are moved outwards by this: results of other starts were better by up to 1e-4.
_SOLVER_ERROR = 5e-4


class StratifiedCounts(NamedTuple):
    """What is known of S strata.

    Attributes:
        sizes: (S,) int64 images of each stratum.
        n: (S,) int64 images with an answer, at most `sizes`.
        hits: (S,) int64 of these, the positives.
        unknown: (S,) int64 of these, those that nobody can tell.
    """

    sizes: Counts
    n: Counts
    hits: Counts
    unknown: Counts


class Estimate(NamedTuple):
    """A share with its interval, all in [0, 1]."""

    value: float
    lower: float
    upper: float


def stratum_sizes(n_images: int) -> Counts:
    """Return the (6,) int64 numbers of images per stratum, from the top; they sum to `n_images`."""
    parts = np.array(STRATUM_PARTS)
    ends = np.rint(parts.cumsum() * n_images / parts.sum()).astype(np.int64)
    return np.diff(ends, prepend=0)


def allocate_answers(n_answers: int, sizes: Counts) -> Counts:
    """Return how many of (S,) strata's images are to be answered, (S,) int64.

    In proportion to `ANSWERS_OF_100` with the largest remainders rounded up, and no more than a
    stratum holds; what does not fit into one goes to the others.

    Args:
        n_answers: number of answers; all images, where it exceeds their number.
        sizes: (6,) int64 from `stratum_sizes`.
    """
    allocated: Counts = np.zeros_like(sizes)
    remaining = min(n_answers, int(sizes.sum()))
    while remaining:
        shares = np.where(allocated < sizes, ANSWERS_OF_100, 0)
        exact = remaining * shares / shares.sum()
        granted = np.floor(exact).astype(np.int64)
        largest = np.argsort(granted - exact, kind="stable")
        granted[largest[: remaining - granted.sum()]] += 1
        allocated = np.minimum(allocated + granted, sizes)
        remaining = min(n_answers, int(sizes.sum())) - int(allocated.sum())
    return allocated


def estimate_share(counts: StratifiedCounts, level: float = LEVEL) -> Estimate:
    """Return the share of positives in all strata together, with its exact interval.

    The value is the sum over strata of weight times share of positives among the answered. Images
    that nobody can tell, and strata without answers, count as half a positive in the value, as
    none in the lower limit and as positives in the upper one.

    The limits invert exact tests (Wendell and Schmee 1996, JASA 91, eq. 2, for binomial strata): a
    share is in the interval if for some composition of the strata with that share, the answers
    found, or others whose weighted sum is as extreme, have a probability of at least
    (1 - level) / 2 on each side. Images are drawn without replacement, which makes the answers vary
    less than the binomial distributions that the tests use: the interval is conservative.

    Raises:
        ValueError: the counts contradict each other, there are no images, or a level outside of
            (0, 1).
    """
    _check(counts, level)
    weights = counts.sizes / counts.sizes.sum()
    is_answered = counts.n > 0
    shares = np.full(len(weights), 0.5)
    halves = counts.hits + 0.5 * counts.unknown
    np.divide(halves, counts.n, out=shares, where=is_answered)
    value = float(weights @ shares)
    tail = (1 - level) / 2
    lower = _lower_limit(counts.sizes, counts.n, counts.hits, tail)
    # The upper limit is the lower limit of the share of negatives.
    negatives = counts.n - counts.hits - counts.unknown
    upper = 1 - _lower_limit(counts.sizes, counts.n, negatives, tail)
    return Estimate(value, float(min(lower, value)), float(max(upper, value)))


def tail_probability(
    shares: Sequence[float], n: Sequence[int], steps: Sequence[int], threshold: int
) -> tuple[float, NDArray[np.float64]]:
    """Return P(sum of steps_s X_s >= threshold), and its gradient.

    X_s are independent binomial counts of n_s images with the probabilities shares_s. It is read
    off the characteristic function of the sum at the Fourier frequencies of its range.

    Returns:
        The probability, and its (S,) derivatives with respect to the shares.
    """
    numbers = tuple(map(int, n))
    waves, indicator = _frequencies(numbers, tuple(map(int, steps)), int(threshold))
    return _tail(np.asarray(shares, dtype=np.float64), np.array(numbers), waves, indicator)


def _check(counts: StratifiedCounts, level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level!r}")
    if counts.sizes.sum() < 1 or (counts.sizes < 0).any():
        raise ValueError(f"expected strata with images, got sizes {counts.sizes.tolist()}")
    known = counts.hits + counts.unknown
    is_possible = (counts.hits >= 0) & (counts.unknown >= 0) & (known <= counts.n)
    if not is_possible.all() or (counts.n > counts.sizes).any():
        raise ValueError(
            "expected 0 <= hits + unknown <= n <= sizes in every stratum, got "
            f"{[each.tolist() for each in counts]}"
        )


def _lower_limit(sizes: Counts, n: Counts, hits: Counts, tail: float) -> float:
    """Return the smallest share for which as many hits have at least a probability of `tail`."""
    weights = sizes / sizes.sum()
    # What was seen in full needs no test, and in what was not seen there may be nothing.
    is_complete = n == sizes
    certain = float((weights * hits)[is_complete] @ (1 / np.maximum(n, 1))[is_complete])
    is_sampled = ~is_complete & (n > 0)
    if not is_sampled.any() or not hits[is_sampled].any():
        return certain
    sampled = weights[is_sampled]
    per_answer = sampled / n[is_sampled]
    steps = np.maximum(1, np.rint(_STEPS * per_answer / per_answer.max())).astype(np.int64)
    threshold = int(steps @ hits[is_sampled])
    limit = _smallest_share(
        tuple(sampled.tolist()),
        tuple(n[is_sampled].tolist()),
        tuple(steps.tolist()),
        threshold,
        tail,
    )
    return certain + max(0.0, limit - _SOLVER_ERROR)


# The limit depends on the answers only by their weighted sum, which repeats in simulations.
@lru_cache(maxsize=4096)
def _smallest_share(
    weights: tuple[float, ...],
    n: tuple[int, ...],
    steps: tuple[int, ...],
    threshold: int,
    tail: float,
) -> float:
    """Return min over shares p of weights @ p, where P_p(sum of steps X >= threshold) >= tail.

    The problem is smooth but not convex: the best result from several starts is returned.
    """
    # imported late: it takes a second
    from scipy.optimize import minimize
    from scipy.special import ndtri

    size = np.array(weights)
    numbers = np.array(n)
    waves, indicator = _frequencies(n, steps, threshold)
    smallest_score = float(ndtri(tail))

    def probability(shares: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        found, gradient = _tail(np.clip(shares, 0, 1), numbers, waves, indicator)
        return min(max(found, _SMALLEST), _LARGEST), gradient

    @lru_cache(maxsize=2)
    def excess(key: bytes) -> tuple[float, NDArray[np.float64]]:
        """Return how much the probability exceeds the tail, as normal quantiles, and its gradient.

        These are nearly linear in the shares, as the solver assumes of a constraint.
        """
        found, gradient = probability(np.frombuffer(key))
        score = float(ndtri(found))
        density = np.exp(-score * score / 2) / np.sqrt(2 * np.pi)
        return score - smallest_score, gradient / density

    constraint = {
        "type": "ineq",
        # The solver asks for both separately.
        "fun": lambda shares: excess(shares.tobytes())[0],
        "jac": lambda shares: excess(shares.tobytes())[1],
    }
    best = float(size.sum())
    for start in _starts(np.array(steps), numbers, threshold):
        found = minimize(
            lambda shares: (size @ shares, size),
            start,
            jac=True,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * len(size),
            constraints=[constraint],
            options={"maxiter": 60, "ftol": 1e-6},
        )
        shares = _raised(np.clip(found.x, 0, 1), tail, lambda each: probability(each)[0])
        best = min(best, float(size @ shares))
    return best


def _raised(
    shares: NDArray[np.float64], tail: float, probability: Callable[[NDArray[np.float64]], float]
) -> NDArray[np.float64]:
    """Return shares, or those on the way to 1 that first reach the probability `tail`."""
    if probability(shares) >= tail * (1 - _FEASIBLE):
        return shares
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if probability(shares + middle * (1 - shares)) >= tail:
            high = middle
        else:
            low = middle
    return shares + high * (1 - shares)


def _starts(steps: Counts, n: Counts, threshold: int) -> list[NDArray[np.float64]]:
    """Return (S,) shares from which the solver starts.

    The sum that was found may come from all strata alike, or from one of them before all others: at
    one of these, or near it, lies the smallest share of most answers. Shares near 0 and 1 find it
    where strata have very different weights.
    """
    largest = int(steps @ n)
    alike = np.full(len(n), threshold / largest)
    starts = [alike]
    by_step = np.argsort(-steps, kind="stable")
    for first in range(len(n)):
        filled = np.zeros(len(n))
        missing = float(threshold)
        for stratum in (first, *by_step[by_step != first]):
            filled[stratum] = min(1.0, missing / (steps[stratum] * n[stratum]))
            missing -= filled[stratum] * steps[stratum] * n[stratum]
        # Off the bounds, where the derivatives of several strata vanish.
        starts.append(0.9 * filled + 0.1 * alike)
    # The same ones each time, so that equal answers have equal limits.
    generator = np.random.default_rng(0)
    starts.extend(generator.beta(0.5, 0.5, size=(_N_RANDOM_STARTS, len(n))))
    return starts


@cache
def _frequencies_of(length: int, step: int) -> NDArray[np.complex128]:
    return np.exp(-2j * np.pi * step * np.arange(length // 2 + 1) / length)


def _frequencies(
    n: tuple[int, ...], steps: tuple[int, ...], threshold: int
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Return (S, F) E exp(-i w step) of one hit, and (F,) the transform of "at least threshold"."""
    length = 1 + sum(number * step for number, step in zip(n, steps, strict=True))
    waves = np.stack([_frequencies_of(length, step) for step in steps])
    reached = np.zeros(length)
    reached[threshold:] = 1
    indicator = np.conj(np.fft.rfft(reached)).astype(np.complex128) / length
    # Each frequency stands for its negative, too, except 0 and that in the middle.
    indicator[1:] *= 2
    if length % 2 == 0:
        indicator[-1] /= 2
    return waves, indicator


def _tail(
    shares: NDArray[np.float64],
    n: Counts,
    waves: NDArray[np.complex128],
    indicator: NDArray[np.complex128],
) -> tuple[float, NDArray[np.float64]]:
    one_image = 1 + shares[:, None] * (waves - 1)
    all_but_one = one_image ** (n[:, None] - 1)
    strata = all_but_one * one_image
    n_strata = len(shares)
    # Products of the strata before and behind each one: its own may be zero.
    before = np.ones((n_strata + 1, waves.shape[1]), dtype=np.complex128)
    behind = np.ones_like(before)
    for stratum in range(n_strata):
        before[stratum + 1] = before[stratum] * strata[stratum]
    for stratum in range(n_strata - 1, -1, -1):
        behind[stratum] = behind[stratum + 1] * strata[stratum]
    probability = float((indicator * before[-1]).real.sum())
    slopes = n[:, None] * all_but_one * (waves - 1)
    gradient = (indicator * before[:-1] * behind[1:] * slopes).real.sum(axis=1)
    return probability, gradient
