"""Objectives that read logits only and have no options of their own, such as `kd`."""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import Tensor, nn

from pu_kd_pipeline.learning.loop import Stateful
from pu_kd_pipeline.learning.losses.distillation import LogitLoss
from pu_kd_pipeline.params.distillation import (
    KDParams,
    LogitMSEParams,
    StandardizedKDParams,
)
from pu_kd_pipeline.training.batches import Batch
from pu_kd_pipeline.training.objectives.base import ObjectiveContext, student_and_teacher_logits


class LogitObjective:
    """A loss of logits, weight vectors and temperature; nothing but the student is trained."""

    def __init__(
        self,
        loss: LogitLoss,
        context: ObjectiveContext,
        options: KDParams | StandardizedKDParams | LogitMSEParams,
    ) -> None:
        self._loss = loss
        self._context = context
        # No option: the loss reads temperature and weight vectors, which the context has.
        self.trainable: nn.Module = nn.Module()
        self.checkpointed: dict[str, Stateful] = {}

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        context = self._context
        params = context.params
        student_logits, teacher_logits = student_and_teacher_logits(context, batch)
        values = self._loss(
            student_logits, teacher_logits, context.weight_vectors, params.temperature
        )
        return student_logits, teacher_logits, values

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        return {}
