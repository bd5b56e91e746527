"""The objective `noisy_kd` (DFND, Chen et al. 2021)."""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import Tensor, nn

from pu_kd_pipeline.learning.loop import Stateful, make_optimizer
from pu_kd_pipeline.learning.losses.noise_matrix import (
    NoiseMatrix,
    noisy_kd_loss,
    pseudo_label_loss,
)
from pu_kd_pipeline.training.batches import Batch
from pu_kd_pipeline.training.objectives.base import ObjectiveContext, student_and_teacher_logits


class NoisyKDObjective:
    """`noisy_kd`: distillation, and cross-entropy with the teacher's classes through a matrix that learns their noise.

    The matrix has an Adam of its own, as in the released code: it descends on a batch's loss, the student with it on
    the matrix as it was.
    """

    def __init__(self, setting: ObjectiveContext) -> None:
        params = setting.params.noise_matrix
        assert params is not None
        self._setting, self._params = setting, params
        self._matrix = NoiseMatrix(
            setting.teacher.n_classes, params.diagonal, learns_diagonal=params.learns_diagonal
        ).to(setting.device)
        self._optimizer = make_optimizer(
            self._matrix,
            algorithm="adam",
            learning_rate=params.learning_rate,
            momentum=0.9,
            weight_decay=0.0,
        )
        self.beside: nn.Module = nn.Module()
        self.parts: dict[str, Stateful] = {
            "noise_matrix": self._matrix,
            "noise_optimizer": self._optimizer,
        }

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        setting, params = self._setting, self._setting.params
        student_logits, teacher_logits = student_and_teacher_logits(setting, batch)
        weight = self._params.pseudo_label_weight
        matrix = self._matrix()
        values = noisy_kd_loss(
            student_logits, teacher_logits, matrix.detach(), params.temperature, weight
        )
        self._optimizer.zero_grad(set_to_none=True)
        pseudo_label_loss(student_logits.detach(), teacher_logits, matrix).backward()
        self._optimizer.step()
        return student_logits, teacher_logits, values

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        return {}
