"""Random views of images by a number: the same number always gives the same view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pu_kd_pipeline.learning.augmentation import draw_views, n_views, take_views


class Views(Protocol):
    """The views of an image, each with a number."""

    @property
    def n_views(self) -> int | None:
        """How many views an image has; None: they are continuous."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Return (n,) int64 random views, on the generator's device."""

    def take(self, images: Tensor, views: Tensor) -> Tensor:
        """Return one view of each image.

        Args:
            images: (N, C, H, W) uint8.
            views: (N,) int64 of `draw`, on the same device.

        Returns:
            (N, C, H, W) uint8, or float32 in [0, 255] where views are interpolated.
        """


@dataclass(frozen=True)
class ShiftedViews:
    """Crops of the padded image and their mirror images, see `augmentation.take_views`."""

    padding: int
    flip: bool

    @property
    def n_views(self) -> int:
        return n_views(self.padding, self.flip)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return draw_views(n, padding=self.padding, flip=self.flip, generator=generator)

    def take(self, images: Tensor, views: Tensor) -> Tensor:
        return take_views(images, views, padding=self.padding, flip=self.flip)
