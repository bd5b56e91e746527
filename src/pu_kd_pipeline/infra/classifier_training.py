"""Training a classifier on labeled images, where an experiment needs a teacher of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from pu_kd_pipeline.infra.devices import autocast, prepare_device
from pu_kd_pipeline.infra.image_batches import ImageRows, normalisation
from pu_kd_pipeline.infra.image_store import ImageStore
from pu_kd_pipeline.infra.model_files import Model, new_teacher
from pu_kd_pipeline.infra.progress import watch
from pu_kd_pipeline.learning.augmentation import Normalise, random_views
from pu_kd_pipeline.learning.training import fit, make_optimizer, seeded, shuffled_batches
from pu_kd_pipeline.params import AugmentationParams, TeacherParams, TeacherTrainingParams


def train_classifier(
    teacher: TeacherParams, images: ImageStore, params: TeacherTrainingParams
) -> tuple[Model, pd.DataFrame]:
    """Return a classifier trained by cross-entropy, and the history of its training."""
    device = prepare_device(params.compute)
    with seeded(params.seed):
        model = new_teacher(teacher)
        network = model.network.to(device).train()
        labels = torch.from_numpy(images.index["label"].to_numpy(dtype=np.int64)).to(device)

        def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            views, rows = batch
            with autocast(params.compute, device):
                logits = network(views)
            loss = functional.cross_entropy(logits.float(), labels[rows])
            return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels[rows]).float().mean()}

        rows = ImageRows([(images, np.arange(len(images)))], params.compute)
        batches = augmented_batches(
            rows, normalisation(model, device), params.augmentation, params.batch_size, params.seed
        )
        optimizer = make_optimizer(network, **params.optimizer.model_dump(exclude={"schedule"}))
        records = fit(
            step,
            batches,
            optimizer,
            n_updates=params.n_updates,
            record_every=params.record_every,
            schedule=params.optimizer.schedule,
        )
        n_records = -(-params.n_updates // params.record_every)
        history = pd.DataFrame(list(watch(records, name="teacher", total=n_records)))
    return Model(network.cpu().eval(), model.card), history


def augmented_batches(
    rows: ImageRows, normalise: Normalise, augmentation: AugmentationParams, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for ever normalised random views and the (N,) int64 positions they were taken from, on the device."""
    generator = torch.Generator(rows.device).manual_seed(seed)
    for indices in shuffled_batches(len(rows), batch_size, generator):
        yield augmented(rows.batch(indices), normalise, augmentation, generator), indices


def augmented(
    images: Tensor, normalise: Normalise, augmentation: AugmentationParams, generator: torch.Generator
) -> Tensor:
    """Return normalised float32 random views of (N, C, H, W) uint8 images."""
    padding, flip = augmentation.padding_px, augmentation.horizontal_flip
    return normalise(random_views(images, padding=padding, flip=flip, generator=generator))
