"""The objective `latent` (S3, a reconstruction)."""

from __future__ import annotations

from contextlib import ExitStack
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
from pu_kd_pipeline.training.batches import Batch
from pu_kd_pipeline.training.objectives.base import ObjectiveContext, student_and_teacher_logits


class LatentObjective:
    """`latent`: centered logits, penultimate features of unit length, and optionally the KL divergence."""

    def __init__(self, setting: ObjectiveContext, stack: ExitStack) -> None:
        params = setting.params.latent
        assert params is not None
        self._setting, self._params = setting, params
        self.parts: dict[str, Stateful] = {}
        networks, n_classes = (
            (setting.student.network, setting.teacher.network),
            setting.teacher.n_classes,
        )
        if params.shared_head:
            share_head(*networks, n_classes)
            self.beside: nn.Module = nn.Identity()
        else:
            self.beside = penultimate_adapter(*networks, n_classes)
        self._student, self._teacher = (
            stack.enter_context(PenultimateTap(network, n_classes)) for network in networks
        )
        self.beside.to(setting.device)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        setting, params = self._setting, self._params
        student_logits, teacher_logits = student_and_teacher_logits(setting, batch)
        values = latent_loss(
            student_logits,
            teacher_logits,
            self.beside(self._student.features.float()),
            self._teacher.features.float(),
            logits_weight=params.logits_weight,
            penultimate_weight=params.penultimate_weight,
            kl_weight=params.kl_weight,
            temperature=setting.params.temperature,
        )
        return student_logits, teacher_logits, values

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        if self._params.shared_head:
            fold_shared_head(self._setting.student.network)
        return {}
