"""Objectives that read logits alone."""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import Tensor, nn

from pu_kd_pipeline.learning.loop import Stateful
from pu_kd_pipeline.learning.losses.distillation import OBJECTIVES
from pu_kd_pipeline.training.batches import Batch
from pu_kd_pipeline.training.objectives.base import ObjectiveContext, student_and_teacher_logits


class LogitObjective:
    """An objective that reads logits alone: `kd` and `robust_kd`."""

    def __init__(self, setting: ObjectiveContext) -> None:
        self._setting, self._loss = setting, OBJECTIVES[setting.params.objective]
        self.beside: nn.Module = nn.Module()
        self.parts: dict[str, Stateful] = {}

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        setting, params = self._setting, self._setting.params
        student_logits, teacher_logits = student_and_teacher_logits(setting, batch)
        values = self._loss(
            student_logits, teacher_logits, setting.weight_vectors, params.temperature
        )
        return student_logits, teacher_logits, values

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        return {}
