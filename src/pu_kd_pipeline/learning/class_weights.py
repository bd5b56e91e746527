"""Class weights for distilling on a set with unbalanced classes, and perturbed weights around them.

Holds Eq. 7 of Xu et al. 2019 (arXiv:1909.09757) and the finite set W of Eq. 9-10, and our weights
that shrink toward one. Leaves out the loss that uses them (`losses.distillation`). Everything is
computed in float64, because it happens once per run.

A *soft* count of a class is the sum of the teacher's probabilities, a *hard* one the number of
images whose most probable class it is. The weight of a sample is that of its most probable class,
so that hard counts decide the mean weight of a sample.
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
    """(K,) float64, clipped and scaled again: with a mean of 1 over classes or samples."""
    raw: Tensor
    """(K,) float64, before clipping."""
    is_clipped: Tensor
    """(K,) bool, whether the raw weight was outside the clip range."""


def teacher_class_mass(
    logits: Tensor, temperature: float = 1.0, draws: Tensor | None = None
) -> Tensor:
    """Return y = sum_i d_i softmax(z_i / T), the soft counts of the classes.

    The mass of a union is the sum of the masses, so a large pool may be added up shard by shard.

    Args:
        logits: (N, K) teacher logits, any float dtype.
        temperature: T > 0.
        draws: d, (N,) how often each sample is drawn; None: once each.

    Returns:
        (K,) float64, non-negative, summing to N, or to the sum of the draws.

    Raises:
        ValueError: temperature is not positive.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    # float16 and bfloat16 have too few digits for shares of many classes.
    dtype = torch.promote_types(logits.dtype, torch.float32)
    softened = logits.to(dtype) / temperature
    probabilities = torch.softmax(softened, dim=1)
    if draws is not None:
        probabilities = probabilities.double() * draws[:, None]
    return probabilities.sum(dim=0, dtype=torch.float64)


def teacher_class_counts(logits: Tensor, draws: Tensor | None = None) -> Tensor:
    """Return c_k = sum of d_i over the samples with argmax z_i = k, the hard counts of the classes.

    Args:
        logits: (N, K) teacher logits, any float dtype.
        draws: d, (N,) float64; None: once each.

    Returns:
        (K,) float64, non-negative, summing to N, or to the sum of the draws.
    """
    if draws is None:
        draws = torch.ones(len(logits), dtype=torch.float64)
    counts = torch.zeros(logits.shape[1], dtype=torch.float64)
    return counts.index_add(0, logits.argmax(dim=1), draws)


def class_weights(class_mass: Tensor, *, clip: tuple[float, float] = DEFAULT_CLIP) -> ClassWeights:
    """Return the weights of Eq. 7, w_k = K (1/y_k) / sum_j (1/y_j), clipped and renormalized.

    They sum to K. The paper does not clip: a class that is (almost) absent then takes all the
    weight. Clipping bounds the ratio of two weights by clip[1] / clip[0]; after renormalizing, a
    weight may lie outside the range itself.

    The mean weight of a sample is not one: where classes are unbalanced, most samples belong to
    classes with a small weight, and the learning rate is smaller by that factor. See
    `with_mean_sample_weight_one`.

    Args:
        class_mass: (K,) from `teacher_class_mass`, finite, non-negative, not all zero.
        clip: range of the raw weights, 0 <= clip[0] <= 1 <= clip[1] since weights average 1.

    Raises:
        ValueError: unusable class_mass or clip.
    """
    _check_clip(clip)
    mass = class_mass.to(torch.float64)
    _check_mass(mass)
    smallest = mass.min()
    # 1/y up to a factor, which the normalization removes. Where y_k = 0 this is the limit of Eq. 7:
    # K shared among the absent classes and 0 elsewhere.
    is_smallest = mass == smallest
    inverse = torch.where(is_smallest, 1.0, smallest / mass)
    n_classes = len(mass)
    raw = n_classes * inverse / inverse.sum()
    clipped = raw.clamp(*clip)
    weights = n_classes * clipped / clipped.sum()
    return ClassWeights(weights, raw, _is_outside(raw, clip))


