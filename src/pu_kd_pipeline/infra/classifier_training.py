"""Training a classifier on labeled images, where an experiment needs a teacher of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from pu_kd_pipeline.infra.checkpoints import decided_by, keeping
from pu_kd_pipeline.infra.devices import autocast, prepare_device
from pu_kd_pipeline.infra.image_batches import ImageRows, normalisation, read_ahead
from pu_kd_pipeline.infra.image_store import ImageStore
from pu_kd_pipeline.infra.model_files import Model, new_teacher
from pu_kd_pipeline.infra.progress import watch
from pu_kd_pipeline.learning.augmentation import Normalise, draw_views, n_views, random_views, take_views
from pu_kd_pipeline.learning.relatedness import preferential_batches
from pu_kd_pipeline.learning.training import TrainingState, fit, make_optimizer, seeded, shuffled_batches
from pu_kd_pipeline.params import AugmentationParams, TeacherParams, TeacherTrainingParams


def train_classifier(
    teacher: TeacherParams, images: ImageStore, params: TeacherTrainingParams
) -> tuple[Model, pd.DataFrame]:
    """Return a classifier trained by cross-entropy, and the history of its training.

    Raises:
        InputError: the loss is not finite, or memory runs out.
    """
    device = prepare_device(params.compute)

    def about() -> dict[str, Any]:
        return decided_by(params, device, teacher=teacher, images=images.fingerprint)

    with keeping("teacher", about) as keeper, seeded(params.seed):
        model = new_teacher(teacher)
        network = model.network.to(device).train()
        labels = torch.from_numpy(images.index["label"].to_numpy(dtype=np.int64)).to(device)

        def step(batch: Batch) -> dict[str, Tensor]:
            with autocast(params.compute, device):
                logits = network(batch.images)
            loss = functional.cross_entropy(logits.float(), labels[batch.rows])
            return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels[batch.rows]).float().mean()}

        optimizer = make_optimizer(network, **params.optimizer.model_dump(exclude={"schedule"}))
        state = TrainingState(teacher=network, optimizer=optimizer)
        keeper.restore(state)
        batches = augmented_batches(
            ImageRows([(images, np.arange(len(images)))], params.compute),
            normalisation(model, device),
            params.augmentation,
            params.batch_size,
            params.seed,
            n_passed=state.update,
        )
        records = fit(
            step,
            batches,
            optimizer,
            n_updates=params.n_updates,
            record_every=params.record_every,
            schedule=params.optimizer.schedule,
            state=state,
            keeper=keeper,
        )
        n_records = -(-params.n_updates // params.record_every)
        history = pd.DataFrame(list(watch(records, name="teacher", total=n_records)))
    return Model(network.cpu().eval(), model.card), history


class Batch(NamedTuple):
    """A batch of training images, on the device."""

    images: Tensor
    """(N, C, H, W) float32, normalised random views."""
    rows: Tensor
    """(N,) int64, the positions that they were taken from."""
    views: Tensor
    """(N,) int64, which view of its image each is, see `augmentation.take_views`."""


Draw = Callable[[Tensor, torch.Generator], Tensor]


def augmented_batches(
    rows: ImageRows,
    normalise: Normalise,
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
        Batch(normalise(take_views(rows.batch(indices), views, padding=padding, flip=flip)), indices, views)
        for indices, views in itertools.islice(drawn, n_passed, None)
    )
    return batches if rows.is_resident else read_ahead(batches)


def augmented(
    images: Tensor, normalise: Normalise, augmentation: AugmentationParams, generator: torch.Generator
) -> Tensor:
    """Return normalised float32 random views of (N, C, H, W) uint8 images."""
    padding, flip = augmentation.padding_px, augmentation.horizontal_flip
    return normalise(random_views(images, padding=padding, flip=flip, generator=generator))
