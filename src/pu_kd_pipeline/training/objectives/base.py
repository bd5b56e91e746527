"""The interface between an objective and the training loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import autocast
from pu_kd_pipeline.learning.loop import Stateful
from pu_kd_pipeline.learning.workers import ALONE, Workers
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.training.batches import Batch
from pu_kd_pipeline.training.weighting import Weighting

# A callable, because the logits come from the network or from the cache.
TeacherLogits = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class ObjectiveContext:
    """The inputs that every objective is made from.

    Attributes:
        student: in training mode, on the device.
        teacher: in eval mode, on the device.
        teacher_logits: returns the teacher's logits for a batch, computed or cached.
        weight_vectors: (n, K) float32 on the device.
        weighting: how the weight vectors are used.
        is_labeled: (N,) bool on the device, which training images are labeled ones.
        labels: (N,) int64 on the device, the classes of the training images, -1 where unknown.
        params: the block `distillation`.
        device: where networks and tensors live.
        cleanup: closed after training; removes the hooks that the objective sets.
        workers: that train together. A batch is this worker's part of the whole one, and losses
            are those of the whole one: what networks return is gathered before.
    """

    student: Model
    teacher: Model
    teacher_logits: TeacherLogits
    weight_vectors: Tensor
    weighting: Weighting
    is_labeled: Tensor
    labels: Tensor
    params: DistillationParams
    device: torch.device
    cleanup: ExitStack
    workers: Workers = ALONE


class Objective(Protocol):
    """What the training loop calls.

    Attributes:
        trainable: modules that the student's optimizer trains in addition to the student.
        checkpointed: by name, everything else that changes during training; part of a checkpoint.
    """

    trainable: nn.Module
    checkpointed: dict[str, Stateful]

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return student logits, teacher logits and losses, of the whole batch.

        The loss "loss" is minimized; the others are averaged into the history.
        """

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        """Restore the student's own architecture and return entries for its model card."""


@dataclass(frozen=True)
class ObjectiveType:
    """One entry of `OBJECTIVES`: how an objective is made, and what the code around it must know.

    Attributes:
        make: returns the objective for a context and the objective's own parameters, a member of
            `params.distillation.ObjectiveParams`. It may raise a ValueError.
        reads_teacher_logits_only: nothing else of the teacher is read, so that its logits may come
            from the teacher cache.
        needs_class_weights: the weight vectors are read; estimating them takes labeled images.
    """

    make: Callable[[ObjectiveContext, Any], Objective]
    reads_teacher_logits_only: bool
    needs_class_weights: bool


def student_and_teacher_logits(context: ObjectiveContext, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the (N, K) float32 logits of student and teacher for the whole batch."""
    teacher_logits = context.teacher_logits(batch)
    with autocast(context.params.compute, context.device):
        student_logits: Tensor = context.student.network(batch.images)
    # Losses are computed in float32 also where autocast made the logits bf16.
    gather = context.workers.gather
    return gather(student_logits.float()), gather(teacher_logits)
