"""The objectives of `distillation.objective` as they are trained: their losses, and what learns beside the student.

`kd` and `robust_kd` (Xu et al. 2019) and `noisy_kd` (DFND, Chen et al. 2021) read the teacher's logits, which may have
been remembered. `latent` (Begon & Geurts 2022), `attention` (Zagoruyko & Komodakis 2017) and `pu_critic` (Jiang, Tang &
Yu 2023) look inside both networks, so the teacher is asked at every step. The losses themselves are in `learning`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor, nn

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.infra.classifier_training import Batch
from pu_kd_pipeline.infra.devices import autocast
from pu_kd_pipeline.infra.model_files import Model
from pu_kd_pipeline.learning.critic import (
    CriticTraining,
    FeatureAdapter,
    FeatureCritic,
    class_prior_at,
    critic_collapse,
    critic_distillation,
    critic_features,
    ramp,
)
from pu_kd_pipeline.learning.distillation import OBJECTIVES
from pu_kd_pipeline.learning.features import FeatureExtractor
from pu_kd_pipeline.learning.latent import (
    PenultimateTap,
    fold_shared_head,
    latent_loss,
    penultimate_adapter,
    share_head,
)
from pu_kd_pipeline.learning.noise_matrix import NoiseMatrix, noisy_kd_loss, pseudo_label_loss
from pu_kd_pipeline.learning.training import Stateful, make_optimizer
from pu_kd_pipeline.params import DistillationParams

logger = logging.getLogger(__name__)

TeacherLogits = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Setting:
    """What an objective is made from.

    Attributes:
        student: in training mode, on the device.
        teacher: in eval mode, on the device.
        teacher_logits: asks or remembers the teacher's logits of a batch.
        weight_vectors: (n, K) float32 on the device.
        labels: (N,) int64 on the device, the classes of the training images, -1 where unknown.
        params: of the student.
        device: of all of it.
    """

    student: Model
    teacher: Model
    teacher_logits: TeacherLogits
    weight_vectors: Tensor
    labels: Tensor
    params: DistillationParams
    device: torch.device


class Objective(Protocol):
    """What the training loop asks of an objective.

    Attributes:
        beside: what the student's optimiser trains along with the student, and no part of it.
        parts: by name, what else changes while the student is trained; a checkpoint holds it.
    """

    beside: nn.Module
    parts: dict[str, Stateful]

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return student logits, teacher logits and the losses; "loss" is minimised, the others are for the history."""

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        """Bring the student into its own architecture again, and return what its card should say."""


