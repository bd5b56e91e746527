"""Losses of the PU critic between teacher and student features (S0, a reconstruction)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from pu_kd_pipeline.learning.losses.attention_transfer import attention_transfer_loss
from pu_kd_pipeline.learning.losses.distillation import soft_cross_entropy
from pu_kd_pipeline.learning.workers import ALONE, Workers

CriticMode = Literal["clamp", "ascent", "gan"]


class CriticRisk(NamedTuple):
    """Risk of the critic on a batch.

    Each is a () tensor, float32 (float64 for float64 scores); `is_clamped` is bool.
    """

    objective: Tensor
    """What to backpropagate."""
    value: Tensor
    """What to report: pi E_t sp(-C) + max(0, R_-), or the GAN's loss. Detached."""
    is_clamped: Tensor
    """Whether R_- is below zero and left out (clamp) or climbed (ascent); never true for `gan`."""


def pu_critic_risk(
    teacher_scores: Tensor,
    student_scores: Tensor,
    class_prior: float,
    mode: CriticMode,
    *,
    gamma: float = 1.0,
) -> CriticRisk:
    """Return the critic's risk under the logistic loss sp(-yC).

    Teacher features are the positives, student features the unlabeled samples:

    R_p+ = pi E_t sp(-C),  R_- = E_s sp(C) - pi E_t sp(C)

    - `clamp`: R_p+ + max(0, R_-) (Guo et al. 2020); below zero only the first term has a gradient.
    - `ascent`: nnPU (Kiryo et al. 2017, Algorithm 1, beta = 0); below zero it minimizes
      -gamma * R_- alone, and so raises R_-.
    - `gan`: the control, E_t sp(-C) + E_s sp(C) (Goodfellow et al. 2014), where all student
      features are negatives.

    `losses.risk` has the same for the sigmoid loss, also with the positives first.

    Args:
        teacher_scores: (N,) any float dtype; N > 0.
        student_scores: (M,) any float dtype; M > 0.
        class_prior: pi, the share of student features that pass for the teacher's, in (0, 1);
            `gan` does not read it.
        mode: "clamp", "ascent" or "gan".
        gamma: size of the ascent step, in [0, 1].

    Raises:
        ValueError: a batch is empty, the mode is unknown or a number is outside its range.
    """
    if mode not in get_args(CriticMode):
        raise ValueError(f"mode must be 'clamp', 'ascent' or 'gan', got {mode!r}")
    if teacher_scores.numel() == 0 or student_scores.numel() == 0:
        raise ValueError(
            f"the critic needs scores of both networks, got {teacher_scores.numel()} "
            f"of the teacher and {student_scores.numel()} of the student"
        )
    teacher_scores = _at_least_float32(teacher_scores)
    student_scores = _at_least_float32(student_scores)
    positive_loss = functional.softplus(-teacher_scores).mean()
    negative_loss = functional.softplus(student_scores).mean()
    # Without a prior there is nothing to check or to clamp.
    if mode == "gan":
        risk = positive_loss + negative_loss
        never = torch.zeros_like(risk, dtype=torch.bool)
        return CriticRisk(risk, risk.detach(), never)
    if not 0.0 < class_prior < 1.0:
        raise ValueError(f"class_prior must lie strictly between 0 and 1, got {class_prior!r}")
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be in [0, 1], got {gamma!r}")

    positive_risk = class_prior * positive_loss
    loss_as_negatives = functional.softplus(teacher_scores).mean()
    negative_risk = negative_loss - class_prior * loss_as_negatives
    # sp(C) - sp(-C) = C, so R_p+ + R_- = E_s sp(C) - pi E_t C has no lower bound: it needs a branch
    # below zero. The branch insists that a share pi of the student features passes. Where fewer
    # do, the prior is too high, and the critic also spares features that it can tell apart.
    is_clamped = negative_risk.detach() < 0.0
    objective_below_zero = positive_risk
    if mode == "ascent":
        objective_below_zero = -gamma * negative_risk
    # torch.where instead of `if`: the host never waits for the device.
    objective = torch.where(is_clamped, objective_below_zero, positive_risk + negative_risk)
    value = positive_risk + negative_risk.clamp(min=0.0)
    return CriticRisk(objective, value.detach(), is_clamped)


def student_critic_loss(student_scores: Tensor) -> Tensor:
    """Return E_s sp(-C(phi_s)), () float32: how far the student is from passing for its teacher.

    The form that does not saturate (Goodfellow et al. 2014): the surer the critic is of a sample,
    the larger the sample's gradient.

    Args:
        student_scores: (N,) any float dtype, from a critic whose parameters are frozen; see
            `CriticTraining`.
    """
    scores = _at_least_float32(student_scores)
    losses = functional.softplus(-scores)
    return losses.mean()


