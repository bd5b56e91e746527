"""Attention transfer: the student learns to look where its teacher looks.

Zagoruyko & Komodakis 2017 (arXiv:1612.03928). Holds activation-based attention with the sum of
squares over the channels, which worked best in the paper and is what its released code computes.
The weight beta and the other terms of the objective belong to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def attention_map(feature_map: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return where a layer is active: Q(A) = vec(mean_c A_c^2) / ||vec(mean_c A_c^2)||_2.

    Q does not depend on the scale, the signs, the order or the number of the channels, so networks
    of any two widths can be compared. A map that is zero everywhere stays zero.

    Args:
        feature_map: A, (N, C, H, W) any float dtype.
        size: (H', W') to which adaptive average pooling brings the mean of squares before it is
            normalized; None keeps the size of the map.

    Returns:
        (N, H*W) or (N, H'*W'), float32 (float64 for float64 maps), non-negative rows of length one.

    Raises:
        ValueError: feature_map is not (N, C, H, W).
    """
    _check_map(feature_map, "feature map")
    # bf16 keeps three digits, too few for differences of maps; squares of float16 overflow
    # beyond 256.
    dtype = torch.promote_types(feature_map.dtype, torch.float32)
    squares = feature_map.to(dtype).square()
    energy = squares.mean(dim=1)  # (N, H, W)

    # Pooling after the mean of squares is our choice: it then has one map to pool instead of C.
    own_size = tuple(energy.shape[1:])
    if size is not None and size != own_size:
        energy = functional.adaptive_avg_pool2d(energy, size)
    flat = energy.flatten(1)
    return functional.normalize(flat, dim=1)


def attention_transfer_loss(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]
) -> Tensor:
    """Return sum_taps mean_{n, hw} (Q(A_s) - Q(A_t))^2, () float32.

    The paper adds beta/2 sum_taps ||Q(A_s) - Q(A_t)||_p with p = 2 (Eq. 2). The released code takes
    the *square* of the norm, has no 1/2, and divides by the number of images and of map positions:
    that is this function, and its weight is beta = 1000. Both maps are non-negative unit vectors,
    so a tap adds at most 2 / (H*W).

    Where the maps of a tap differ in height or width, the larger is averaged down to the smaller.

    Args:
        student_maps: one (N, C, H, W) per tap, any float dtype.
        teacher_maps: one (N, D, H', W') per tap; no gradient flows to them.

    Raises:
        ValueError: there are no taps, the numbers of taps differ, or a map has the wrong number of
            dimensions or of images.
    """
    if not student_maps or len(student_maps) != len(teacher_maps):
        raise ValueError(
            "student and teacher need equally many taps, at least one, "
            f"got {len(student_maps)} and {len(teacher_maps)}"
        )

    losses = []
    pairs = zip(student_maps, teacher_maps, strict=True)
    for tap, (student_map, teacher_map) in enumerate(pairs):
        loss = _tap_loss(student_map, teacher_map, tap)
        losses.append(loss)
    return torch.stack(losses).sum()


def _tap_loss(student_map: Tensor, teacher_map: Tensor, tap: int) -> Tensor:
    _check_map(student_map, f"student's map of tap {tap}")
    _check_map(teacher_map, f"teacher's map of tap {tap}")
    if len(student_map) != len(teacher_map):
        raise ValueError(
            f"tap {tap} has maps of {len(student_map)} images of the student, "
            f"{len(teacher_map)} of the teacher"
        )

    # The smaller of the two in either direction
    student_height, student_width = student_map.shape[2:]
    teacher_height, teacher_width = teacher_map.shape[2:]
    height = min(student_height, teacher_height)
    width = min(student_width, teacher_width)
    size = (height, width)

    student_attention = attention_map(student_map, size)
    teacher_attention = attention_map(teacher_map.detach(), size)
    difference = student_attention - teacher_attention
    return difference.square().mean()


def _check_map(feature_map: Tensor, name: str) -> None:
    if feature_map.ndim != 4:
        shape = tuple(feature_map.shape)
        raise ValueError(f"the {name} is {shape}; expected (N, C, H, W)")
