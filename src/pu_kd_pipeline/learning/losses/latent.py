"""Losses of the objective `latent` (S3, a reconstruction)."""

from __future__ import annotations

import torch
from torch import Tensor

from pu_kd_pipeline.learning.losses.distillation import kl_divergence

# Features below this length have no direction: their gradient would be dominated by 1 / length.
_SHORTEST = 1e-6


def centered_logits_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return mean_i mean_k (c(z_s)_ik - c(z_t)_ik)^2 with c(z) = z - mean_k z_k.

    Centering removes the constant that softmax does not see. T^2 KL tends to half of this loss when
    T grows, because it is a mean over the classes as well (Hinton et al. 2015, sec. 2.1). No
    gradient flows to the teacher.

    Args:
        student_logits: (N, K) any float dtype; N > 0.
        teacher_logits: (N, K) any float dtype.

    Returns:
        () float32 (float64 for float64 students), non-negative.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = _comparable(student_logits, teacher_logits, "logits")
    # Centering is linear, so centering the difference once is the difference of centered logits.
    difference = student - teacher
    mean = difference.mean(dim=1, keepdim=True)
    centered = difference - mean
    return centered.square().mean()


def penultimate_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return mean_i ||u_s,i / ||u_s,i|| - u_t,i / ||u_t,i|| ||^2, which is 2 - 2 cos.

    A vector that is zero (shorter than 1e-6), which a ReLU can produce, stays zero: it is at
    distance 1 from every unit vector and gets no gradient. No gradient flows to the teacher.

    Args:
        student_features: (N, D) any float dtype, after the adapter where the widths differ; N > 0.
        teacher_features: (N, D) any float dtype.

    Returns:
        () float32 (float64 for float64 students), in [0, 4].

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = _comparable(student_features, teacher_features, "features")
    difference = _unit_length(student) - _unit_length(teacher)
    # Summed over the features: the entries of a unit vector shrink as its width grows, so a mean
    # would need another weight for every width.
    squared_distances = difference.square().sum(dim=1)
    return squared_distances.mean()


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
    """Return the weighted sum of `centered_logits_loss`, `penultimate_loss` and T^2 mean_i KL_i.

    The minimum is 0, where logits agree up to a constant and features up to their length.

    Args:
        student_logits: (N, K) any float dtype; N > 0.
        teacher_logits: (N, K) any float dtype.
        student_features: (N, D) any float dtype, after the adapter where the widths differ.
        teacher_features: (N, D) any float dtype.
        logits_weight: >= 0.
        penultimate_weight: >= 0.
        kl_weight: >= 0; at 0 the divergence is not computed and its key is absent.
        temperature: T > 0, used by the divergence only.

    Returns:
        "loss", () differentiable, and the unweighted, detached terms "logits_loss",
        "penultimate_loss" and "kl_loss".

    Raises:
        ValueError: shapes differ, a weight is negative or all are zero, or temperature is not
            positive.
    """
    _check_weights(
        logits_weight=logits_weight, penultimate_weight=penultimate_weight, kl_weight=kl_weight
    )
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    logits_loss = centered_logits_loss(student_logits, teacher_logits)
    features_loss = penultimate_loss(student_features, teacher_features)
    loss = logits_weight * logits_loss + penultimate_weight * features_loss

    terms = {
        "logits_loss": logits_loss.detach(),
        "penultimate_loss": features_loss.detach(),
    }
    if kl_weight > 0.0:
        student, teacher = _comparable(student_logits, teacher_logits, "logits")
        divergences = kl_divergence(teacher / temperature, student / temperature)
        # T^2 keeps the size of the gradient independent of T (Hinton et al. 2015, sec. 2).
        kl_loss = temperature**2 * divergences.mean()
        loss = loss + kl_weight * kl_loss
        terms["kl_loss"] = kl_loss.detach()
    return {"loss": loss, **terms}


def _check_weights(**weights: float) -> None:
    values = weights.values()
    # `not >=` instead of `<`, so that nan is refused too.
    is_negative = not all(weight >= 0.0 for weight in values)
    has_positive = any(values)
    if is_negative or not has_positive:
        raise ValueError(f"weights must be at least 0 and one of them positive, got {weights}")


def _comparable(student: Tensor, teacher: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Return both in the student's precision, at least float32, the teacher's detached."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher {what} must have one shape, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    fixed_teacher = teacher.detach()
    return student.to(dtype), fixed_teacher.to(dtype)


def _unit_length(features: Tensor) -> Tensor:
    squared_length = features.square().sum(dim=1, keepdim=True)
    is_zero = squared_length < _SHORTEST**2
    # Masked before the root as well: a gradient that is discarded must still be finite.
    positive_length = squared_length.masked_fill(is_zero, 1.0)
    directions = features * positive_length.rsqrt()
    return directions.masked_fill(is_zero, 0.0)
