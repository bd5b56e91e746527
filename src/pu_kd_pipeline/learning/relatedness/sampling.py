"""Sampling pool images by relatedness."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_RESOLUTION = 2**53  # of draws: a float64 in [0, 1] times this is an exact int64


def sampling_probabilities(sums: Tensor, *, temperature: float, floor: float) -> Tensor:
    """Return the probability of each pool image, p = (1 - floor) softmax(-z / T) + floor / n.

    z is the z-score of its 1C-Sum over the pool. A pool of equal sums is sampled evenly. Our
    reconstruction.

    Args:
        sums: (n,) finite, from `one_class_sum`, n > 0.
        temperature: T > 0; small values prefer related images strongly, large ones sample evenly.
        floor: share of the draws that is uniform, in [0, 1], so that no image has less than
            floor / n.

    Returns:
        (n,) float64 on the CPU, summing to one; smaller for larger sums.

    Raises:
        ValueError: sums are empty or not finite, or a number is out of range.
    """
    is_vector = sums.ndim == 1 and len(sums) > 0
    if not is_vector or not sums.isfinite().all():
        raise ValueError(
            f"sums must be a non-empty vector of finite values, got shape {tuple(sums.shape)}"
        )
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"floor must lie in [0, 1], got {floor!r}")
    sums = sums.detach().cpu().double()

    # Counted from the smallest sum instead of the mean, which softmax does not see: at least 0, so
    # that no exponential overflows, however small the temperature.
    above_best = sums - sums.min()
    std = above_best.std(correction=0)
    z = torch.zeros_like(sums)
    if std > 0.0:
        z = above_best / std

    preferences = torch.softmax(-z / temperature, dim=0)
    uniform = floor / len(sums)
    return (1.0 - floor) * preferences + uniform


def effective_sample_size(probabilities: Tensor) -> float:
    """Return 1 / sum p^2 (Kish 1965), the size of an equally diverse uniform pool, from 1 to n.

    Worth monitoring: the exponential can put most of the draws on few images, whatever the floor.

    Args:
        probabilities: (n,) non-negative, summing to one.
    """
    squares = probabilities.double().square()
    return 1.0 / float(squares.sum())


def preferential_batches(
    probabilities: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Return an endless iterator of index batches, drawn with replacement.

    Args:
        probabilities: (n,) finite, non-negative, with a positive sum; n > 0. They need not sum to
            one.
        batch_size: at least 1.
        generator: fixes the draws; batches are (batch_size,) int64 on its device.

    Raises:
        ValueError: unusable probabilities or batch size.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size!r}")
    draws = PreferentialDraws(probabilities, generator)
    return _endless_batches(draws, batch_size)


class PreferentialDraws:
    """Draws with replacement, each image with its probability.

    How many random numbers they take depends on the number of draws alone, not on the
    probabilities.

    Args:
        probabilities: (n,) finite, non-negative, with a positive sum; n > 0. They need not sum to
            one.
        generator: fixes the draws.

    Raises:
        ValueError: unusable probabilities.
    """

    def __init__(self, probabilities: Tensor, generator: torch.Generator) -> None:
        exact = probabilities.detach().cpu().double()
        cumulative = exact.cumsum(dim=0)
        is_vector = probabilities.ndim == 1 and len(probabilities) > 0
        is_nonnegative = probabilities >= 0  # false for nan
        is_usable = is_vector and bool(is_nonnegative.all())
        if not is_usable or not 0.0 < float(cumulative[-1]) < math.inf:
            raise ValueError(
                "probabilities must be a non-empty vector of finite values, none negative and not "
                f"all 0, got shape {tuple(probabilities.shape)}"
            )

        # By the inverse of the distribution function, in integers: torch.multinomial takes 2^24
        # images at most, and not every device has float64.
        total = cumulative[-1]
        distribution_function = cumulative / total
        ends = (distribution_function * _RESOLUTION).long()
        self._ends = ends.to(generator.device)
        self._generator = generator

    def take(self, count: int) -> Tensor:
        """Return the next (count,) int64 positions, on the generator's device."""
        device = self._generator.device
        size = (count,)
        draws = torch.randint(_RESOLUTION, size, generator=self._generator, device=device)
        return torch.searchsorted(self._ends, draws, right=True)


def _endless_batches(draws: PreferentialDraws, batch_size: int) -> Iterator[Tensor]:
    # A generator of its own, so that `preferential_batches` checks its arguments when it is called.
    while True:
        yield draws.take(batch_size)
