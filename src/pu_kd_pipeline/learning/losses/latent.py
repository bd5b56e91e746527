"""Losses of the objective `latent` (S3, a reconstruction)."""

from __future__ import annotations

import torch
from torch import Tensor

from pu_kd_pipeline.learning.losses.distillation import kl_divergence

_SHORTEST = 1e-6  # features below this length have no direction: 1 / length would be all that their gradient says


def centered_logits_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return mean_i mean_k (c(z_s)_ik - c(z_t)_ik)^2 with c(z) = z - mean_k z_k.

    Centring takes out the constant that softmax does not see. T^2 KL tends to half of this loss when T grows, for it is
    a mean over the classes as well (Hinton et al. 2015, sec. 2.1). No gradient flows to the teacher.

    Args:
        student_logits: (N, K) any float dtype; N > 0.
        teacher_logits: (N, K) any float dtype.

    Returns:
        () float32 (float64 for float64 students), non-negative.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = _comparable(student_logits, teacher_logits, "logits")
    difference = student - teacher
    return (difference - difference.mean(dim=1, keepdim=True)).square().mean()


def penultimate_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return mean_i ||u_s,i / ||u_s,i|| - u_t,i / ||u_t,i|| ||^2, which is 2 - 2 cos.

    The squares are summed over the features and not averaged: entries of a unit vector shrink as it gets longer, and an
    average would need another weight for every width. A vector that is zero (shorter than 1e-6), as a ReLU may leave
    it, stays zero: it is at distance 1 from every unit vector and gets no gradient. No gradient flows to the teacher.

    Args:
        student_features: (N, D) any float dtype, behind the adapter where the widths differ; N > 0.
        teacher_features: (N, D) any float dtype.

    Returns:
        () float32 (float64 for float64 students), in [0, 4].

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = _comparable(student_features, teacher_features, "features")
    return (_unit_length(student) - _unit_length(teacher)).square().sum(dim=1).mean()


def latent_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    logits_weight: float,
    penultimate_weight: float,
    kl_weight: float,
    temperature: float,
) -> dict[str, Tensor]:
    """Return the weighted sum of `centered_logits_loss`, `penultimate_loss` and T^2 mean_i KL_i, and its parts.

    The least value is 0, where logits agree up to a constant and features up to their length.

    Args:
        student_logits: (N, K) any float dtype; N > 0.
        teacher_logits: (N, K) any float dtype.
        student_features: (N, D) any float dtype, behind the adapter where the widths differ.
        teacher_features: (N, D) any float dtype.
        logits_weight: >= 0.
        penultimate_weight: >= 0.
        kl_weight: >= 0; at 0 the divergence is not computed and its key is absent.
        temperature: T > 0 of the divergence alone.

    Returns:
        "loss", () differentiable, and detached "logits_loss", "penultimate_loss" and "kl_loss", without their weights.

    Raises:
        ValueError: shapes differ, a weight is negative or all are zero, or temperature is not positive.
    """
    weights = {
        "logits_weight": logits_weight,
        "penultimate_weight": penultimate_weight,
        "kl_weight": kl_weight,
    }
    if not (all(weight >= 0.0 for weight in weights.values()) and any(weights.values())):
        raise ValueError(f"weights must be at least 0 and one of them positive, got {weights}")
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    parts = {
        "logits_loss": centered_logits_loss(student_logits, teacher_logits),
        "penultimate_loss": penultimate_loss(student_features, teacher_features),
    }
    loss = logits_weight * parts["logits_loss"] + penultimate_weight * parts["penultimate_loss"]
    if kl_weight > 0.0:
        student, teacher = _comparable(student_logits, teacher_logits, "logits")
        parts["kl_loss"] = (
            temperature**2 * kl_divergence(teacher / temperature, student / temperature).mean()
        )
        loss = loss + kl_weight * parts["kl_loss"]
    return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}


def _comparable(student: Tensor, teacher: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Return both in the student's precision, float32 at least, the teacher's without its graph."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher {what} must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def _unit_length(features: Tensor) -> Tensor:
    squared_length = features.square().sum(dim=1, keepdim=True)
    is_zero = squared_length < _SHORTEST**2
    # Masked before the root as well: a gradient that is discarded must still be finite.
    inverse_length = squared_length.masked_fill(is_zero, 1.0).rsqrt()
    return (features * inverse_length).masked_fill(is_zero, 0.0)
