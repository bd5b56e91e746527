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
from pu_kd_pipeline.learning.strata import stratified_batches
from pu_kd_pipeline.params.compute import AugmentationParams
from pu_kd_pipeline.training.sampling import Strata


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
    strata: Strata | None = None,
) -> Iterator[Batch]:
    """Yield batches forever; with strata, those of a training.

    Images that are not resident are read, and decoded where they are encoded, while the network
    computes.

    Args:
        rows: the training images.
        normalize: on their device.
        augmentation: padding and flip of the random views.
        batch_size: size of every batch.
        seed: fixes the order of images and their views.
        draw: chooses the views of the images at (N,) positions; None: uniformly at random.
        probabilities: (N,) float64, the probability of each image to be drawn, with replacement;
            None: each pass shows every image once.
        n_passed: batches at the start to skip, because an interrupted training has used them. Their
            random numbers are drawn, which takes some 40 µs per batch; no image is read for them.
        strata: of every batch; None: all images are drawn in the same way.
    """
    generator = torch.Generator(rows.device).manual_seed(seed)
    if strata is not None:
        positions = stratified_batches(strata.strata, strata.counts, generator)
    elif probabilities is None:
        positions = shuffled_batches(len(rows), batch_size, generator)
    else:
        positions = preferential_batches(probabilities, batch_size, generator)

    # Lazy generators: nothing is drawn or read before the training loop asks for a batch.
    drawn = _with_views(positions, augmentation, draw, generator)
    # Skipped before images are read: only the random numbers of past batches are drawn again.
    remaining = itertools.islice(drawn, n_passed, None)
    batches = _batches(rows, normalize, augmentation, remaining)
    if rows.is_resident:
        return batches
    return read_ahead(batches)


def _with_views(
    positions: Iterator[Tensor],
    augmentation: AugmentationParams,
    draw: Draw | None,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield positions and the views of their images."""
    padding = augmentation.padding_px
    flip = augmentation.horizontal_flip
    for indices in positions:
        # With a single view there is nothing to draw.
        if n_views(padding, flip) == 1:
            views = torch.zeros_like(indices)
        elif draw is None:
            views = draw_views(len(indices), padding=padding, flip=flip, generator=generator)
        else:
            views = draw(indices, generator)
        yield indices, views


def _batches(
    rows: ImageRows,
    normalize: Normalize,
    augmentation: AugmentationParams,
    drawn: Iterator[tuple[Tensor, Tensor]],
) -> Iterator[Batch]:
    padding = augmentation.padding_px
    flip = augmentation.horizontal_flip
    for indices, views in drawn:
        pixels = rows.batch(indices)
        # uint8 until here, so that less is moved; float32 from here on.
        images = normalize(take_views(pixels, views, padding=padding, flip=flip))
        yield Batch(images, indices, views)


def augmented(
    images: Tensor,
    normalize: Normalize,
    augmentation: AugmentationParams,
    generator: torch.Generator,
) -> Tensor:
    """Return normalized float32 random views of (N, C, H, W) uint8 images."""
    padding = augmentation.padding_px
    flip = augmentation.horizontal_flip
    views = random_views(images, padding=padding, flip=flip, generator=generator)
    return normalize(views)
