"""Sampling pool images by relatedness."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_RESOLUTION = 2**53  # of draws: a float64 in [0, 1] times this is an exact int64


def sampling_probabilities(sums: Tensor, *, temperature: float, floor: float) -> Tensor:
    """Return the probability of each pool image, p = (1 - floor) softmax(-z / temperature) + floor / n.

    z is the z-score of its 1C-Sum over the pool. A pool of equal sums is sampled evenly. Our reconstruction.

    Args:
        sums: (n,) finite, from `one_class_sum`, n > 0.
        temperature: > 0; small prefers strongly, large samples evenly.
        floor: the share of the draws that is even, in [0, 1], so that no image has less than floor / n.

    Returns:
        (n,) float64 on the CPU, summing to one, falling with the sum.

    Raises:
        ValueError: no sums or some that are not finite, or a number out of its range.
    """
    if sums.ndim != 1 or len(sums) == 0 or not sums.isfinite().all():
        raise ValueError(
            f"sums must be a non-empty vector of finite values, got shape {tuple(sums.shape)}"
        )
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"floor must lie in [0, 1], got {floor!r}")
    sums = sums.detach().cpu().double()
    above_best = (
        sums - sums.min()
    )  # at least 0, so that no exponential overflows, however small the temperature
    std = above_best.std(correction=0)
    z = above_best / std if std > 0.0 else torch.zeros_like(sums)
    return (1.0 - floor) * torch.softmax(-z / temperature, dim=0) + floor / len(sums)


def effective_sample_size(probabilities: Tensor) -> float:
    """Return 1 / sum p^2 (Kish 1965): a pool of so many equally likely images is as wide. From 1 to n.

    To be watched: the exponential can put most of the draws on few images, whatever the floor.

    Args:
        probabilities: (n,) non-negative, summing to one.
    """
    return 1.0 / float(probabilities.double().square().sum())


def preferential_batches(
    probabilities: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Return an endless iterator of index batches, drawn with replacement.

    By the inverse of the distribution function, in integers: torch.multinomial takes 2^24 images at most, and not
    every device has float64.

    Args:
        probabilities: (n,) finite, non-negative, with a positive sum; n > 0. They need not sum to one.
        batch_size: at least 1.
        generator: fixes the draws; batches are (batch_size,) int64 on its device.

    Raises:
        ValueError: probabilities or a batch size that cannot be.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size!r}")
    cumulative = probabilities.detach().cpu().double().cumsum(dim=0)
    is_usable = (
        probabilities.ndim == 1 and len(probabilities) > 0 and bool((probabilities >= 0).all())
    )
    if not is_usable or not 0.0 < float(cumulative[-1]) < math.inf:
        raise ValueError(
            "probabilities must be a non-empty vector of finite values, none negative and not all 0, "
            f"got shape {tuple(probabilities.shape)}"
        )
    ends = (cumulative / cumulative[-1] * _RESOLUTION).long().to(generator.device)

    def batches() -> Iterator[Tensor]:
        while True:
            draws = torch.randint(
                _RESOLUTION, (batch_size,), generator=generator, device=generator.device
            )
            yield torch.searchsorted(ends, draws, right=True)

    return batches()
