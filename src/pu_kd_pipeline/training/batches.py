"""Random views of images, batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pu_kd_pipeline.images.batches import ImageRows, read_ahead
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.loop import shuffled_batches
from pu_kd_pipeline.learning.mixing import Mixing, Mixture
from pu_kd_pipeline.learning.photo_views import PhotoViews
from pu_kd_pipeline.learning.relatedness.sampling import preferential_batches
from pu_kd_pipeline.learning.strata import stratified_batches
from pu_kd_pipeline.learning.views import ShiftedViews, Views
from pu_kd_pipeline.learning.workers import ALONE, Workers
from pu_kd_pipeline.params.compute import AugmentationParams
from pu_kd_pipeline.training.final_phase import FinalPhase
from pu_kd_pipeline.training.sampling import Strata


class Batch(NamedTuple):
    """A batch of training images, or a worker's part of one, on the device."""

    images: Tensor
    """(N, C, H, W) float32, normalized random views, mixed or not."""
    rows: Tensor
    """(N,) int64, the positions that they were taken from."""
    views: Tensor
    """(N,) int64, which view of its image each is, see `learning.views`."""
    is_mixed: bool = False
    """Whether each image is mixed with another one: it is then no view of its row alone."""


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
    mixing: Mixing | None = None,
    final_phase: FinalPhase | None = None,
    strata: Strata | None = None,
    workers: Workers = ALONE,
) -> Iterator[Batch]:
    """Yield batches forever; with strata, those of a training.

    Images that are not resident are read, and decoded where they are encoded, while the network
    computes.

    Args:
        rows: the training images.
        normalize: on their device.
        augmentation: of the random views.
        batch_size: size of every batch.
        seed: fixes the order of images and their views.
        draw: chooses the views of the images at (N,) positions; None: uniformly at random.
        probabilities: (N,) float64, the probability of each image to be drawn, with replacement;
            None: each pass shows every image once.
        n_passed: batches at the start to skip, because an interrupted training has used them. Their
            random numbers are drawn, which takes some 40 µs per batch; no image is read for them.
        mixing: mixes the images of a batch with each other; None: they are not mixed.
        final_phase: replaces the images of the last batches; None: it does not.
        strata: of every batch; None: all images are drawn in the same way.
        workers: each gets its part of the batches that one process would see, views included.
    """
    generator = torch.Generator(rows.device).manual_seed(seed)
    if strata is not None:
        positions = stratified_batches(strata.strata, strata.counts, generator)
    elif probabilities is None:
        positions = shuffled_batches(len(rows), batch_size, generator)
    else:
        positions = preferential_batches(probabilities, batch_size, generator)

    if final_phase is not None:
        positions = final_phase.after(positions, batch_size, generator)

    views = views_of(augmentation)
    mixtures: Iterator[Mixture | None] = itertools.repeat(None)
    if mixing is not None:
        mixtures = mixing.mixtures(batch_size)
    # Lazy generators: nothing is drawn or read before the training loop asks for a batch.
    drawn = zip(_with_views(positions, views, draw, generator), mixtures, strict=False)
    # Skipped before images are read: only the random numbers of past batches are drawn again.
    remaining = itertools.islice(drawn, n_passed, None)
    batches = _batches(rows, normalize, views, mixing, remaining, workers)
    if rows.is_resident:
        return batches
    return read_ahead(batches)


def views_of(augmentation: AugmentationParams) -> Views:
    """Return the random views that the parameters describe."""
    given = augmentation
    has_colors = given.brightness > 0 or given.contrast > 0 or given.saturation > 0
    if given.resized_crop_scale is None and not has_colors:
        return ShiftedViews(given.padding_px, given.horizontal_flip)
    return PhotoViews(
        padding=given.padding_px,
        flip=given.horizontal_flip,
        scale=given.resized_crop_scale,
        ratio=given.resized_crop_ratio,
        brightness=given.brightness,
        contrast=given.contrast,
        saturation=given.saturation,
    )


def _with_views(
    positions: Iterator[Tensor],
    views: Views,
    draw: Draw | None,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield positions and the views of their images."""
    for indices in positions:
        # With a single view there is nothing to draw.
        if views.n_views == 1:
            drawn = torch.zeros_like(indices)
        elif draw is None:
            drawn = views.draw(len(indices), generator)
        else:
            drawn = draw(indices, generator)
        yield indices, drawn


def _batches(
    rows: ImageRows,
    normalize: Normalize,
    views: Views,
    mixing: Mixing | None,
    drawn: Iterator[tuple[tuple[Tensor, Tensor], Mixture | None]],
    workers: Workers,
) -> Iterator[Batch]:
    for (indices, numbers), mixture in drawn:
        own_indices = workers.own(indices)
        own_numbers = workers.own(numbers)
        if mixing is None or mixture is None:
            pixels = rows.batch(own_indices)
            # uint8 until here where views allow it, so that less is moved; float32 from here on.
            images = normalize(views.take(pixels, own_numbers))
            yield Batch(images, own_indices, own_numbers)
        else:
            # An image may be mixed with one of another worker's part.
            images = normalize(views.take(rows.batch(indices), numbers))
            mixed = workers.own(mixing.mix(images, mixture))
            yield Batch(mixed, own_indices, own_numbers, is_mixed=True)


def augmented(
    images: Tensor,
    normalize: Normalize,
    augmentation: AugmentationParams,
    generator: torch.Generator,
) -> Tensor:
    """Return normalized float32 random views of (N, C, H, W) uint8 images."""
    numbers = draw_numbers(len(images), augmentation, generator)
    if numbers is None:
        return normalize(images)
    return normalize(views_of(augmentation).take(images, numbers))


def draw_numbers(
    n: int, augmentation: AugmentationParams, generator: torch.Generator
) -> Tensor | None:
    """Return (n,) int64 random views; None, without a draw, where an image has a single view."""
    views = views_of(augmentation)
    if views.n_views == 1:
        return None
    return views.draw(n, generator)
