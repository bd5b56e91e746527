"""The critic's network, its training, and the check that it works (S0, a reconstruction)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from pu_kd_pipeline.learning.features import global_average
from pu_kd_pipeline.learning.loop import make_optimizer
from pu_kd_pipeline.learning.losses.critic import CriticMode, pu_critic_risk
from pu_kd_pipeline.learning.workers import ALONE, Workers

HIDDEN_WIDTHS = (256, 128)
# The features have norm sqrt(taps): times sqrt(d / taps), about 20, their entries are of size one,
# like the pixels that spectral norm was made for. With 1 the scores of separable features stay
# within half a unit, where softplus is nearly linear: PU and GAN critic then differ by little more
# than a constant, and no step is ever clamped.
LIPSCHITZ = 20.0
# DCGAN's Adam (Radford et al. 2016), which PU GAN keeps
LEARNING_RATE = 2e-4
MOMENTUM = 0.5
# The AUC of a batch of 128 and 128 has a standard error of 0.04, and its mean over a quarter of the
# training one below 0.01: 0.55 is not chance, but features a fifth of a standard deviation apart;
# 0.99 is more than three apart.
BLIND_AUC = 0.55
WINNING_AUC = 0.99
CLAMPED_SHARE = 0.95  # fewer than one step in twenty has lowered the whole risk


class FeatureAdapter(nn.Module):
    """Maps the student's pooled features to the teacher's widths, by 1x1 convolutions.

    Where the widths agree, it is the identity. It is trained with the student, by the student's
    loss, and could learn to deceive the critic on its own: prefer a student whose taps have the
    teacher's widths.

    Args:
        student_widths: channels of the student's taps.
        teacher_widths: channels of the teacher's taps, equally many.

    Raises:
        ValueError: the numbers of taps differ or are zero.
    """

    def __init__(self, student_widths: Sequence[int], teacher_widths: Sequence[int]) -> None:
        super().__init__()
        if not student_widths or len(student_widths) != len(teacher_widths):
            raise ValueError(
                "student and teacher need equally many taps, at least one, "
                f"got widths {list(student_widths)} and {list(teacher_widths)}"
            )
        self.layers = nn.ModuleList()
        for student_width, teacher_width in zip(student_widths, teacher_widths, strict=True):
            self.layers.append(_width_adapter(student_width, teacher_width))

    def forward(self, pooled: Sequence[Tensor]) -> list[Tensor]:
        """Map one (N, C) float32 vector per tap to one (N, D), outside of autocast."""
        n_taps = len(self.layers)
        if len(pooled) != n_taps:
            raise ValueError(f"the adapter was made for {n_taps} taps, got {len(pooled)}")

        device_type = pooled[0].device.type
        adapted = []
        with torch.autocast(device_type, enabled=False):
            for layer, vector in zip(self.layers, pooled, strict=True):
                adapted.append(layer(vector))
        return adapted


def _width_adapter(student_width: int, teacher_width: int) -> nn.Module:
    if student_width == teacher_width:
        return nn.Identity()
    # A 1x1 convolution commutes with the average over the map, so it acts on the pooled vectors, as
    # a linear layer: the same function for 1/(H*W) of the cost.
    return nn.Linear(student_width, teacher_width)


def critic_features(maps: Sequence[Tensor], adapter: FeatureAdapter | None = None) -> Tensor:
    """Return phi, the concatenation over the taps of GAP(A) / ||GAP(A)||_2.

    Args:
        maps: one per tap, as `features.global_average` takes them, any float dtype.
        adapter: for the student's maps, where its widths differ from the teacher's.

    Returns:
        (N, D) float32 (float64 for float64 maps), of norm sqrt(number of taps).

    Raises:
        ValueError: there are no taps, or a map has the wrong shape.
    """
    if not maps:
        raise ValueError("features of the critic need at least one tap")
    vectors = [global_average(feature_map, str(tap)) for tap, feature_map in enumerate(maps)]
    if adapter is not None:
        vectors = adapter(vectors)
    # Normalized, so that every tap counts the same, and the critic cannot use the scale of one
    # network's activations.
    directions = [functional.normalize(vector, dim=1) for vector in vectors]
    return torch.cat(directions, dim=1)


class FeatureCritic(nn.Module):
    """C: an MLP d-256-128-1 with LeakyReLU 0.2 and spectral norm.

    Larger scores mean more like the teacher. Every linear layer has spectral norm one and every
    LeakyReLU slopes of at most one, so |C(a) - C(b)| <= lipschitz ||a - b||, up to the error of the
    power iteration.

    Args:
        d: width of the features.
        lipschitz: factor on the features, > 0; see `LIPSCHITZ`.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(self, d: int, lipschitz: float = LIPSCHITZ) -> None:
        super().__init__()
        if d < 1 or not lipschitz > 0.0:
            raise ValueError(
                f"d must be at least 1 and lipschitz positive, got d={d!r}, lipschitz={lipschitz!r}"
            )
        self.d = d
        self.lipschitz = lipschitz
        first, second = HIDDEN_WIDTHS
        self.layers = nn.Sequential(
            spectral_norm(nn.Linear(d, first)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Linear(first, second)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Linear(second, 1)),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, d) float32 features to (N,) float32 logits, outside of autocast."""
        shape = tuple(features.shape)
        if features.ndim != 2 or shape[1] != self.d:
            raise ValueError(f"the critic reads features (N, {self.d}), got {shape}")

        device_type = features.device.type
        with torch.autocast(device_type, enabled=False):
            scaled = self.lipschitz * features
            scores: Tensor = self.layers(scaled)
        return scores.squeeze(1)


class CriticTraining:
    """A critic and its Adam optimizer; one critic step per student step.

    Outside of `step` the critic is frozen and in eval mode: the student's loss goes through
    `training.critic(features)` to the features and never reaches the critic's parameters.

    Args:
        critic: on its device; its parameters are trained.
        mode: see `pu_critic_risk`.
        learning_rate: learning rate of Adam with betas 0.5 and 0.999.
        gamma: see `pu_critic_risk`.
        workers: that train together; each takes its steps with the features of the whole batch.

    Attributes:
        critic: see above.
        n_steps: steps taken.
    """

    def __init__(
        self,
        critic: nn.Module,
        mode: CriticMode,
        *,
        learning_rate: float = LEARNING_RATE,
        gamma: float = 1.0,
        workers: Workers = ALONE,
    ) -> None:
        self.critic = critic
        self._workers = workers
        self.n_steps = 0
        self._mode = mode
        self._gamma = gamma
        self._optimizer = make_optimizer(
            critic.requires_grad_(True),
            algorithm="adam",
            learning_rate=learning_rate,
            momentum=MOMENTUM,
            weight_decay=0.0,
        )
        self._freeze()

    def step(
        self, teacher_features: Tensor, student_features: Tensor, class_prior: float
    ) -> dict[str, Tensor]:
        """Take one step on the risk of a batch and return the metrics from before the step.

        No gradient flows to the features.

        Args:
            teacher_features: (N, d) from `critic_features`; N > 0.
            student_features: (M, d); M > 0.
            class_prior: see `pu_critic_risk`.

        Returns:
            "critic_loss", "critic_accuracy", "critic_auc" and "clamped_share", detached () float32.

        Raises:
            ValueError: shapes that do not fit, or as `pu_critic_risk`.
        """
        if teacher_features.shape[1:] != student_features.shape[1:]:
            raise ValueError(
                "student and teacher features must have one width, got "
                f"{tuple(student_features.shape)} and {tuple(teacher_features.shape)}"
            )
        # Both in one pass: spectral norm advances its power iteration by one per forward pass in
        # train mode, so by one per step, however often the student calls the frozen critic.
        features = torch.cat([teacher_features, student_features]).detach()
        n_teacher = len(teacher_features)
        self.critic.train().requires_grad_(True)
        try:
            scores = self.critic(features)
            teacher_scores = scores[:n_teacher]
            student_scores = scores[n_teacher:]
            risk = pu_critic_risk(
                teacher_scores, student_scores, class_prior, self._mode, gamma=self._gamma
            )
            risk.objective.backward()
            # Equal but for the order of their sums, which not every device fixes.
            self._workers.average_gradients(self.critic.parameters())
            self._optimizer.step()
        finally:
            self._freeze()
        self.n_steps += 1
        return {
            "critic_loss": risk.value,
            "critic_accuracy": critic_accuracy(teacher_scores, student_scores),
            "critic_auc": critic_auc(teacher_scores, student_scores),
            "clamped_share": risk.is_clamped.float(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the critic, its optimizer, and the number of steps taken."""
        return {
            "critic": self.critic.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "n_steps": self.n_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.critic.load_state_dict(state["critic"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.n_steps = state["n_steps"]

    def _freeze(self) -> None:
        # In eval mode spectral norm computes with a copy, its normalized weights, so `step` may
        # also come between the student's forward and backward pass.
        self._optimizer.zero_grad(set_to_none=True)
        self.critic.eval().requires_grad_(False)


def critic_accuracy(teacher_scores: Tensor, student_scores: Tensor) -> Tensor:
    """Return the balanced accuracy of separating teacher (C > 0) from student features.

    0 is the Bayes threshold of a GAN's critic. A PU critic gives indistinguishable features the
    score logit(pi); one that stays on that side of 0 has an accuracy of 1/2, however well it ranks.
    Compare modes by `critic_auc`.

    Args:
        teacher_scores: (N,) any float dtype; N > 0.
        student_scores: (M,) any float dtype; M > 0.

    Returns:
        () float32 in [0, 1].
    """
    is_teacher_found = teacher_scores > 0
    is_student_found = student_scores <= 0
    teacher_accuracy = is_teacher_found.float().mean()
    student_accuracy = is_student_found.float().mean()
    return (teacher_accuracy + student_accuracy) / 2


def critic_auc(teacher_scores: Tensor, student_scores: Tensor) -> Tensor:
    """Return how often a teacher feature scores higher than a student feature.

    P(C_t > C_s) + P(C_t = C_s) / 2 over all pairs: 1/2 means that the critic cannot separate them,
    whatever its threshold.

    Args:
        teacher_scores: (N,) any float dtype; N > 0.
        student_scores: (M,) any float dtype; M > 0.

    Returns:
        () float32 in [0, 1].
    """
    teacher_scores = teacher_scores[:, None]  # against (M,): all pairs
    is_higher = teacher_scores > student_scores
    is_tied = teacher_scores == student_scores
    higher_share = is_higher.float().mean()
    tied_share = is_tied.float().mean()
    return higher_share + tied_share / 2


def critic_collapse(auc: npt.NDArray[Any], clamped_share: npt.NDArray[Any]) -> str | None:
    """Return why the critic did not work in the last quarter of the training, or None if it did.

    Args:
        auc: (n,) critic_auc of the records of a history, in order; n > 0.
        clamped_share: (n,) clamped_share of the same records.

    Raises:
        ValueError: the arrays are empty or differ in shape.
    """
    auc = np.asarray(auc, dtype=np.float64)
    clamped_share = np.asarray(clamped_share, dtype=np.float64)
    if auc.ndim != 1 or auc.shape != clamped_share.shape or not auc.size:
        raise ValueError(
            "auc and clamped_share must be (n,) with n > 0, "
            f"got {auc.shape} and {clamped_share.shape}"
        )
    n_last = math.ceil(len(auc) / 4)
    late_auc = float(auc[-n_last:].mean())
    late_share = float(clamped_share[-n_last:].mean())
    if late_share > CLAMPED_SHARE:
        return (
            f"the critic's risk on student features is below zero in {late_share:.1%} of its last "
            "steps: the class prior is higher than the share of them that passes for the "
            "teacher's; lower it"
        )
    ranks = f"it ranks teacher above student features in {late_auc:.1%} of the pairs"
    if late_auc < 1.0 - BLIND_AUC:
        return f"the critic cannot keep up: {ranks}, where chance is 50%; raise its learning rate"
    if late_auc < BLIND_AUC:
        return (
            f"the critic gives no information: {ranks}, where chance is 50%; either the student's "
            "features match the teacher's, or the critic cannot see how they differ"
        )
    if late_auc > WINNING_AUC:
        return (
            f"the critic always wins: {ranks}; the student stays far from the teacher, and the "
            "critic hardly shows it which way to go"
        )
    return None