def critic_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    student_scores: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    temperature: float,
    alpha: float,
    attention_weight: float,
    critic_weight: float,
    workers: Workers = ALONE,
) -> dict[str, Tensor]:
    """Return (1 - alpha) CE + alpha T^2 KL + beta AT + lambda E_s sp(-C(phi_s)) and its terms.

    The controls are weights of zero: KD has neither beta nor lambda, AT has alpha = 0 and no
    lambda, KD+AT no lambda, KD+AT+GAN a critic trained in the mode `gan`.

    Args:
        student_logits: (N, K) any float dtype.
        teacher_logits: (N, K) any float dtype; no gradient flows to it.
        student_maps: see `attention_transfer_loss`.
        teacher_maps: see `attention_transfer_loss`.
        student_scores: (N,) of the frozen critic; None leaves the critic's term out.
        labels: (N,) int64; None trains on soft targets alone: CE is left out and alpha is 1.
        temperature: T > 0; here 4.
        alpha: in [0, 1]; here 0.9.
        attention_weight: beta >= 0; here 1000.
        critic_weight: lambda >= 0; here 0.1, see `ramp`.
        workers: that train together. Maps are those of this worker's part of the batch, because
            they are large and their loss is a mean over images; all else is of the whole batch.

    Returns:
        "loss", () and differentiable, and unweighted and detached "kl_loss" (T^2 KL),
        "attention_loss", with a critic "student_critic_loss" and with labels "label_loss".

    Raises:
        ValueError: shapes that do not fit, or a number outside its range.
    """
    if not 0.0 <= alpha <= 1.0 or not attention_weight >= 0.0 or not critic_weight >= 0.0:
        raise ValueError(
            f"alpha must be in [0, 1] and the weights at least 0, got alpha={alpha!r}, "
            f"attention_weight={attention_weight!r}, critic_weight={critic_weight!r}"
        )
    teacher_logits = teacher_logits.detach()
    kl_weight = 1.0
    if labels is not None:
        kl_weight = alpha

    # The teacher's entropy has no gradient; subtracting it makes the reported loss 0 at equality.
    entropy = soft_cross_entropy(teacher_logits, teacher_logits, temperature)
    cross_entropy = soft_cross_entropy(student_logits, teacher_logits, temperature)
    divergence = (cross_entropy - entropy).mean()
    kl_loss = temperature**2 * divergence
    attention_loss = workers.mean(attention_transfer_loss(student_maps, teacher_maps))

    terms = {"kl_loss": kl_loss, "attention_loss": attention_loss}
    weighted_terms = [kl_weight * kl_loss, attention_weight * attention_loss]
    if student_scores is not None:
        critic_loss = student_critic_loss(student_scores)
        terms["student_critic_loss"] = critic_loss
        weighted_terms.append(critic_weight * critic_loss)
    if labels is not None:
        logits = _at_least_float32(student_logits)
        label_loss = functional.cross_entropy(logits, labels)
        terms["label_loss"] = label_loss
        weighted_terms.append((1.0 - alpha) * label_loss)

    loss = torch.stack(weighted_terms).sum()
    losses = {"loss": loss}
    for name, term in terms.items():
        losses[name] = term.detach()
    return losses


def _at_least_float32(scores: Tensor) -> Tensor:
    # bf16 keeps three digits, too few for the difference of means that decides the branch.
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return scores.to(dtype)


def class_prior_at(progress: float, start: float = 0.3, end: float = 0.6) -> float:
    """Return pi at a share `progress` of the training, on the line from start to end.

    The better the student, the larger the share of its features that passes. The released code of
    PU GAN goes from 0.3 to 0.6 in steps of 0.1.

    Args:
        progress: share of the training that is done, in [0, 1].
        start: pi at progress 0, in (0, 1).
        end: pi at progress 1, in (0, 1).

    Raises:
        ValueError: progress is outside [0, 1], or start or end outside (0, 1).
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must be in [0, 1], got {progress!r}")
    if not (0.0 < start < 1.0 and 0.0 < end < 1.0):
        raise ValueError(
            f"start and end must lie strictly between 0 and 1, got {start!r} and {end!r}"
        )
    rise = end - start
    return start + rise * progress


def ramp(n_updates: int, n_ramp_updates: int) -> float:
    """Return the factor in [0, 1] on lambda: linear in n_updates, and 1 from n_ramp_updates on.

    Raises:
        ValueError: a number is negative.
    """
    if n_updates < 0 or n_ramp_updates < 0:
        raise ValueError(
            f"numbers of updates must be at least 0, got {n_updates!r} and {n_ramp_updates!r}"
        )
    # Early in training the critic knows nothing, and its gradient on the student is noise.
    if n_updates >= n_ramp_updates:
        return 1.0
    return n_updates / n_ramp_updates