class OnLogits:
    """An objective that reads logits alone: `kd` and `robust_kd`."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._loss = setting, OBJECTIVES[setting.params.objective]
        self.beside: nn.Module = nn.Module()
        self.parts: dict[str, Stateful] = {}

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        setting, params = self._setting, self._setting.params
        student_logits, teacher_logits = _logits(setting, batch)
        values = self._loss(student_logits, teacher_logits, setting.weight_vectors, params.temperature)
        return student_logits, teacher_logits, values

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        return {}


class NoisyKD:
    """`noisy_kd`: distillation, and cross-entropy with the teacher's classes through a matrix that learns their noise.

    The matrix has an Adam of its own, as in the released code: it descends on a batch's loss, the student with it on
    the matrix as it was.
    """

    def __init__(self, setting: Setting) -> None:
        params = setting.params.noise_matrix
        assert params is not None
        self._setting, self._params = setting, params
        self._matrix = NoiseMatrix(
            setting.teacher.n_classes, params.diagonal, learns_diagonal=params.learns_diagonal
        ).to(setting.device)
        self._optimizer = make_optimizer(
            self._matrix, algorithm="adam", learning_rate=params.learning_rate, momentum=0.9, weight_decay=0.0
        )
        self.beside: nn.Module = nn.Module()
        self.parts: dict[str, Stateful] = {"noise_matrix": self._matrix, "noise_optimizer": self._optimizer}

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        setting, params = self._setting, self._setting.params
        student_logits, teacher_logits = _logits(setting, batch)
        weight = self._params.pseudo_label_weight
        matrix = self._matrix()
        values = noisy_kd_loss(student_logits, teacher_logits, matrix.detach(), params.temperature, weight)
        self._optimizer.zero_grad(set_to_none=True)
        pseudo_label_loss(student_logits.detach(), teacher_logits, matrix).backward()
        self._optimizer.step()
        return student_logits, teacher_logits, values

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        return {}


class Latent:
    """`latent`: centred logits, penultimate features of unit length, and optionally the KL divergence."""

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        params = setting.params.latent
        assert params is not None
        self._setting, self._params = setting, params
        self.parts: dict[str, Stateful] = {}
        networks, n_classes = (setting.student.network, setting.teacher.network), setting.teacher.n_classes
        if params.shared_head:
            share_head(*networks, n_classes)
            self.beside: nn.Module = nn.Identity()
        else:
            self.beside = penultimate_adapter(*networks, n_classes)
        self._student, self._teacher = (stack.enter_context(PenultimateTap(network, n_classes)) for network in networks)
        self.beside.to(setting.device)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        setting, params = self._setting, self._params
        student_logits, teacher_logits = _logits(setting, batch)
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


class FeatureMatching:
    """`attention` and `pu_critic`: distillation with attention transfer, and in the latter a critic of features."""

    def __init__(self, setting: Setting) -> None:
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
        for tap, shape in zip(extractor.taps, (tuple(feature_map.shape) for feature_map in maps), strict=True):
            if len(shape) != 4 or shape[2] != shape[3]:  # images are square, and so are their maps
                raise ValueError(f"the tap {tap!r} gives {shape}; attention is of maps (N, C, H, H)")
        return [feature_map.shape[1] for feature_map in maps]

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        setting, params = self._setting, self._setting.params
        with autocast(params.compute, setting.device):
            with torch.no_grad():
                teacher_maps, teacher_logits = self._teacher.maps(batch.images)
            student_maps, student_logits = self._student.maps(batch.images)
        student_logits, teacher_logits = student_logits.float(), teacher_logits.float()
        scores, facts, critic_weight = self._criticised(student_maps, teacher_maps)
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

    def _criticised(
        self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]
    ) -> tuple[Tensor | None, dict[str, Tensor], float]:
        """Take the critic's step; return its scores of the student's features, what it says of itself, and lambda."""
        if self._training is None or self._critic_params is None:
            return None, {}, 0.0
        student = critic_features([feature_map.float() for feature_map in student_maps], self._adapter)
        teacher = critic_features([feature_map.float() for feature_map in teacher_maps])
        n_updates = self._training.n_steps
        progress = n_updates / self._setting.params.n_updates
        facts = self._training.step(teacher, student, class_prior_at(progress, *self._critic_params.class_prior))
        weight = self._critic_params.weight * ramp(n_updates, self._critic_params.ramp_updates)
        return self._training.critic(student), facts, weight

    def finish(self, history: pd.DataFrame) -> dict[str, Any]:
        """Say so where the critic was of no use: results with it are then results without it."""
        if self._training is None:
            return {}
        reason = critic_collapse(history["critic_auc"].to_numpy(), history["clamped_share"].to_numpy())
        if reason:
            logger.warning("distillation: %s", reason)
        return {"critic_collapse": reason}


def make_objective(setting: Setting, stack: ExitStack) -> Objective:
    """Return the objective of the parameters; hooks that it sets are removed with the stack.

    Raises:
        InputError: it cannot be used with these networks or images.
    """
    try:
        if setting.params.objective in OBJECTIVES:
            return OnLogits(setting)
        if setting.params.objective == "noisy_kd":
            return NoisyKD(setting)
        if setting.params.objective == "latent":
            return Latent(setting, stack)
        return FeatureMatching(setting)
    except InputError:
        raise
    except ValueError as exc:
        raise InputError(f"distillation.objective {setting.params.objective!r}: {exc}") from exc


def _logits(setting: Setting, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the (N, K) float32 logits of student and teacher."""
    teacher_logits = setting.teacher_logits(batch)
    with autocast(setting.params.compute, setting.device):
        student_logits = setting.student.network(batch.images).float()
    return student_logits, teacher_logits


def cacheable(params: DistillationParams) -> DistillationParams:
    """Return the parameters with `teacher_cache` off where the objective looks inside of the teacher."""
    reads_logits_alone = params.objective in (*OBJECTIVES, "noisy_kd")
    return params if reads_logits_alone else params.model_copy(update={"teacher_cache": "off"})


def _with_last_taps(model: Model, n_taps: int, device: torch.device) -> FeatureExtractor:
    """Return the network with the last of its taps."""
    try:
        taps = model.extractor(device).taps
    except InputError as exc:  # which does not know what the taps are for
        raise ValueError(str(exc)) from exc
    if len(taps) < n_taps:
        raise ValueError(f"attention.n_taps is {n_taps}, and {model.card.architecture} has {len(taps)} taps: lower it")
    return FeatureExtractor(model.network, taps[-n_taps:], model.image_shape)
