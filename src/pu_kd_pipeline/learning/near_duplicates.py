"""Near-duplicates: images that show the same picture as a reference image, saved differently.

An image becomes the gradients of its gray thumbnail, and the distance of two images is how
uncorrelated these are. Compression, resampling, brightness, contrast and color hardly change it.
How far is too far depends on the kind of picture: two handwritten strokes are nearer than two
photos ever are. So a copy must be much nearer to the reference than other images are. Not found are
crops, shifts, rotations, mirrored and inverted images, and copies of an image that is flat.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

THUMBNAIL_PX = 16
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG has it
N_COARSE = 64  # coordinates of a fingerprint that suffice to rule out nearly all pairs
# Gray levels: an image with smaller gradients (root mean square) has no fingerprint.
SMALLEST_GRADIENT = 1.0
NEIGHBOR_RANK = 5
_BLOCK = 2**24  # distances held in memory at a time
_SLACK = 1e-5  # rounding of float32


class Copies(NamedTuple):
    """Images that are copies of a reference, each with the nearest reference."""

    rows: Tensor
    """(n,) int64, ascending: rows of the images."""
    references: Tensor
    """(n,) int64: rows of the references."""
    distances: Tensor
    """(n,) float32 in [0, 2]."""

    def take(self, which: Tensor) -> Copies:
        """Return the copies that a mask or an index names."""
        return Copies(
            rows=self.rows[which],
            references=self.references[which],
            distances=self.distances[which],
        )


def fingerprints(images: Tensor) -> Tensor:
    """Return one unit vector per image: the gradients of its gray thumbnail.

    The thumbnail is at most 16 x 16. The vectors are in an orthonormal basis, coarse coordinates
    first, so that products of vectors are products of gradients.

    Args:
        images: (N, C, H, W) uint8, gray (C = 1) or RGB (C = 3).

    Returns:
        (N, D) float32 with D = min(H, 16) * min(W, 16) - 1; zeros for an image that is flat.

    Raises:
        ValueError: the images have another shape or dtype.
    """
    is_batch = images.ndim == 4 and images.dtype == torch.uint8
    if not is_batch or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images must be (N, 1 or 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}"
        )
    thumbnails = _gray_thumbnails(images)
    height, width = thumbnails.shape[1:]

    # The differences between neighboring pixels are never formed: the cosine transform diagonalizes
    # them (Strang 1999, The Discrete Cosine Transform), so each of its coefficients, times the root
    # of an eigenvalue, is one coordinate.
    row_basis, row_eigenvalues = _cosine_basis(height)
    column_basis, column_eigenvalues = _cosine_basis(width)
    cosine_transform = row_basis @ thumbnails @ column_basis.T
    eigenvalues = row_eigenvalues[:, None] + column_eigenvalues  # (height, width)
    coefficients = cosine_transform * eigenvalues.sqrt()

    flat_eigenvalues = eigenvalues.flatten()
    order = flat_eigenvalues.argsort(stable=True)
    # The first coefficient is the mean, which has no gradient.
    order = order[1:]
    flat_coefficients = coefficients.flatten(1)
    gradients = flat_coefficients[:, order]

    norms = gradients.norm(dim=1, keepdim=True)
    smallest_norm = SMALLEST_GRADIENT * math.sqrt(height * width)
    is_flat = norms < smallest_norm
    # The bound on the divisor keeps nan out of the rows that are replaced by zeros.
    directions = gradients / norms.clamp_min(1e-12)
    return torch.where(is_flat, 0.0, directions)


def _gray_thumbnails(images: Tensor) -> Tensor:
    """Return (N, min(H, 16), min(W, 16)) float32 on the CPU."""
    n_channels, full_height, full_width = images.shape[1:]
    gray = images.float()
    if n_channels == 3:
        luma = torch.tensor(LUMA, device=images.device)
        luma = luma.view(1, 3, 1, 1)
        gray = gray * luma
        gray = gray.sum(dim=1, keepdim=True)

    # Smaller images are not enlarged, which would only repeat what they hold.
    height = min(THUMBNAIL_PX, full_height)
    width = min(THUMBNAIL_PX, full_width)
    size = (height, width)
    if gray.shape[2:] != size:
        gray = interpolate(gray, size=size, mode="bilinear", antialias=True)
    without_channel = gray[:, 0]
    return without_channel.cpu()


def _cosine_basis(n: int) -> tuple[Tensor, Tensor]:
    """Return the cosine transform of n values, and its eigenvalues under squared differences.

    Args:
        n: number of values.

    Returns:
        (n, n) float32 orthonormal rows, and (n,) float32: the sum of squared differences between
        the neighboring values of each row.
    """
    # In float64: only the finished basis is rounded to float32.
    frequencies = torch.arange(n, dtype=torch.float64)
    angle_step = math.pi / n
    angles = angle_step * frequencies
    positions = frequencies + 0.5
    phases = angles[:, None] * positions  # one row per frequency
    waves = torch.cos(phases)

    # The constant row has twice the square sum of the others.
    scale = math.sqrt(2 / n)
    waves = waves * scale
    waves[0] /= math.sqrt(2)

    cosines = torch.cos(angles)
    eigenvalues = 2 - 2 * cosines
    return waves.float(), eigenvalues.float()


def copy_limits(
    references: Tensor, others: Tensor, *, max_distance: float, max_ratio: float
) -> Tensor:
    """Return how near an image must come to each reference to be its copy.

    That is `max_ratio` of the distance between the reference and the fifth nearest of all other
    images given, and at most `max_distance`.

    Args:
        references: (M, D) fingerprints.
        others: (B, D) fingerprints of further images of the same kinds, such as a sample of those
            that are searched: the more there are, the better is known how near different images
            come.
        max_distance: upper bound for every reference, in (0, 1].
        max_ratio: share of the distance to the fifth nearest, in (0, 1].

    Returns:
        (M,) float32; -1 for a reference that is flat, which has no copies.

    Raises:
        ValueError: a limit is outside (0, 1].
    """
    is_distance = 0 < max_distance <= 1
    is_ratio = 0 < max_ratio <= 1
    if not (is_distance and is_ratio):
        raise ValueError(
            f"max_distance and max_ratio must lie in (0, 1], got {max_distance!r} and {max_ratio!r}"
        )
    n_references = len(references)
    limits = torch.full((n_references,), float(max_distance))
    known = torch.cat([references, others])

    # Lowe 2004, sec. 7.1, compares with the second nearest; with the fifth, an image may be present
    # five times and all its copies are found.
    n_others = len(known) - 1
    rank = min(NEIGHBOR_RANK, n_others)
    if rank > 0:
        # Block by block, because the products of all pairs may not fit into memory.
        n_per_block = max(1, _BLOCK // len(known))
        for start in range(0, n_references, n_per_block):
            stop = start + n_per_block
            block = slice(start, stop)
            products = references[block] @ known.T
            # rank + 1, because the nearest is the reference itself
            largest_products = products.topk(rank + 1, dim=1).values
            neighbor_distances = 1 - largest_products[:, -1]
            block_limits = max_ratio * neighbor_distances
            limits[block] = block_limits.clamp(0, max_distance)

    is_flat = ~references.any(dim=1)
    return limits.masked_fill(is_flat, -1.0)


def find_copies(images: Tensor, references: Tensor, limits: Tensor) -> Copies:
    """Return the images within a reference's limit, each with the nearest such reference.

    The distance is one minus the product of two fingerprints.

    Args:
        images: (N, D) fingerprints.
        references: (M, D) fingerprints.
        limits: (M,) of `copy_limits`.
    """
    # Half the squared distance of the coarse coordinates can only be less than the distance, so a
    # product of short vectors rules out nearly all pairs, and never a copy: a pair (a, b) remains
    # where <a, b> - |a|^2 / 2 - |b|^2 / 2 + limit >= 0, which is one product of these vectors.
    right = _coarse_right(references, limits)
    # At least one, also where there is no reference to divide by.
    n_references = max(1, len(references))
    n_per_block = max(1, _BLOCK // n_references)

    found: list[Copies] = []
    for start in range(0, len(images), n_per_block):
        block = images[start : start + n_per_block]
        bounds = _coarse_left(block) @ right
        # (pairs, 2): the row within the block and the reference
        pairs = (bounds >= 0).nonzero()
        # In chunks, because each pair copies two whole fingerprints.
        for chunk in pairs.split(_BLOCK // 256):
            rows = chunk[:, 0] + start
            others = chunk[:, 1]
            distances = _distances(images[rows], references[others])
            copies = Copies(rows, others, distances)
            is_near = distances <= limits[others]
            found.append(copies.take(is_near))
    return _nearest_of_each_row(found)


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Return the (n,) distances of (n, D) fingerprints, row by row."""
    products = (first * second).sum(dim=1)
    distances = 1 - products
    # Rounding can put a product of unit vectors above 1.
    return distances.clamp_min(0)


