"""Training a teacher, for experiments."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from pu_kd_pipeline.devices import autocast, prepare_device
from pu_kd_pipeline.images.batches import ImageRows, normalization
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.loop import TrainingState, fit, make_optimizer, seeded
from pu_kd_pipeline.learning.workers import Workers
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.progress import watch
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint
from pu_kd_pipeline.training.batches import Batch, augmented_batches
from pu_kd_pipeline.training.checkpoints import checkpointing, training_identity
from pu_kd_pipeline.training.worker_group import joint_training, shared_batch


def train_classifier(
    teacher: TeacherParams, images: ImageStore, params: TeacherTrainingParams
) -> tuple[Model, pd.DataFrame]:
    """Return a classifier trained by cross-entropy, and the history of its training.

    Raises:
        InputError: the loss is not finite, or memory runs out.
    """
    device = prepare_device(params.compute)
    workers = shared_batch(params.batch_size, "teacher_training.batch_size")

    def identity() -> dict[str, Any]:
        return training_identity(
            params,
            device,
            teacher=teacher,
            images=images.fingerprint,
            code=maker_fingerprint(train_classifier),
        )

    with ExitStack() as cleanup:
        checkpointer = cleanup.enter_context(checkpointing("teacher", identity))
        cleanup.enter_context(seeded(params.seed))
        model = new_teacher(teacher)
        network = model.network.to(device).train()
        joint = joint_training(network, model.image_shape, workers, "teacher_training")
        cleanup.enter_context(joint)
        truth = images.index["label"].to_numpy(dtype=np.int64)
        labels = torch.from_numpy(truth).to(device)

        optimizer = make_optimizer(network, **params.optimizer.model_dump(exclude={"schedule"}))
        # The names of the parts are the keys of a checkpoint.
        state = TrainingState(teacher=network, optimizer=optimizer)
        # Restored before the batches are made, which start after the updates that are done.
        checkpointer.restore(state)
        rows = np.arange(len(images))
        batches = augmented_batches(
            ImageRows([(images, rows)], params.compute),
            normalization(model, device, images),
            params.augmentation,
            params.batch_size,
            params.seed,
            n_passed=state.update,
            workers=workers,
        )

        records = fit(
            partial(_step, network, labels, params.compute, workers),
            batches,
            optimizer,
            n_updates=params.n_updates,
            record_every=params.record_every,
            schedule=params.optimizer.schedule,
            state=state,
            checkpointer=checkpointer,
            workers=workers,
        )
        n_records = -(-params.n_updates // params.record_every)
        history = pd.DataFrame(list(watch(records, name="teacher_training", total=n_records)))
    return Model(network.cpu().eval(), model.card), history


def _step(
    network: nn.Module, labels: Tensor, compute: ComputeParams, workers: Workers, batch: Batch
) -> dict[str, Tensor]:
    with autocast(compute, labels.device):
        own_logits: Tensor = network(batch.images)

    # In float32 also under autocast: bf16 has too few digits for the logarithm.
    logits = workers.gather(own_logits.float())
    labels_of_batch = workers.gather(labels[batch.rows])
    loss = functional.cross_entropy(logits, labels_of_batch)
    classes = logits.argmax(dim=1)
    accuracy = (classes == labels_of_batch).float().mean()
    return {"loss": loss, "accuracy": accuracy}
