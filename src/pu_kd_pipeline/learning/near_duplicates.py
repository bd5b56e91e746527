"""Near-duplicates: which images are the same picture as a reference image, saved, resized or colored in another way.

An image becomes the gradients of its gray thumbnail, and two images are as far apart as these are uncorrelated. Such a
distance hardly feels compression, resampling, brightness, contrast and color. How far is too far depends on the kind
of picture: two handwritten strokes are nearer than two photos ever are. So a copy must be much nearer to the reference
than other images are. Crops, shifts, rotations, mirror images and inverted ones are not found, nor are copies
of an image that is flat.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

THUMBNAIL_PX = 16
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG has it
N_COARSE = 64  # coordinates of a fingerprint that nearly all pairs are told apart by
FLAT = (
    1.0  # gray levels: an image whose gradients are smaller (root mean square) has no fingerprint
)
NEIGHBOR_RANK = 5
_BLOCK = 2**24  # distances held at a time
_SLACK = 1e-5  # rounding of float32


class Copies(NamedTuple):
    """Images that are copies of a reference, each with the nearest one."""

    rows: Tensor
    """(n,) int64, ascending: rows of the images."""
    references: Tensor
    """(n,) int64: rows of the references."""
    distances: Tensor
    """(n,) float32 in [0, 2]."""


def fingerprints(images: Tensor) -> Tensor:
    """Return one unit vector an image: the gradients of its gray thumbnail, in an orthonormal basis, coarse ones first.

    The thumbnail is at most 16 x 16. Its differences between neighboring pixels are never formed: the cosine transform
    diagonalises them (Strang 1999, The Discrete Cosine Transform), so that each of its coefficients, times the root of
    an eigenvalue, is one coordinate, and products of such vectors are products of gradients.

    Args:
        images: (N, C, H, W) uint8, gray (C = 1) or RGB (C = 3).

    Returns:
        (N, D) float32 with D = min(H, 16) * min(W, 16) - 1; zeros for an image that is flat.

    Raises:
        ValueError: the images are of another form.
    """
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images must be (N, 1 or 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}"
        )
    gray = images.float()
    if images.shape[1] == 3:
        gray = (gray * torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)).sum(
            dim=1, keepdim=True
        )
    height, width = (min(THUMBNAIL_PX, side) for side in images.shape[2:])
    if gray.shape[2:] != (height, width):
        gray = interpolate(gray, size=(height, width), mode="bilinear", antialias=True)
    (rows, of_rows), (columns, of_columns) = _cosine_basis(height), _cosine_basis(width)
    eigenvalues = of_rows[:, None] + of_columns
    coefficients = (rows @ gray[:, 0].cpu() @ columns.T) * eigenvalues.sqrt()
    order = eigenvalues.flatten().argsort(stable=True)[
        1:
    ]  # the first one is the mean, which has no gradient
    gradients = coefficients.flatten(1)[:, order]
    norms = gradients.norm(dim=1, keepdim=True)
    return torch.where(
        norms < FLAT * math.sqrt(height * width), 0.0, gradients / norms.clamp_min(1e-12)
    )


def _cosine_basis(n: int) -> tuple[Tensor, Tensor]:
    """Return the orthonormal cosine transform of n values, (n, n), and what differences make of each wave, (n,)."""
    frequencies = torch.arange(n, dtype=torch.float64)
    waves = torch.cos(math.pi / n * frequencies[:, None] * (frequencies + 0.5)) * math.sqrt(2 / n)
    waves[0] /= math.sqrt(2)
    return waves.float(), (2 - 2 * torch.cos(math.pi / n * frequencies)).float()


def copy_limits(
    references: Tensor, others: Tensor, *, max_distance: float, max_ratio: float
) -> Tensor:
    """Return how near an image must come to each reference to be its copy.

    That is `max_ratio` of the distance between the reference and the fifth nearest of all other images at hand, and at
    most `max_distance`. Lowe 2004, sec. 7.1, compares with the second nearest; with the fifth, an image may be there
    five times and all its copies are found.

    Args:
        references: (M, D) fingerprints.
        others: (B, D) fingerprints of further images of the same kinds, such as a sample of those that are searched:
            the more there are, the better is known how near different images come.
        max_distance: at most this for any reference.
        max_ratio: share of the distance to the fifth nearest.

    Returns:
        (M,) float32; -1 for a reference that is flat, of which nothing is a copy.

    Raises:
        ValueError: a limit is outside (0, 1].
    """
    if not (0 < max_distance <= 1 and 0 < max_ratio <= 1):
        raise ValueError(
            f"max_distance and max_ratio must lie in (0, 1], got {max_distance!r} and {max_ratio!r}"
        )
    limits = torch.full((len(references),), float(max_distance))
    known = torch.cat([references, others])
    rank = min(NEIGHBOR_RANK, len(known) - 1)
    if rank > 0:
        step = max(1, _BLOCK // len(known))
        for start in range(0, len(references), step):
            # the nearest is the reference itself
            products = (
                (references[start : start + step] @ known.T).topk(rank + 1, dim=1).values[:, -1]
            )
            limits[start : start + step] = (max_ratio * (1 - products)).clamp(0, max_distance)
    return limits.where(references.any(dim=1), -1.0)


def find_copies(images: Tensor, references: Tensor, limits: Tensor) -> Copies:
    """Return the images that are no further from a reference than its limit, each with the nearest such reference.

    The distance is one minus the product of two fingerprints. Half the squared distance of their coarse coordinates can
    only be less, so a product of short vectors rules out nearly all pairs, and never a copy.

    Args:
        images: (N, D) fingerprints.
        references: (M, D) fingerprints.
        limits: (M,) of `copy_limits`.
    """
    coarse = references[:, :N_COARSE]
    # <a, b> - |a|^2 / 2 - |b|^2 / 2 + limit >= 0, as one product
    offsets = limits - coarse.square().sum(dim=1) / 2 + _SLACK
    right = torch.cat(
        [coarse, torch.ones(len(references), 1), offsets[:, None]], dim=1
    ).T.contiguous()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    step = max(1, _BLOCK // max(1, len(references)))
    for start in range(0, len(images), step):
        left = images[start : start + step, :N_COARSE]
        left = torch.cat(
            [left, -left.square().sum(dim=1, keepdim=True) / 2, torch.ones(len(left), 1)], dim=1
        )
        for pairs in (left @ right >= 0).nonzero().split(_BLOCK // 256):
            rows, others = pairs[:, 0] + start, pairs[:, 1]
            distances = (1 - (images[rows] * references[others]).sum(dim=1)).clamp_min(0)
            near = distances <= limits[others]
            found.append((rows[near], others[near], distances[near]))
    if not found:
        return Copies(
            torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0)
        )
    rows, others, distances = (torch.cat(part) for part in zip(*found, strict=True))
    order = distances.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]  # by row, and the nearest of each first
    rows, others, distances = rows[order], others[order], distances[order]
    is_first = torch.ones(len(rows), dtype=torch.bool)
    is_first[1:] = rows[1:] != rows[:-1]
    return Copies(rows[is_first], others[is_first], distances[is_first])
