"""Training a teacher, for experiments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from pu_kd_pipeline.devices import autocast, prepare_device
from pu_kd_pipeline.images.batches import ImageRows, normalization
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.loop import TrainingState, fit, make_optimizer, seeded
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.progress import watch
from pu_kd_pipeline.training.batches import Batch, augmented_batches
from pu_kd_pipeline.training.checkpoints import decided_by, keeping


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
            return {
                "loss": loss,
                "accuracy": (logits.argmax(dim=1) == labels[batch.rows]).float().mean(),
            }

        optimizer = make_optimizer(network, **params.optimizer.model_dump(exclude={"schedule"}))
        state = TrainingState(teacher=network, optimizer=optimizer)
        keeper.restore(state)
        batches = augmented_batches(
            ImageRows([(images, np.arange(len(images)))], params.compute),
            normalization(model, device),
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
