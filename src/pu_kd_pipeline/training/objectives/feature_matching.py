"""The objectives `attention` and `pu_critic`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

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
from pu_kd_pipeline.params.distillation import AttentionKDParams, CriticParams, PUCriticParams
from pu_kd_pipeline.training.batches import Batch
from pu_kd_pipeline.training.objectives.base import ObjectiveContext

logger = logging.getLogger(__name__)


class FeatureMatchingObjective:
    """Distillation with attention transfer and, for `pu_critic`, a critic of the features."""

    def __init__(
        self, context: ObjectiveContext, options: AttentionKDParams | PUCriticParams
    ) -> None:
        self._context = context
        self._attention = options.attention
        if self._attention.label_weight:
            _check_labels(context.labels, self._attention.label_weight)
        n_taps = self._attention.n_taps

        self._student = _with_last_taps(context.student, n_taps, context.device)
        self._teacher = _with_last_taps(context.teacher, n_taps, context.device)
        # Making an extractor puts its network into eval mode.
        self._student.train()
        image_shape = context.teacher.image_shape
        student_widths = _map_widths(self._student, image_shape, context.device)
        teacher_widths = _map_widths(self._teacher, image_shape, context.device)

        self.trainable: nn.Module = nn.Module()
        self.checkpointed: dict[str, Stateful] = {}
        self._critic: _CriticTerm | None = None
        if isinstance(options, PUCriticParams):
            self._critic = _CriticTerm(options.critic, context, student_widths, teacher_widths)
            self.trainable = self._critic.adapter
            self.checkpointed["critic"] = self._critic.training

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        context = self._context
        with autocast(context.params.compute, context.device):
            with torch.no_grad():
                teacher_maps, teacher_logits = self._teacher.maps(batch.images)
            student_maps, student_logits = self._student.maps(batch.images)
        gather = context.workers.gather
        student_logits = gather(student_logits.float())
        teacher_logits = gather(teacher_logits.float())
        if self._critic is None:
            criticism = _NO_CRITICISM
        else:
            criticism = self._critic.step(student_maps, teacher_maps)
        label_weight = self._attention.label_weight
        # Without weight no labels are passed, and the history has no column of their loss.
        labels = None
        if label_weight:
            labels = gather(context.labels[batch.rows])
        values = critic_distillation(
            student_logits,
            teacher_logits,
            student_maps,
            teacher_maps,
            criticism.student_scores,
            labels,
            temperature=context.params.temperature,
            alpha=1.0 - label_weight,
            attention_weight=self._attention.weight,
            critic_weight=criticism.weight,
            workers=context.workers,
        )
        return student_logits, teacher_logits, {**values, **criticism.metrics}

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        """Return whether the critic collapsed: results with it are then results without it."""
        if self._critic is None:
            return {}
        auc = history["critic_auc"].to_numpy()
        clamped_share = history["clamped_share"].to_numpy()
        reason = critic_collapse(auc, clamped_share)
        if reason:
            logger.warning("distillation: %s", reason)
        return {"critic_collapse": reason}


class _Criticism(NamedTuple):
    """What a step of the critic yields for the student's loss and for the history."""

    student_scores: Tensor | None
    metrics: dict[str, Tensor]
    weight: float
    """lambda, the weight of the student's loss under the critic."""


_NO_CRITICISM = _Criticism(None, {}, 0.0)


class _CriticTerm:
    """The critic between teacher and student features, and the adapter that makes them comparable.

    Args:
        params: the block `critic`.
        context: device and number of updates.
        student_widths: channels of the student's maps.
        teacher_widths: channels of the teacher's maps.
    """

    def __init__(
        self,
        params: CriticParams,
        context: ObjectiveContext,
        student_widths: Sequence[int],
        teacher_widths: Sequence[int],
    ) -> None:
        self._params = params
        self._n_updates = context.params.n_updates
        self._workers = context.workers
        # The adapter comes first: the order decides the random draws of both initializations.
        self.adapter = FeatureAdapter(student_widths, teacher_widths).to(context.device)
        n_features = sum(teacher_widths)
        critic = FeatureCritic(n_features, params.lipschitz).to(context.device)
        self.training = CriticTraining(
            critic,
            params.mode,
            learning_rate=params.learning_rate,
            workers=context.workers,
        )

    def step(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> _Criticism:
        """Train the critic for one step, then score the student's features with it."""
        student_maps = [feature_map.float() for feature_map in student_maps]
        teacher_maps = [feature_map.float() for feature_map in teacher_maps]
        gather = self._workers.gather
        student = gather(critic_features(student_maps, self.adapter))
        teacher = gather(critic_features(teacher_maps))

        # Counted by the critic, whose state is in the checkpoint, so that both schedules resume.
        n_steps = self.training.n_steps
        progress = n_steps / self._n_updates
        first, last = self._params.class_prior
        class_prior = class_prior_at(progress, first, last)
        weight = self._params.weight * ramp(n_steps, self._params.ramp_updates)

        metrics = self.training.step(teacher, student, class_prior)
        scores = self.training.critic(student)
        return _Criticism(scores, metrics, weight)


def _check_labels(labels: Tensor, label_weight: float) -> None:
    n_unlabeled = int((labels < 0).sum())
    if n_unlabeled:
        raise InputError(
            f"distillation.attention.label_weight is {label_weight}, and {n_unlabeled} of the "
            "training images have no label: set it to 0 where pool images are among them"
        )


def _with_last_taps(model: Model, n_taps: int, device: torch.device) -> FeatureExtractor:
    """Return the network with the last of its taps."""
    try:
        taps = model.extractor(device).taps
    except InputError as exc:
        # The caller adds which parameter the taps are for.
        raise ValueError(str(exc)) from exc
    if len(taps) < n_taps:
        raise ValueError(
            f"attention.n_taps is {n_taps}, and {model.card.architecture} has {len(taps)} taps: "
            "lower it"
        )
    return FeatureExtractor(model.network, taps[-n_taps:], model.image_shape)


def _map_widths(
    extractor: FeatureExtractor, image_shape: tuple[int, int, int], device: torch.device
) -> list[int]:
    """Return the number of channels at each tap, found with an image of zeros."""
    # In eval mode, so that the zeros do not enter the running statistics of BatchNorm.
    was_training = extractor.training
    extractor.eval()
    with torch.no_grad():
        images = torch.zeros(1, *image_shape, device=device)
        maps, _ = extractor.maps(images)
    extractor.train(was_training)

    widths = []
    for tap, feature_map in zip(extractor.taps, maps, strict=True):
        shape = tuple(feature_map.shape)
        # Images are square, and so are their maps; tokens and channels-last maps are not.
        if len(shape) != 4 or shape[2] != shape[3]:
            raise ValueError(f"the tap {tap!r} gives {shape}; attention is of maps (N, C, H, H)")
        widths.append(shape[1])
    return widths