def shrunk_class_weights(
    class_mass: Tensor,
    class_counts: Tensor,
    *,
    smoothing: float,
    clip: tuple[float, float],
) -> ClassWeights:
    """Return w_k ~ (y_k + lambda n/K)^(-1/2), clipped, with a mean sample weight of one.

    n = sum_k y_k. The root is half way between no weights and Eq. 7 (Mahajan et al. 2018,
    arXiv:1805.00932, draw classes in this way), lambda n/K keeps the count of a class that is
    almost absent away from zero, and the mean weight of a sample, sum_k c_k w_k / sum_k c_k = 1,
    keeps the learning rate. The combination is our proposal. After the last scaling a weight may
    lie outside the clip range itself.

    Args:
        class_mass: y, (K,) soft counts, finite, non-negative, not all zero.
        class_counts: c, (K,) hard counts of the same samples, non-negative, not all zero.
        smoothing: lambda >= 0.
        clip: range of the weights, 0 < clip[0] <= 1 <= clip[1].

    Raises:
        ValueError: an argument cannot be used.
    """
    _check_clip(clip)
    smoothed = smoothed_mass(class_mass, smoothing)
    # A class without any mass gets the largest weight that the clip allows.
    raw = with_mean_sample_weight_one(smoothed.rsqrt(), class_counts)
    clipped = raw.clamp(*clip)
    weights = with_mean_sample_weight_one(clipped, class_counts)
    return ClassWeights(weights, raw, _is_outside(raw, clip))


def smoothed_mass(class_mass: Tensor, smoothing: float) -> Tensor:
    """Return y_k + lambda n/K, (K,) float64: counts that are pulled toward equal ones.

    Raises:
        ValueError: unusable class_mass, or smoothing is negative.
    """
    if not smoothing >= 0.0:
        raise ValueError(f"smoothing must be at least 0, got {smoothing!r}")
    mass = class_mass.to(torch.float64)
    _check_mass(mass)
    return mass + smoothing * mass.mean()


def log_class_prior(class_mass: Tensor, smoothing: float) -> Tensor:
    """Return log((y_k + lambda n/K) / sum_j (...)), (K,) float64: the log frequency of the classes.

    Args:
        class_mass: y, (K,) soft counts, finite, non-negative, not all zero.
        smoothing: lambda >= 0; without it, an absent class has minus infinity.

    Raises:
        ValueError: an argument cannot be used.
    """
    smoothed = smoothed_mass(class_mass, smoothing)
    return (smoothed / smoothed.sum()).log()


def mean_sample_weight(weights: Tensor, class_counts: Tensor) -> float:
    """Return sum_k c_k w_k / sum_k c_k, the factor by which weights change the learning rate.

    Classes without samples, and infinite weights of these, do not count.

    Args:
        weights: w, (K,) non-negative.
        class_counts: c, (K,) hard counts, not all zero.
    """
    is_present = class_counts > 0
    counts = class_counts[is_present].double()
    weighted = counts * weights[is_present].double()
    return float(weighted.sum() / counts.sum())


def with_mean_sample_weight_one(weights: Tensor, class_counts: Tensor) -> Tensor:
    """Return weights divided by their mean over samples, (K,); see `mean_sample_weight`."""
    return weights / mean_sample_weight(weights, class_counts)


def _check_clip(clip: tuple[float, float]) -> None:
    low, high = clip
    if not 0.0 <= low <= 1.0 <= high:
        raise ValueError(f"clip must be (low, high) with 0 <= low <= 1 <= high, got {clip!r}")


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


def _is_outside(raw: Tensor, clip: tuple[float, float]) -> Tensor:
    low, high = clip
    is_below = raw < low
    is_above = raw > high
    return is_below | is_above


