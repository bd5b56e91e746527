"""CutMix and mixup of a batch of images, for a teacher and a student that both see the mixed ones.

There are no labels to mix: the target of a mixed image is what the teacher says of it, as in
Beyer et al. 2022 (arXiv:2106.05237).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Not the stream of the images and views of a seed: these stay the same with and without mixing.
_STREAM = 1


class Mixture(NamedTuple):
    """How the images of one batch are mixed."""

    own_share: float
    """lambda, the share of the image itself, in [0, 1]."""
    partners: np.ndarray
    """(N,) int64, a permutation of the batch: the image that each one is mixed with."""
    center: tuple[float, float]
    """Of the box of CutMix: down and right, in [0, 1) of the image."""


@dataclass(frozen=True)
class Mixing:
    """Draws how batches are mixed, and mixes them.

    Attributes:
        kind: `cutmix` (Yun et al. 2019, arXiv:1905.04899) or `mixup` (Zhang et al. 2018,
            arXiv:1710.09412).
        alpha: of the distribution Beta(alpha, alpha) of lambda; > 0. At 1 it is uniform.
        share: of the batches that are mixed, in (0, 1].
        seed: fixes everything that is drawn.
    """

    kind: Literal["cutmix", "mixup"]
    alpha: float
    share: float
    seed: int

    def mixtures(self, batch_size: int) -> Iterator[Mixture | None]:
        """Yield the mixture of each batch forever; None: the batch is not mixed.

        As in the released code of both papers, lambda, box and permutation are those of a batch.
        NumPy draws them, so that the host does not wait for a GPU, and a GPU mixes as a CPU does.
        """
        rng = np.random.default_rng([self.seed, _STREAM])
        while True:
            # The same draws for every batch: another share mixes the same batches in the same way.
            is_mixed = rng.random() < self.share
            own_share = rng.beta(self.alpha, self.alpha)
            top, left = rng.random(2)
            partners = rng.permutation(batch_size)
            if is_mixed:
                yield Mixture(float(own_share), partners, (float(top), float(left)))
            else:
                yield None

    def mix(self, images: Tensor, mixture: Mixture) -> Tensor:
        """Return (N, C, H, W) float mixed images, a new tensor with the images' memory format."""
        partners = torch.from_numpy(mixture.partners).to(images.device)
        if self.kind == "mixup":
            return mixup(images, partners, mixture.own_share)
        height, width = images.shape[2:]
        box = cutmix_box(height, width, mixture.own_share, mixture.center)
        return cutmix(images, partners, box)


def mixup(images: Tensor, partners: Tensor, own_share: float) -> Tensor:
    """Return lambda x_i + (1 - lambda) x_partner(i) (Zhang et al. 2018, Eq. 1).

    Args:
        images: (N, C, H, W) float. Normalization is affine and the shares sum to one: mixing
            normalized images is normalizing mixed ones.
        partners: (N,) int64 on the same device.
        own_share: lambda in [0, 1].
    """
    return torch.lerp(images[partners], images, own_share)


def cutmix(images: Tensor, partners: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Return the images with one box from their partners (Yun et al. 2019, Eq. 1).

    Args:
        images: (N, C, H, W) of any dtype.
        partners: (N,) int64 on the same device.
        box: top, bottom, left and right; the last row and column are not part of it.
    """
    top, bottom, left, right = box
    mixed = images.clone()
    patches = images[:, :, top:bottom, left:right]
    mixed[:, :, top:bottom, left:right] = patches[partners]
    return mixed


def cutmix_box(
    height: int, width: int, own_share: float, center: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of the box that comes from the partner.

    Its sides are sqrt(1 - lambda) of the image's, as in Algorithm A1 of Yun et al. 2019. A box that
    reaches beyond the image is cut off, which leaves the image a larger share than lambda.
    """
    ratio = math.sqrt(1.0 - own_share)
    top, bottom = _side(height, ratio, center[0])
    left, right = _side(width, ratio, center[1])
    return top, bottom, left, right


def _side(size: int, ratio: float, center: float) -> tuple[int, int]:
    """Return start and end of the box along one side of the image."""
    half = int(size * ratio) // 2
    middle = int(center * size)
    start = max(middle - half, 0)
    end = min(middle + half, size)
    return start, end
