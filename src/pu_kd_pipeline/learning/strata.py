"""Batches of several strata: each stratum gives a number of images that may change per batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pu_kd_pipeline.learning.relatedness.sampling import PreferentialDraws


@dataclass(frozen=True, eq=False)
class Stratum:
    """Images that are drawn in the same way.

    Attributes:
        first: position of the first image; the others follow it.
        n: number of images; 0: the stratum is empty and gives none.
        probabilities: (n,) float64 on the CPU, with which they are drawn, with replacement; None:
            each pass shows every image once.
    """

    first: int
    n: int
    probabilities: Tensor | None = None


def stratified_batches(
    strata: Sequence[Stratum], counts: NDArray[np.int64], generator: torch.Generator
) -> Iterator[Tensor]:
    """Return an iterator of index batches, one per row of `counts`.

    Args:
        strata: S groups of images, which may overlap.
        counts: (n_batches, S) images that each stratum gives to each batch.
        generator: fixes the draws; batches are (sum of the row,) int64 on its device, stratum by
            stratum.

    Raises:
        ValueError: probabilities that cannot be drawn with, or an empty stratum that has to give
            images.
    """
    draws: list[ShuffledPasses | PreferentialDraws] = []
    for place, stratum in enumerate(strata):
        if stratum.n == 0 and counts[:, place].any():
            raise ValueError(f"stratum {place} is empty and has to give images")
        if stratum.probabilities is None:
            draws.append(ShuffledPasses(stratum.n, generator))
        else:
            draws.append(PreferentialDraws(stratum.probabilities, generator))
    return _batches(strata, draws, counts)


def _batches(
    strata: Sequence[Stratum],
    draws: Sequence[ShuffledPasses | PreferentialDraws],
    counts: NDArray[np.int64],
) -> Iterator[Tensor]:
    # A generator of its own, so that `stratified_batches` checks its arguments when it is called.
    for row in counts.tolist():
        parts = []
        for stratum, drawn, count in zip(strata, draws, row, strict=True):
            if count:
                parts.append(drawn.take(count) + stratum.first)
        yield torch.cat(parts)


class ShuffledPasses:
    """Draws without replacement: each pass shows every image once, in random order.

    Args:
        n: number of images.
        generator: fixes the order.
    """

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self._n = n
        self._generator = generator
        self._remaining = torch.empty(0, dtype=torch.int64, device=generator.device)

    def take(self, count: int) -> Tensor:
        """Return the next (count,) int64 positions, on the generator's device."""
        device = self._generator.device
        # More than one pass where more images are asked for than there are.
        while len(self._remaining) < count:
            next_pass = torch.randperm(self._n, generator=self._generator, device=device)
            self._remaining = torch.cat([self._remaining, next_pass])
        taken = self._remaining[:count]
        self._remaining = self._remaining[count:]
        return taken
