"""The objectives `attention` and `pu_critic`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import autocast
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.critic import (
    CriticTraining,
    FeatureAdapter,
    FeatureCritic,
    critic_collapse,
    critic_features,
)
from pu_kd_pipeline.learning.features import FeatureExtractor
from pu_kd_pipeline.learning.loop import Stateful
from pu_kd_pipeline.learning.losses.critic import class_prior_at, critic_distillation, ramp
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.training.batches import Batch
from pu_kd_pipeline.training.objectives.base import ObjectiveContext

logger = logging.getLogger(__name__)


class FeatureMatchingObjective:
    """`attention` and `pu_critic`: distillation with attention transfer, and in the latter a critic of features."""

    def __init__(self, setting: ObjectiveContext) -> None:
        params = setting.params
        assert params.attention is not None
        self._setting, self._attention = setting, params.attention
        self._critic_params = params.critic if params.objective == "pu_critic" else None
        is_unlabeled = setting.labels < 0
        if params.attention.label_weight and bool(is_unlabeled.any()):
            raise InputError(
                f"distillation.attention.label_weight is {params.attention.label_weight}, and "
                f"{int(is_unlabeled.sum())} of the training images have no label: set it to 0 where pool images are "
                "among them"
            )
        self._student = _with_last_taps(setting.student, params.attention.n_taps, setting.device)
        self._teacher = _with_last_taps(setting.teacher, params.attention.n_taps, setting.device)
        self._student.train()
        widths = [self._widths(extractor) for extractor in (self._student, self._teacher)]
        self.beside: nn.Module = nn.Module()
        self.parts: dict[str, Stateful] = {}
        self._adapter: FeatureAdapter | None = None
        self._training: CriticTraining | None = None
        if self._critic_params is not None:
            self._adapter = FeatureAdapter(*widths).to(setting.device)
            self.beside = self._adapter
            critic = FeatureCritic(sum(widths[1]), self._critic_params.lipschitz).to(setting.device)
            self._training = CriticTraining(
                critic, self._critic_params.mode, learning_rate=self._critic_params.learning_rate
            )
            self.parts["critic"] = self._training

    def _widths(self, extractor: FeatureExtractor) -> list[int]:
        was_training = extractor.training
        with torch.no_grad():
            images = torch.zeros(1, *self._setting.teacher.image_shape, device=self._setting.device)
            maps, _ = extractor.eval().maps(images)
        extractor.train(was_training)
        for tap, shape in zip(
            extractor.taps, (tuple(feature_map.shape) for feature_map in maps), strict=True
        ):
            if len(shape) != 4 or shape[2] != shape[3]:  # images are square, and so are their maps
                raise ValueError(
                    f"the tap {tap!r} gives {shape}; attention is of maps (N, C, H, H)"
                )
        return [feature_map.shape[1] for feature_map in maps]

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        setting, params = self._setting, self._setting.params
        with autocast(params.compute, setting.device):
            with torch.no_grad():
                teacher_maps, teacher_logits = self._teacher.maps(batch.images)
            student_maps, student_logits = self._student.maps(batch.images)
        student_logits, teacher_logits = student_logits.float(), teacher_logits.float()
        scores, facts, critic_weight = self._criticized(student_maps, teacher_maps)
        label_weight = self._attention.label_weight
        values = critic_distillation(
            student_logits,
            teacher_logits,
            student_maps,
            teacher_maps,
            scores,
            setting.labels[batch.rows] if label_weight else None,
            temperature=params.temperature,
            alpha=1.0 - label_weight,
            attention_weight=self._attention.weight,
            critic_weight=critic_weight,
        )
        return student_logits, teacher_logits, {**values, **facts}

    def _criticized(
        self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]
    ) -> tuple[Tensor | None, dict[str, Tensor], float]:
        """Take the critic's step; return its scores of the student's features, what it says of itself, and lambda."""
        if self._training is None or self._critic_params is None:
            return None, {}, 0.0
        student = critic_features(
            [feature_map.float() for feature_map in student_maps], self._adapter
        )
        teacher = critic_features([feature_map.float() for feature_map in teacher_maps])
        n_updates = self._training.n_steps
        progress = n_updates / self._setting.params.n_updates
        facts = self._training.step(
            teacher, student, class_prior_at(progress, *self._critic_params.class_prior)
        )
        weight = self._critic_params.weight * ramp(n_updates, self._critic_params.ramp_updates)
        return self._training.critic(student), facts, weight

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        """Say so where the critic was of no use: results with it are then results without it."""
        if self._training is None:
            return {}
        reason = critic_collapse(
            history["critic_auc"].to_numpy(), history["clamped_share"].to_numpy()
        )
        if reason:
            logger.warning("distillation: %s", reason)
        return {"critic_collapse": reason}


def _with_last_taps(model: Model, n_taps: int, device: torch.device) -> FeatureExtractor:
    """Return the network with the last of its taps."""
    try:
        taps = model.extractor(device).taps
    except InputError as exc:  # which does not know what the taps are for
        raise ValueError(str(exc)) from exc
    if len(taps) < n_taps:
        raise ValueError(
            f"attention.n_taps is {n_taps}, and {model.card.architecture} has {len(taps)} taps: lower it"
        )
    return FeatureExtractor(model.network, taps[-n_taps:], model.image_shape)