def weight_vectors(
    weights: Tensor,
    *,
    n: int,
    epsilon: float,
    perturbation: Literal["projected", "released"],
    generator: torch.Generator,
) -> Tensor:
    """Return the finite set W over which the robust loss takes its maximum (Eq. 9-10), w first.

    - `projected`: w + epsilon u, u ~ U(-1, 1)^K, projected (Euclidean) onto the uncertainty set of
      Eq. 10, {v : sum v = sum w, |v - w| <= epsilon, v >= 0}.
    - `released`: w + epsilon u, u ~ U[0, 1)^K, as the authors' code does. Every row then dominates
      w and the maximum never is w, so the loss is not robust to the weights. Kept to reproduce
      their numbers.

    Args:
        weights: w, (K,) non-negative, with a positive sum, which is K for the weights of Eq. 7.
        n: number of perturbed vectors, >= 0.
        epsilon: radius in the maximum norm, >= 0.
        perturbation: "projected" or "released".
        generator: source of u, on the device of `weights`.

    Returns:
        (1 + n, K) of the dtype of `weights`.

    Raises:
        ValueError: a number is out of range, the perturbation is unknown, or weights are negative.
    """
    _check_game(weights, n, epsilon)
    if perturbation not in ("projected", "released"):
        raise ValueError(f"perturbation must be 'projected' or 'released', got {perturbation!r}")
    center = weights.to(torch.float64)
    noise = _uniform_noise(n, weights, generator)
    if perturbation == "released":
        perturbed = center + epsilon * noise
    else:
        symmetric_noise = 2.0 * noise - 1.0
        # Clipping at zero and rescaling to the sum K is simpler but can leave the epsilon-ball; the
        # projection satisfies all three conditions at once.
        perturbed = _project(
            points=center + epsilon * symmetric_noise,
            low=(center - epsilon).clamp(min=0.0),
            high=center + epsilon,
            shares=torch.ones_like(center),
            total=center.sum(),
        )
    vectors = torch.cat([center[None], perturbed])
    return vectors.to(weights.dtype)


def relative_weight_vectors(
    weights: Tensor,
    class_counts: Tensor,
    *,
    n: int,
    epsilon: float,
    generator: torch.Generator,
) -> Tensor:
    """Return the set W of relative changes, {v : |v_k - w_k| <= epsilon w_k, sum c v = sum c w}.

    w first, then w (1 + epsilon u), u ~ U(-1, 1)^K, projected onto this set: one shift of all
    ratios v_k / w_k, clamped to [1 - epsilon, 1 + epsilon], which is the nearest point where a
    class counts by its share c_k w_k of the loss. Every vector has the mean sample weight of w, so
    that the game moves weight between the classes and leaves the learning rate. In Eq. 10 the
    change is absolute: the same epsilon is half of a weight of 0.2 and a fiftieth of one of 5.

    Args:
        weights: w, (K,) positive.
        class_counts: c, (K,) hard counts, non-negative, not all zero.
        n: number of perturbed vectors, >= 0.
        epsilon: largest relative change, in [0, 1).
        generator: source of u, on the device of `weights`.

    Returns:
        (1 + n, K) of the dtype of `weights`, positive.

    Raises:
        ValueError: a number is out of range, or weights are negative.
    """
    _check_game(weights, n, epsilon)
    if not epsilon < 1.0:
        raise ValueError(f"a relative epsilon must be below 1, got {epsilon!r}")
    center = weights.to(torch.float64)
    # A sum of counts of 1: the absolute numbers change nothing but rounding.
    shares = center * class_counts.to(torch.float64) / class_counts.sum()
    symmetric_noise = 2.0 * _uniform_noise(n, weights, generator) - 1.0
    ones = torch.ones_like(center)
    ratios = _project(
        points=ones + epsilon * symmetric_noise,
        low=ones - epsilon,
        high=ones + epsilon,
        shares=shares,
        total=shares.sum(),
    )
    vectors = torch.cat([center[None], center * ratios])
    return vectors.to(weights.dtype)


def _check_game(weights: Tensor, n: int, epsilon: float) -> None:
    if n < 0 or not epsilon >= 0.0:
        raise ValueError(f"n and epsilon must be at least 0, got n={n!r}, epsilon={epsilon!r}")
    is_nonnegative = bool((weights >= 0).all())
    if not is_nonnegative or not weights.sum() > 0:
        raise ValueError(f"weights must be non-negative with a positive sum, got {weights!r}")


def _uniform_noise(n: int, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return (n, K) float64 numbers from U[0, 1)."""
    size = (n, len(weights))
    return torch.rand(size, generator=generator, dtype=torch.float64, device=weights.device)


def _project(points: Tensor, low: Tensor, high: Tensor, shares: Tensor, total: Tensor) -> Tensor:
    """Return the point of {v : low <= v <= high, sum shares v = total} nearest to each row.

    Nearest in sum_k shares_k (v_k - point_k)^2.

    Args:
        points: (n, K).
        low: (K,) lower bounds.
        high: (K,) upper bounds.
        shares: (K,) non-negative, not all zero.
        total: () the weighted sum of every projected row.
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
        sums = (shares * projected).sum(dim=1, keepdim=True)
        is_too_large = sums > total
        shift_low = torch.where(is_too_large, shift, shift_low)
        shift_high = torch.where(is_too_large, shift_high, shift)

    shifted = points - shift_high
    return shifted.clamp(low, high)
