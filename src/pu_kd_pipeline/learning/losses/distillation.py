"""Losses of logits that make a student follow its teacher.

Holds plain knowledge distillation, the same with standardized logits, the squared error of logits,
and the robust distillation of Xu et al. 2019 (arXiv:1909.09757, Eq. 8-10) as it is printed and by
the KL divergence. No function here makes the host wait for the device.

The gradient of a cross-entropy at temperature T shrinks as 1 / T^2. Every loss with a temperature
is multiplied by T^2, so that one learning rate suits all temperatures.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_SMALLEST_STD = 1e-7  # of the logits of a sample, as in the released code of Sun et al. 2024


class LogitLoss(Protocol):
    """A loss of logits.

    The result holds the key "loss", () and differentiable, which is minimized; the other entries
    are detached () tensors for the history.
    """

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        weight_vectors: Tensor,
        temperature: float,
    ) -> dict[str, Tensor]: ...


def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """Return the cross-entropy of each sample, -sum_k softmax(z_t/T)_k log softmax(z_s/T)_k.

    Its gradient is that of the KL divergence; its least value, at equal logits, is the entropy of
    the teacher. No gradient flows to the teacher.

    Args:
        student_logits: (N, K) any float dtype.
        teacher_logits: (N, K) any float dtype.
        temperature: T > 0.

    Returns:
        (N,) float32 (float64 for float64 students), non-negative.

    Raises:
        ValueError: the shapes differ or temperature is not positive.
    """
    _check_shapes(student_logits, teacher_logits)
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")

    # At least float32: a sum of products of bf16 numbers has two or three digits.
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    # Detached, because a teacher in training mode would otherwise learn from its student.
    teacher_logits = teacher_logits.detach().to(dtype)
    student_logits = student_logits.to(dtype)

    targets = torch.softmax(teacher_logits / temperature, dim=1)
    log_probabilities = torch.log_softmax(student_logits / temperature, dim=1)
    weighted_logs = targets * log_probabilities
    return -weighted_logs.sum(dim=1)


def _check_shapes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student and teacher logits must have one shape, got {tuple(student_logits.shape)} "
            f"and {tuple(teacher_logits.shape)}"
        )


def soft_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return KL(softmax(z_t/T) || softmax(z_s/T)) of each sample: what the student can still learn.

    The cross-entropy less the teacher's entropy, and so with the same gradient.

    Args:
        student_logits: (N, K) any float dtype.
        teacher_logits: (N, K) any float dtype.
        temperature: T > 0.

    Returns:
        (N,) as `soft_cross_entropy`; rounding may leave it just below zero for equal logits.

    Raises:
        ValueError: as `soft_cross_entropy`.
    """
    cross_entropy = soft_cross_entropy(student_logits, teacher_logits, temperature)
    # In the precision of the cross-entropy, or the difference would be that of two roundings.
    exact_logits = teacher_logits.detach().to(cross_entropy.dtype)
    entropy = soft_cross_entropy(exact_logits, exact_logits, temperature)
    return cross_entropy - entropy


def kl_divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return KL(softmax(z_t) || softmax(z_s)) of each sample, in nats.

    Args:
        teacher_logits: (N, K) any float dtype.
        student_logits: (N, K) any float dtype.

    Returns:
        (N,) as `soft_cross_entropy`, in nats, at least 0.

    Raises:
        ValueError: the shapes differ.
    """
    dtype = torch.promote_types(teacher_logits.dtype, student_logits.dtype)
    teacher_logits = teacher_logits.to(dtype)
    entropy = soft_cross_entropy(teacher_logits, teacher_logits, temperature=1.0)
    cross_entropy = soft_cross_entropy(student_logits, teacher_logits, temperature=1.0)
    divergence = cross_entropy - entropy
    # Equal logits may give a difference just below zero, from rounding.
    return divergence.clamp(min=0.0)


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 mean_i CE_i, () float32: plain distillation without hard labels.

    Arguments and errors as for `soft_cross_entropy`.
    """
    losses = soft_cross_entropy(student_logits, teacher_logits, temperature)
    # T^2 keeps the size of the gradient when T changes (Hinton et al. 2015, sec. 2).
    return temperature**2 * losses.mean()


