"""Random views and normalisation of whole uint8 batches, by one gather; no per-sample Python."""

from __future__ import annotations

from collections.abc import Sequence

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

    Offsets and flip are folded into one index, so the batch is read once.

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
    n, channels, height, width = images.shape
    columns = torch.arange(width, device=images.device).expand(n, width)
    if flip:
        columns = torch.where((views % 2 == 1).unsqueeze(1), width - 1 - columns, columns)
        views = views // 2
    side = 2 * padding + 1
    rows = torch.arange(height, device=images.device) + (views // side).unsqueeze(1)
    columns = columns + (views % side).unsqueeze(1)
    index = (rows.unsqueeze(2) * (width + 2 * padding) + columns.unsqueeze(1)).view(n, 1, height * width)
    padded = functional.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, index.expand(n, channels, -1)).view(n, channels, height, width)


def random_views(images: Tensor, *, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return one random view of each of (N, C, H, W) uint8 images; see `take_views`."""
    if padding == 0 and not flip:
        return images
    views = draw_views(len(images), padding=padding, flip=flip, generator=generator)
    return take_views(images, views, padding=padding, flip=flip)


class Normalise:
    """Turn uint8 images into a network's float32 input: (x / 255 - mean) / std per channel, as one multiply-add.

    Colour images come out with their channels last in memory, and convolutions keep that: a training step of a narrow
    ResNet then takes two thirds of the time on a CPU (docs/results/speed.md). Grey images are the same in both orders.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> None:
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
        return torch.addcmul(self._shift, images.to(torch.float32, memory_format=self._order), self._scale)

    def _on_cpu(self, images: Tensor) -> Tensor:
        """Return the same to the last bit in a quarter of the time.

        Reordering while copying is slow where the channels are the innermost of many loops, and so is a product with
        operands of three values: each channel is copied to its place, and the operands are as long as an image.
        """
        normalised = torch.empty(images.shape, memory_format=self._order)
        for channel in range(images.shape[1]):
            normalised[:, channel] = images[:, channel]
        pixels = normalised.permute(0, 2, 3, 1).flatten(1)
        scale, shift = (values.view(-1).repeat(images.shape[2:].numel()) for values in (self._scale, self._shift))
        torch.addcmul(shift, pixels, scale, out=pixels)
        return normalised
