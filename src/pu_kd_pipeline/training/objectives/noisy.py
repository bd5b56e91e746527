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
from pu_kd_pipeline.params.distillation import NoisyKDParams
from pu_kd_pipeline.training.batches import Batch
from pu_kd_pipeline.training.objectives.base import ObjectiveContext, student_and_teacher_logits


class NoisyKDObjective:
    """Distillation, plus cross-entropy with the teacher's classes through a learned noise matrix.

    The matrix has its own Adam, as in the released code. Both descend on the loss of the same
    batch; the student's loss uses the matrix from before its step.
    """

    def __init__(self, context: ObjectiveContext, options: NoisyKDParams) -> None:
        params = options.noise_matrix
        self._context = context
        self._pseudo_label_weight = params.pseudo_label_weight
        self._matrix = NoiseMatrix(
            context.teacher.n_classes, params.diagonal, learns_diagonal=params.learns_diagonal
        ).to(context.device)
        # Its own Adam, also where the student's optimizer is SGD.
        self._optimizer = make_optimizer(
            self._matrix,
            algorithm="adam",
            learning_rate=params.learning_rate,
            momentum=0.9,
            weight_decay=0.0,
        )
        self.trainable: nn.Module = nn.Module()
        self.checkpointed: dict[str, Stateful] = {
            "noise_matrix": self._matrix,
            "noise_optimizer": self._optimizer,
        }

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        context = self._context
        student_logits, teacher_logits = student_and_teacher_logits(context, batch)
        matrix = self._matrix()
        values = noisy_kd_loss(
            student_logits,
            teacher_logits,
            matrix.detach(),
            context.params.temperature,
            self._pseudo_label_weight,
        )
        # The loss above holds the old matrix, so that its step may come before the student's.
        matrix_loss = pseudo_label_loss(student_logits.detach(), teacher_logits, matrix)
        self._optimizer.zero_grad(set_to_none=True)
        matrix_loss.backward()
        # Equal but for the order of their sums, which not every device fixes.
        context.workers.average_gradients(self._matrix.parameters())
        self._optimizer.step()
        return student_logits, teacher_logits, values

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        return {}