def standardized(logits: Tensor) -> Tensor:
    """Return (z - mean_k z_k) / std_k z_k of each sample (Sun et al. 2024, arXiv:2403.01427).

    The standard deviation is that of the K logits, with 1/K under the root as in the paper; the
    released code has 1/(K-1), which is the same at a temperature that is sqrt(K/(K-1)) times as
    large.

    Args:
        logits: (N, K) any float dtype; K > 1.

    Returns:
        (N, K), at least float32: zero where all logits of a sample are equal.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    values = logits.to(dtype)
    centered = values - values.mean(dim=1, keepdim=True)
    variance = centered.square().mean(dim=1, keepdim=True)
    # Added under the root, where it also keeps the gradient finite if all logits are equal.
    return centered * torch.rsqrt(variance + _SMALLEST_STD**2)


def standardized_kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """Return `kd_loss` of standardized logits, () float32 (Sun et al. 2024).

    The student is free in the mean and the scale of its logits: it has the teacher's classes and
    their order, but not its confidence.

    Args:
        student_logits: (N, K) any float dtype.
        teacher_logits: (N, K) any float dtype.
        temperature: the base temperature, > 0; 2 in the paper.

    Raises:
        ValueError: as `soft_cross_entropy`.
    """
    return kd_loss(standardized(student_logits), standardized(teacher_logits), temperature)


def logit_mse_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return mean_i 1/(2K) sum_k (z_s,ik - z_t,ik)^2, () float32 (Kim et al. 2021).

    As in Kim et al. (arXiv:2105.08919), logits are raw: a constant that softmax does not see
    counts. For centered ones T^2 KL tends to this loss when T grows. The factor 1/(2K), instead of
    their 1, gives both the same gradient: a learning rate that suits `kd` at a high temperature
    suits this loss. No gradient flows to the teacher.

    Args:
        student_logits: (N, K) any float dtype; N > 0.
        teacher_logits: (N, K) any float dtype.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(student_logits, teacher_logits)
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    difference = student_logits.to(dtype) - teacher_logits.detach().to(dtype)
    return 0.5 * difference.square().mean()


def class_loss_mass(losses: Tensor, teacher_classes: Tensor, n_classes: int) -> Tensor:
    """Return m_k = (1/N) sum of the losses of the samples the teacher puts in class k.

    The mean of w[class_i] * loss_i is then the inner product of w and m, for any w.

    Args:
        losses: (N,) float; N > 0.
        teacher_classes: (N,) int64 in 0..n_classes-1.
        n_classes: K.

    Returns:
        (K,) of the dtype of `losses`, summing to their mean.
    """
    zeros = losses.new_zeros(n_classes)
    sums = zeros.index_add(0, teacher_classes, losses)
    return sums / len(losses)


def worst_weighted_mean(losses: Tensor, teacher_logits: Tensor, weight_vectors: Tensor) -> Tensor:
    """Return max over w in W of mean_i w[argmax z_t,i] losses_i, () of the dtype of `losses`.

    The maximum over all of W is one product with the per-class loss mass and one backward pass,
    which goes through the worst vector only.

    Args:
        losses: (N,) float; N > 0.
        teacher_logits: (N, K) any float dtype.
        weight_vectors: W, (n, K) on the same device, non-negative, n > 0.

    Raises:
        ValueError: weight_vectors has another shape.
    """
    _check_weight_vectors(weight_vectors, teacher_logits)
    return _worst_of(losses, teacher_logits.argmax(dim=1), weight_vectors)


def _check_weight_vectors(weight_vectors: Tensor, teacher_logits: Tensor) -> None:
    n_classes = teacher_logits.shape[1]
    n_columns = weight_vectors.shape[-1]
    if weight_vectors.ndim != 2 or n_columns != n_classes or len(weight_vectors) == 0:
        raise ValueError(
            f"weight_vectors must be (n, {n_classes}) with n > 0, one column for each class of the "
            f"teacher, got {tuple(weight_vectors.shape)}"
        )


def _worst_of(losses: Tensor, groups: Tensor, vectors: Tensor) -> Tensor:
    """Return max over the rows w of `vectors` of mean_i w[groups_i] losses_i."""
    mass = class_loss_mass(losses, groups, vectors.shape[1])
    # W @ m, written out: autocast would round a matrix product to bf16 and TF32 would shorten it.
    weighted_losses = (vectors.to(mass.dtype) * mass).sum(dim=1)
    # max(dim=0) sends the gradient to one vector; amax would spread it over equal ones.
    return weighted_losses.max(dim=0).values


def kd(
    student_logits: Tensor, teacher_logits: Tensor, weight_vectors: Tensor, temperature: float
) -> dict[str, Tensor]:
    """Return `kd_loss` as "loss"; the weight vectors are not used."""
    loss = kd_loss(student_logits, teacher_logits, temperature)
    return {"loss": loss}


def standardized_kd(
    student_logits: Tensor, teacher_logits: Tensor, weight_vectors: Tensor, temperature: float
) -> dict[str, Tensor]:
    """Return `standardized_kd_loss` as "loss"; the weight vectors are not used."""
    loss = standardized_kd_loss(student_logits, teacher_logits, temperature)
    return {"loss": loss}


def logit_mse(
    student_logits: Tensor, teacher_logits: Tensor, weight_vectors: Tensor, temperature: float
) -> dict[str, Tensor]:
    """Return `logit_mse_loss` as "loss"; neither weight vectors nor temperature are used."""
    return {"loss": logit_mse_loss(student_logits, teacher_logits)}


def robust_kd(
    student_logits: Tensor, teacher_logits: Tensor, weight_vectors: Tensor, temperature: float
) -> dict[str, Tensor]:
    """Return max over w in W of T^2 mean_i w[argmax z_t,i] CE_i (Eq. 8-10), and two references.

    Eq. 8 has no T^2, and the paper uses T = 1, where it makes no difference. For other T it is kept
    as in `kd_loss`: one learning rate then suits every temperature, all-equal weights give exactly
    `kd_loss`, and the worst vector is the same with or without it.

    Args:
        student_logits: (N, K) any float dtype; N > 0.
        teacher_logits: (N, K) any float dtype.
        weight_vectors: W, (n, K) on the same device, non-negative, n > 0; the first one is the
            estimated one.
        temperature: T > 0.

    Returns:
        "loss"; "estimated_weights_loss", the same under the first vector alone, so that the
        difference is the cost of the worst case; and the unweighted "kd_loss".

    Raises:
        ValueError: the shapes do not fit, or temperature is not positive.
    """
    losses = temperature**2 * soft_cross_entropy(student_logits, teacher_logits, temperature)
    # Detached: only the worst case is minimized, the others are for the history.
    estimated = worst_weighted_mean(losses.detach(), teacher_logits, weight_vectors[:1])
    return {
        "loss": worst_weighted_mean(losses, teacher_logits, weight_vectors),
        "estimated_weights_loss": estimated,
        "kd_loss": losses.detach().mean(),
    }


def robust_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weight_vectors: Tensor,
    temperature: float,
    is_labeled: Tensor,
    logit_shift: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return max over w in W of T^2 mean_i w_i KL_i, w_i = w[argmax z_t,i], and two references.

    `robust_kd` with three changes, all ours. KL in place of the cross-entropy: at T = 4 nearly all
    of the cross-entropy is the teacher's entropy, so that its maximum follows how many samples of
    each class are in the batch, and not where the student is wrong. The gradient for given weights
    is the same. Labeled images, whose classes are right and whose number is chosen, always weigh 1.
    A logit shift a, for the others, compares the teacher with softmax((z_s + a) / T): with
    a = tau log(frequency of the class) this is the logit-adjusted loss of Menon et al. 2021
    (arXiv:2007.07314, Eq. 10). A student that follows the teacher exactly then has the logits
    z_t - a, and so prefers classes that are rare in training.

    Args:
        student_logits: (N, K) any float dtype; N > 0.
        teacher_logits: (N, K) any float dtype.
        weight_vectors: W, (n, K) on the same device, non-negative, n > 0; the first one is the
            estimated one.
        temperature: T > 0.
        is_labeled: (N,) bool.
        logit_shift: a, (K,) float; None: zero.

    Returns:
        "loss"; "estimated_weights_loss", the same under the first vector alone, so that the
        difference is the cost of the worst case; and the unweighted "kl_loss", without a shift.

    Raises:
        ValueError: the shapes do not fit, or temperature is not positive.
    """
    shifted = student_logits
    if logit_shift is not None:
        shift = torch.where(is_labeled[:, None], 0.0, logit_shift[None])
        shifted = student_logits + shift
    losses = temperature**2 * soft_divergence(shifted, teacher_logits, temperature)
    _check_weight_vectors(weight_vectors, teacher_logits)
    # Labeled images are one more class, whose weight is 1 in every vector.
    n_classes = teacher_logits.shape[1]
    groups = torch.where(is_labeled, n_classes, teacher_logits.argmax(dim=1))
    weight_of_labeled = torch.ones_like(weight_vectors[:, :1])
    vectors = torch.cat([weight_vectors, weight_of_labeled], dim=1)
    estimated = _worst_of(losses.detach(), groups, vectors[:1])
    with torch.no_grad():
        plain = temperature**2 * soft_divergence(student_logits, teacher_logits, temperature)
    return {
        "loss": _worst_of(losses, groups, vectors),
        "estimated_weights_loss": estimated,
        "kl_loss": plain.mean(),
    }
