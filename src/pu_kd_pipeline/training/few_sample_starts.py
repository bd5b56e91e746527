"""The initial students of FitNet and FSKD, which plain distillation then trains further."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import autocast, prepare_device
from pu_kd_pipeline.images.batches import ImageRows, normalization
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.few_samples import (
    align,
    hint_adapter,
    hint_loss,
    record_outputs,
)
from pu_kd_pipeline.learning.loop import fit, make_optimizer, seeded
from pu_kd_pipeline.learning.pruning import LayerPair, prune_teacher_into
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.progress import watch
from pu_kd_pipeline.training.batches import Batch, augmented_batches
from pu_kd_pipeline.training.checkpoints import explain_training_errors

State = dict[str, Tensor]


def fitnet_start(
    teacher: Model, images: ImageStore, params: DistillationParams, n_updates: int
) -> State:
    """Return a student whose middle layer was trained to predict the teacher's middle layer.

    The prediction goes through a 1x1 convolution. Hint and guided layer are the middle taps of the
    two networks (Romero et al. 2015, sec. 2.2: the middle layers).

    Args:
        teacher: the network to compress.
        images: the labeled images.
        params: student, optimizer and batches.
        n_updates: updates that are spent on the hints.
    """
    device = prepare_device(params.compute)
    with explain_training_errors("hints"), seeded(params.seed):
        model = _new_student(teacher, params)
        # Before the modes are set: a tap is found with an extractor, which puts its network into
        # eval mode.
        guided_layer = _middle_tap(model)
        hint_layer = _middle_tap(teacher)

        student = model.network.to(device).train()
        teacher_network = teacher.network.to(device).eval()
        batches = augmented_batches(
            ImageRows([(images, np.arange(len(images)))], params.compute),
            normalization(teacher, device, images),
            params.augmentation,
            params.batch_size,
            params.seed,
        )
        with (
            record_outputs(student, guided_layer) as guided,
            record_outputs(teacher_network, hint_layer) as hints,
        ):
            maps = _MiddleMaps(student, teacher_network, guided, hints, params.compute)
            # The first batch only shows the shapes of the maps.
            adapter = hint_adapter(*maps(next(batches).images)).to(device)
            trained = nn.ModuleList([student, adapter])
            optimizer = make_optimizer(trained, **params.optimizer.model_dump(exclude={"schedule"}))
            records: Iterator[dict[str, float]] = fit(
                partial(_hint_step, maps, adapter),
                batches,
                optimizer,
                n_updates=n_updates,
                record_every=params.record_every,
                schedule=params.optimizer.schedule,
            )
            n_records = -(-n_updates // params.record_every)
            # Nothing reads these records; going through them is what trains.
            deque(watch(records, name="hints", total=n_records), maxlen=0)
    return student.cpu().state_dict()


@dataclass(frozen=True)
class _MiddleMaps:
    """Runs both networks, and returns the maps of their middle layers.

    Attributes:
        student: in training mode.
        teacher: in eval mode.
        guided: collects the student's maps, see `record_outputs`.
        hints: collects the teacher's maps.
        compute: precision.
    """

    student: nn.Module
    teacher: nn.Module
    guided: list[Tensor]
    hints: list[Tensor]
    compute: ComputeParams

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.guided.clear()
        self.hints.clear()
        with autocast(self.compute, images.device):
            with torch.no_grad():
                self.teacher(images)
            self.student(images)
        return self.guided[0], self.hints[0]


def _hint_step(maps: _MiddleMaps, adapter: nn.Module, batch: Batch) -> dict[str, Tensor]:
    guided, hint = maps(batch.images)
    return {"loss": hint_loss(guided, hint, adapter)}


def fskd_start(teacher: Model, images: ImageStore, params: DistillationParams) -> State:
    """Return the teacher pruned to the student's widths and aligned, layer by layer, on images."""
    device = prepare_device(params.compute)
    student, pairs = _pruned(teacher, params)
    student.to(device)
    teacher_network = teacher.network.to(device).eval()

    # All images at once: FSKD solves a least-squares problem per layer, and labeled images are few.
    pixels = images.read(np.arange(len(images)))
    normalize = normalization(teacher, device, images)
    views = normalize(torch.from_numpy(pixels).to(device))
    align(student, pairs, teacher_network, views)
    return student.cpu().state_dict()


def check_fskd(teacher: Model, params: DistillationParams) -> None:
    """Raise a ValueError if the student cannot be made by pruning the teacher."""
    _pruned(teacher, params)


def _pruned(teacher: Model, params: DistillationParams) -> tuple[nn.Module, list[LayerPair]]:
    student = _new_student(teacher, params).network
    # On the CPU: the teacher may still be on another device, from the training before.
    teacher_network = teacher.network.cpu()
    pairs = prune_teacher_into(student, teacher_network, teacher.image_shape)
    return student, pairs


def _new_student(teacher: Model, params: DistillationParams) -> Model:
    return new_student(teacher, params.student_architecture, params.student_options, {})


def _middle_tap(model: Model) -> str:
    taps = model.extractor().taps
    middle = len(taps) // 2
    return taps[middle]
