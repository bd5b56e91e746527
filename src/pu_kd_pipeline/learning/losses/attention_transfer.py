"""Attention transfer: the student is to look where its teacher looks (Zagoruyko & Komodakis 2017, arXiv:1612.03928).

Activation-based attention alone, with the sum of squares over the channels, which worked best in the paper and is what
its released code computes. The weight beta and the other terms of the objective are the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def attention_map(feature_map: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return where a layer is active: Q(A) = vec(mean_c A_c^2) / ||vec(mean_c A_c^2)||_2.

    It knows neither the scale nor the signs nor the order of the channels, nor how many they are, so networks of any
    two widths can be compared. A map that is zero everywhere stays zero.

    Args:
        feature_map: A, (N, C, H, W) any float dtype.
        size: (H', W') to bring the mean of squares to by adaptive average pooling, before it is normalized; None: as
            it is.

    Returns:
        (N, H*W) or (N, H'*W'), float32 (float64 for float64 maps), non-negative rows of length one.

    Raises:
        ValueError: feature_map is no (N, C, H, W).
    """
    _check_map(feature_map, "feature map")
    # bf16 keeps three digits, too few for differences of maps; squares of float16 overflow beyond 256.
    energy = (
        feature_map.to(torch.promote_types(feature_map.dtype, torch.float32)).square().mean(dim=1)
    )
    if size is not None and size != tuple(energy.shape[1:]):
        energy = functional.adaptive_avg_pool2d(energy, size)
    return functional.normalize(energy.flatten(1), dim=1)


def attention_transfer_loss(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]
) -> Tensor:
    """Return sum_taps mean_{n, hw} (Q(A_s) - Q(A_t))^2, () float32.

    The paper adds beta/2 sum_taps ||Q(A_s) - Q(A_t)||_p with p = 2 (Eq. 2). The released code takes the *square* of the
    norm, has no 1/2, and divides by the images of the batch and the places of the map: that is this function, and its
    weight is beta = 1000. Both maps being unit vectors without negative entries, a tap adds at most 2 / (H*W).

    Where the maps of a tap differ in height or width, the larger is averaged down to the smaller's size, our choice as
    is the order: first the mean of squares, then the pooling, which so has one map to go over and not C.

    Args:
        student_maps: one (N, C, H, W) for each tap, any float dtype.
        teacher_maps: as many, (N, D, H', W'); no gradient flows to them.

    Raises:
        ValueError: there are no taps, or not equally many, or one is no map or has another number of images.
    """
    if not student_maps or len(student_maps) != len(teacher_maps):
        raise ValueError(
            f"student and teacher need equally many taps, at least one, got {len(student_maps)} and {len(teacher_maps)}"
        )
    return torch.stack(
        [
            _tap_loss(*maps, tap)
            for tap, maps in enumerate(zip(student_maps, teacher_maps, strict=True))
        ]
    ).sum()


def _tap_loss(student_map: Tensor, teacher_map: Tensor, tap: int) -> Tensor:
    _check_map(student_map, f"student's map of tap {tap}")
    _check_map(teacher_map, f"teacher's map of tap {tap}")
    if len(student_map) != len(teacher_map):
        raise ValueError(
            f"tap {tap} has maps of {len(student_map)} images of the student, {len(teacher_map)} of the teacher"
        )
    (height, width), (teacher_height, teacher_width) = student_map.shape[2:], teacher_map.shape[2:]
    size = (min(height, teacher_height), min(width, teacher_width))
    difference = attention_map(student_map, size) - attention_map(teacher_map.detach(), size)
    return difference.square().mean()


def _check_map(feature_map: Tensor, name: str) -> None:
    if feature_map.ndim != 4:
        raise ValueError(f"the {name} is {tuple(feature_map.shape)}; expected (N, C, H, W)")
