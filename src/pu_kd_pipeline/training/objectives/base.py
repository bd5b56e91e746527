"""What an objective is made from, and what the training loop asks of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import autocast
from pu_kd_pipeline.learning.loop import Stateful
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.training.batches import Batch

TeacherLogits = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class ObjectiveContext:
    """What an objective is made from.

    Attributes:
        student: in training mode, on the device.
        teacher: in eval mode, on the device.
        teacher_logits: asks or remembers the teacher's logits of a batch.
        weight_vectors: (n, K) float32 on the device.
        labels: (N,) int64 on the device, the classes of the training images, -1 where unknown.
        params: of the student.
        device: of all of it.
    """

    student: Model
    teacher: Model
    teacher_logits: TeacherLogits
    weight_vectors: Tensor
    labels: Tensor
    params: DistillationParams
    device: torch.device


class Objective(Protocol):
    """What the training loop asks of an objective.

    Attributes:
        beside: what the student's optimizer trains along with the student, and no part of it.
        parts: by name, what else changes while the student is trained; a checkpoint holds it.
    """

    beside: nn.Module
    parts: dict[str, Stateful]

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return student logits, teacher logits and the losses; "loss" is minimized, the others are for the history."""

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        """Bring the student into its own architecture again, and return what its card should say."""


def student_and_teacher_logits(setting: ObjectiveContext, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the (N, K) float32 logits of student and teacher."""
    teacher_logits = setting.teacher_logits(batch)
    with autocast(setting.params.compute, setting.device):
        student_logits = setting.student.network(batch.images).float()
    return student_logits, teacher_logits
