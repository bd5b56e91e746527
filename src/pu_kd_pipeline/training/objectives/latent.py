"""The objective `latent` (S3, a reconstruction)."""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import Tensor, nn

from pu_kd_pipeline.learning.loop import Stateful
from pu_kd_pipeline.learning.losses.latent import latent_loss
from pu_kd_pipeline.learning.penultimate import (
    PenultimateTap,
    fold_shared_head,
    penultimate_adapter,
    share_head,
)
from pu_kd_pipeline.params.distillation import LatentKDParams
from pu_kd_pipeline.training.batches import Batch
from pu_kd_pipeline.training.objectives.base import ObjectiveContext, student_and_teacher_logits


class LatentObjective:
    """Centered logits, penultimate features of unit length, and optionally the KL divergence."""

    def __init__(self, context: ObjectiveContext, options: LatentKDParams) -> None:
        student = context.student.network
        teacher = context.teacher.network
        n_classes = context.teacher.n_classes
        self._context = context
        self._params = options.latent
        if self._params.shared_head:
            # The student's own layers already end in the teacher's feature space.
            share_head(student, teacher, n_classes)
            self.trainable: nn.Module = nn.Identity()
        else:
            self.trainable = penultimate_adapter(student, teacher, n_classes)
        self.trainable.to(context.device)
        self.checkpointed: dict[str, Stateful] = {}
        self._student_tap = context.cleanup.enter_context(PenultimateTap(student, n_classes))
        self._teacher_tap = context.cleanup.enter_context(PenultimateTap(teacher, n_classes))

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        params = self._params
        # The forward passes fill the taps, so that they come before the features are read.
        student_logits, teacher_logits = student_and_teacher_logits(self._context, batch)
        gather = self._context.workers.gather
        student_features = gather(self.trainable(self._student_tap.features.float()))
        teacher_features = gather(self._teacher_tap.features.float())
        values = latent_loss(
            student_logits,
            teacher_logits,
            student_features,
            teacher_features,
            logits_weight=params.logits_weight,
            penultimate_weight=params.penultimate_weight,
            kl_weight=params.kl_weight,
            temperature=self._context.params.temperature,
        )
        return student_logits, teacher_logits, values

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        if self._params.shared_head:
            fold_shared_head(self._context.student.network)
        return {}
