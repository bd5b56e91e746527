"""Random views and normalization of whole uint8 batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def n_views(padding: int, flip: bool) -> int:
    """Return how many views an image has: (2 padding + 1)^2 crops, twice as many with their mirror images."""
    return (2 * padding + 1) ** 2 * (2 if flip else 1)


def draw_views(n: int, *, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return (n,) int64 random views, in 0..`n_views`-1, on the generator's device."""
    side, device = 2 * padding + 1, generator.device
    offsets = torch.randint(0, side, (2, n), generator=generator, device=device)
    views = offsets[0] * side + offsets[1]
    if flip:
        views = 2 * views + (torch.rand(n, generator=generator, device=device) < 0.5)
    return views


def take_views(images: Tensor, views: Tensor, *, padding: int, flip: bool) -> Tensor:
    """Return one view an image: a crop of the zero-padded image, or its mirror image.

    Args:
        images: (N, C, H, W) uint8.
        views: (N,) int64 in 0..`n_views`-1, on the same device.
        padding: largest shift in pixels, >= 0.
        flip: whether there are mirror images.

    Returns:
        (N, C, H, W) uint8, a new tensor unless there is nothing to do.
    """
    if padding == 0 and not flip:
        return images
    is_flipped = views % 2 == 1 if flip else torch.zeros_like(views, dtype=torch.bool)
    crops = views // 2 if flip else views
    side = 2 * padding + 1
    padded = functional.pad(images, (padding,) * 4)
    take = copied if images.device.type == "cpu" else gathered
    return take(padded, crops // side, crops % side, is_flipped, images.shape)


def gathered(
    padded: Tensor, tops: Tensor, lefts: Tensor, is_flipped: Tensor, shape: torch.Size
) -> Tensor:
    """Return the windows of `shape` at (tops, lefts), mirrored where asked: one index for all, so one read on a GPU."""
    n, channels, height, width = shape
    columns = torch.arange(width, device=padded.device).expand(n, width)
    columns = torch.where(is_flipped.unsqueeze(1), width - 1 - columns, columns) + lefts.unsqueeze(
        1
    )
    rows = torch.arange(height, device=padded.device) + tops.unsqueeze(1)
    index = (rows.unsqueeze(2) * padded.shape[3] + columns.unsqueeze(1)).view(n, 1, height * width)
    return padded.flatten(2).gather(2, index.expand(n, channels, -1)).view(shape)


def copied(
    padded: Tensor, tops: Tensor, lefts: Tensor, is_flipped: Tensor, shape: torch.Size
) -> Tensor:
    """Return what `gathered` does, image by image: a CPU copies rows of pixels 1.3 to 3 times as fast as it gathers."""
    _, _, height, width = shape
    pixels, views = padded.numpy(), np.empty(shape, dtype=np.uint8)
    places = zip(tops.tolist(), lefts.tolist(), is_flipped.tolist(), strict=True)
    for row, (top, left, is_mirrored) in enumerate(places):
        window = pixels[row, :, top : top + height, left : left + width]
        views[row] = window[:, :, ::-1] if is_mirrored else window
    return torch.from_numpy(views)


def random_views(images: Tensor, *, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return one random view of each of (N, C, H, W) uint8 images; see `take_views`."""
    if padding == 0 and not flip:
        return images
    views = draw_views(len(images), padding=padding, flip=flip, generator=generator)
    return take_views(images, views, padding=padding, flip=flip)


class Normalize:
    """Turn uint8 images into a network's float32 input: (x / 255 - mean) / std per channel, as one multiply-add.

    Color images come out with their channels last in memory, and convolutions keep that: a training step of a narrow
    ResNet then takes two thirds of the time on a CPU (docs/results/speed.md). Gray images are the same in both orders.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
    ) -> None:
        means = torch.tensor(mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        stds = torch.tensor(std, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._scale = 1.0 / (255.0 * stds)
        self._shift = -means / stds
        has_order = len(mean) > 1 and torch.device(device).type != "mps"
        self._order = torch.channels_last if has_order else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) uint8 to float32."""
        if images.device.type == "cpu":
            return self._on_cpu(images)
        return torch.addcmul(
            self._shift, images.to(torch.float32, memory_format=self._order), self._scale
        )

    def _on_cpu(self, images: Tensor) -> Tensor:
        """Return the same to the last bit in a quarter of the time.

        Reordering while copying is slow where the channels are the innermost of many loops, and so is a product with
        operands of three values: each channel is copied to its place, and the operands are as long as an image.
        """
        normalized = torch.empty(images.shape, memory_format=self._order)
        for channel in range(images.shape[1]):
            normalized[:, channel] = images[:, channel]
        pixels = normalized.permute(0, 2, 3, 1).flatten(1)
        scale, shift = (
            values.view(-1).repeat(images.shape[2:].numel())
            for values in (self._scale, self._shift)
        )
        torch.addcmul(shift, pixels, scale, out=pixels)
        return normalized
