"""The objective `robust_kd`: distillation under the worst of many class weights."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pu_kd_pipeline.learning.loop import Stateful
from pu_kd_pipeline.learning.losses.distillation import robust_kd, robust_kl
from pu_kd_pipeline.params.distillation import RobustKDParams
from pu_kd_pipeline.training.batches import Batch
from pu_kd_pipeline.training.objectives.base import ObjectiveContext, student_and_teacher_logits


class RobustKDObjective:
    """The worst of the weighted losses; nothing but the student is trained.

    By the cross-entropy, as in Xu et al. 2019, in the weighting mode paper, and by the KL
    divergence in all others. A mixed image counts as labeled where the image is that lies below.
    """

    def __init__(self, context: ObjectiveContext, options: RobustKDParams) -> None:
        self._context = context
        self.trainable: nn.Module = nn.Module()
        self.checkpointed: dict[str, Stateful] = {}
        shift = context.weighting.logit_shift
        self._logit_shift: Tensor | None = None
        if shift is not None:
            self._logit_shift = torch.tensor(shift, dtype=torch.float32, device=context.device)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        context = self._context
        temperature = context.params.temperature
        vectors = context.weight_vectors
        student_logits, teacher_logits = student_and_teacher_logits(context, batch)
        if context.weighting.mode == "paper":
            values = robust_kd(student_logits, teacher_logits, vectors, temperature)
        else:
            values = robust_kl(
                student_logits,
                teacher_logits,
                vectors,
                temperature,
                context.workers.gather(context.is_labeled[batch.rows]),
                self._logit_shift,
            )
        return student_logits, teacher_logits, values

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        return {}