def _coarse_right(references: Tensor, limits: Tensor) -> Tensor:
    """Return (N_COARSE + 2, M): the coarse coordinates b, 1, and limit - |b|^2 / 2."""
    coarse = references[:, :N_COARSE]
    n_references = len(references)
    squared_norms = coarse.square().sum(dim=1)
    half_squared_norms = squared_norms / 2
    # With some slack: rounding must not rule out a copy.
    offsets = limits - half_squared_norms + _SLACK

    ones = torch.ones(n_references, 1)
    right = torch.cat([coarse, ones, offsets[:, None]], dim=1)
    transposed = right.T
    return transposed.contiguous()


def _coarse_left(images: Tensor) -> Tensor:
    """Return (N, N_COARSE + 2): the coarse coordinates a, -|a|^2 / 2, and 1."""
    n_images = len(images)
    coarse = images[:, :N_COARSE]
    squares = coarse.square()
    squared_norms = squares.sum(dim=1, keepdim=True)
    half_squared_norms = squared_norms / 2

    ones = torch.ones(n_images, 1)
    return torch.cat([coarse, -half_squared_norms, ones], dim=1)


def _nearest_of_each_row(found: list[Copies]) -> Copies:
    if not found:
        no_rows = torch.empty(0, dtype=torch.int64)
        no_distances = torch.empty(0)
        return Copies(no_rows, no_rows, no_distances)
    copies = Copies(
        rows=torch.cat([part.rows for part in found]),
        references=torch.cat([part.references for part in found]),
        distances=torch.cat([part.distances for part in found]),
    )

    # Two stable sorts: by row, and the nearest of each row first.
    nearest_first = copies.distances.argsort(stable=True)
    copies = copies.take(nearest_first)
    by_row = copies.rows.argsort(stable=True)
    copies = copies.take(by_row)

    # A row is the first of its image where it differs from the row above.
    n_copies = len(copies.rows)
    is_first = torch.ones(n_copies, dtype=torch.bool)
    is_first[1:] = copies.rows[1:] != copies.rows[:-1]
    return copies.take(is_first)
