"""Random views of images, batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pu_kd_pipeline.images.batches import ImageRows, read_ahead
from pu_kd_pipeline.learning.augmentation import (
    Normalize,
    draw_views,
    n_views,
    random_views,
    take_views,
)
from pu_kd_pipeline.learning.loop import shuffled_batches
from pu_kd_pipeline.learning.relatedness.sampling import preferential_batches
from pu_kd_pipeline.params.compute import AugmentationParams


class Batch(NamedTuple):
    """A batch of training images, on the device."""

    images: Tensor
    """(N, C, H, W) float32, normalized random views."""
    rows: Tensor
    """(N,) int64, the positions that they were taken from."""
    views: Tensor
    """(N,) int64, which view of its image each is, see `augmentation.take_views`."""


Draw = Callable[[Tensor, torch.Generator], Tensor]


def augmented_batches(
    rows: ImageRows,
    normalize: Normalize,
    augmentation: AugmentationParams,
    batch_size: int,
    seed: int,
    draw: Draw | None = None,
    probabilities: Tensor | None = None,
    n_passed: int = 0,
) -> Iterator[Batch]:
    """Yield batches for ever.

    `draw` chooses the views of the images at (N,) positions, None: any, at random. `probabilities`, (N,) float64, are
    those with which an image is drawn, with replacement; None: each pass shows every image once. The first `n_passed`
    batches are drawn and left out, which takes some 40 µs each: a training that goes on has seen them. Images that are
    not resident are read, and decoded where they are encoded, while the network computes.
    """
    padding, flip = augmentation.padding_px, augmentation.horizontal_flip
    generator = torch.Generator(rows.device).manual_seed(seed)
    if probabilities is None:
        positions = shuffled_batches(len(rows), batch_size, generator)
    else:
        positions = preferential_batches(probabilities, batch_size, generator)

    def views_of(indices: Tensor) -> Tensor:
        if n_views(padding, flip) == 1:
            return torch.zeros_like(indices)
        if draw is None:
            return draw_views(len(indices), padding=padding, flip=flip, generator=generator)
        return draw(indices, generator)

    drawn = ((indices, views_of(indices)) for indices in positions)
    batches = (
        Batch(
            normalize(take_views(rows.batch(indices), views, padding=padding, flip=flip)),
            indices,
            views,
        )
        for indices, views in itertools.islice(drawn, n_passed, None)
    )
    return batches if rows.is_resident else read_ahead(batches)


def augmented(
    images: Tensor,
    normalize: Normalize,
    augmentation: AugmentationParams,
    generator: torch.Generator,
) -> Tensor:
    """Return normalized float32 random views of (N, C, H, W) uint8 images."""
    padding, flip = augmentation.padding_px, augmentation.horizontal_flip
    return normalize(random_views(images, padding=padding, flip=flip, generator=generator))
