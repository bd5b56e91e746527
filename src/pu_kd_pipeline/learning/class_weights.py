"""Class weights for distilling on a set with unbalanced classes, and perturbed weights around them.

Holds Eq. 7 of Xu et al. 2019 (arXiv:1909.09757) and the finite set W of Eq. 9-10. Leaves out the
loss that uses them (`losses.distillation`). Everything is computed in float64, because it happens
once per run.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

DEFAULT_CLIP = (0.1, 10.0)
N_BISECTIONS = 100  # halves an interval of a few epsilon far below float64 resolution


class ClassWeights(NamedTuple):
    """Weights of the K classes."""

    weights: Tensor
    """(K,) float64, clipped and renormalized to sum to K."""
    raw: Tensor
    """(K,) float64, Eq. 7 as printed: they sum to K before clipping."""
    is_clipped: Tensor
    """(K,) bool, whether the raw weight was outside the clip range."""


def teacher_class_mass(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return y = sum_i softmax(z_i / T), the number of samples per class by the teacher's outputs.

    The mass of a union is the sum of the masses, so a large pool may be added up shard by shard.

    Args:
        logits: (N, K) teacher logits, any float dtype.
        temperature: T > 0.

    Returns:
        (K,) float64, non-negative, summing to N.

    Raises:
        ValueError: temperature is not positive.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    # float16 and bfloat16 have too few digits for shares of many classes.
    dtype = torch.promote_types(logits.dtype, torch.float32)
    softened = logits.to(dtype) / temperature
    probabilities = torch.softmax(softened, dim=1)
    return probabilities.sum(dim=0, dtype=torch.float64)


def class_weights(class_mass: Tensor, *, clip: tuple[float, float] = DEFAULT_CLIP) -> ClassWeights:
    """Return the weights of Eq. 7, w_k = K (1/y_k) / sum_j (1/y_j), clipped and renormalized.

    They sum to K. The paper does not clip: a class that is (almost) absent then takes all the
    weight. Clipping bounds the ratio of two weights by clip[1] / clip[0]; after renormalizing, a
    weight may lie outside the range itself.

    Args:
        class_mass: (K,) from `teacher_class_mass`, finite, non-negative, not all zero.
        clip: range of the raw weights, 0 <= clip[0] <= 1 <= clip[1] since weights average 1.

    Raises:
        ValueError: unusable class_mass or clip.
    """
    low, high = clip
    if not 0.0 <= low <= 1.0 <= high:
        raise ValueError(f"clip must be (low, high) with 0 <= low <= 1 <= high, got {clip!r}")
    mass = class_mass.to(torch.float64)
    _check_mass(mass)
    smallest = mass.min()
    # 1/y up to a factor, which the normalization removes. Where y_k = 0 this is the limit of Eq. 7:
    # K shared among the absent classes and 0 elsewhere.
    is_smallest = mass == smallest
    inverse = torch.where(is_smallest, 1.0, smallest / mass)
    n_classes = len(mass)
    raw = n_classes * inverse / inverse.sum()

    clipped = raw.clamp(low, high)
    weights = n_classes * clipped / clipped.sum()
    is_below = raw < low
    is_above = raw > high
    is_clipped = is_below | is_above
    return ClassWeights(weights=weights, raw=raw, is_clipped=is_clipped)


def _check_mass(mass: Tensor) -> None:
    # `>=` is false for nan.
    is_nonnegative = mass >= 0
    is_valid = torch.isfinite(mass) & is_nonnegative
    all_valid = bool(is_valid.all())
    has_positive = bool((mass > 0).any())
    if mass.ndim != 1 or not all_valid or not has_positive:
        raise ValueError(
            f"class_mass must be a finite non-negative vector with a positive entry, got {mass!r}"
        )


def weight_vectors(
    weights: Tensor,
    *,
    n: int,
    epsilon: float,
    mode: Literal["projected", "released"],
    generator: torch.Generator,
) -> Tensor:
    """Return the finite set W over which the robust loss takes its maximum (Eq. 9-10), w first.

    - `projected`: w + epsilon u, u ~ U(-1, 1)^K, projected (Euclidean) onto the uncertainty set of
      Eq. 10, {v : sum v = K, |v - w| <= epsilon, v >= 0}.
    - `released`: w + epsilon u, u ~ U[0, 1)^K, as the authors' code does. Every row then dominates
      w and the maximum never is w, so the loss is not robust to the weights. Kept to reproduce
      their numbers.

    Args:
        weights: w, (K,) non-negative, summing to K.
        n: number of perturbed vectors, >= 0.
        epsilon: radius in the maximum norm, >= 0.
        mode: "projected" or "released".
        generator: source of u, on the device of `weights`.

    Returns:
        (1 + n, K) of the dtype of `weights`.

    Raises:
        ValueError: a number is out of range, the mode is unknown, or weights are negative or do not
            sum to K.
    """
    if n < 0 or not epsilon >= 0.0:
        raise ValueError(f"n and epsilon must be at least 0, got n={n!r}, epsilon={epsilon!r}")
    if mode not in ("projected", "released"):
        raise ValueError(f"mode must be 'projected' or 'released', got {mode!r}")
    center = weights.to(torch.float64)
    n_classes = len(center)
    is_nonnegative = bool((center >= 0).all())
    # Weights that went through float32 or a file are not exact.
    excess = abs(center.sum().item() - n_classes)
    if not is_nonnegative or excess > 1e-4 * n_classes:
        raise ValueError(
            f"weights must be non-negative and sum to the number of classes, {n_classes}, "
            f"got {weights!r}"
        )

    size = (n, n_classes)
    noise = torch.rand(size, generator=generator, dtype=torch.float64, device=weights.device)
    if mode == "released":
        perturbed = center + epsilon * noise
    else:
        symmetric_noise = 2.0 * noise - 1.0
        # Clipping at zero and rescaling to the sum K is simpler but can leave the epsilon-ball; the
        # projection satisfies all three conditions at once.
        perturbed = _project(
            points=center + epsilon * symmetric_noise,
            low=(center - epsilon).clamp(min=0.0),
            high=center + epsilon,
            total=center.sum(),
        )
    vectors = torch.cat([center[None], perturbed])
    return vectors.to(weights.dtype)


def _project(points: Tensor, low: Tensor, high: Tensor, total: Tensor) -> Tensor:
    """Return the point of {v : low <= v <= high, sum v = total} nearest to each row of `points`.

    Args:
        points: (n, K).
        low: (K,) lower bounds.
        high: (K,) upper bounds.
        total: () the sum of every projected row.
    """
    # By the optimality conditions it is clamp(point - shift, low, high) for the one shift that
    # gives the sum, which falls as the shift grows: bisection finds it.
    # At `shift_low` every entry is clamped to `high`, at `shift_high` every one to `low`: (n, 1).
    above_high = points - high
    above_low = points - low
    shift_low = above_high.amin(dim=1, keepdim=True)
    shift_high = above_low.amax(dim=1, keepdim=True)

    for _ in range(N_BISECTIONS):
        shift = (shift_low + shift_high) / 2.0
        shifted = points - shift
        projected = shifted.clamp(low, high)
        sums = projected.sum(dim=1, keepdim=True)
        is_too_large = sums > total
        shift_low = torch.where(is_too_large, shift, shift_low)
        shift_high = torch.where(is_too_large, shift_high, shift)

    shifted = points - shift_high
    return shifted.clamp(low, high)
