"""Random views and normalisation of whole uint8 batches, by one gather; no per-sample Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def random_views(images: Tensor, *, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return one random view an image: a crop of the zero-padded image and, with probability 1/2, its mirror image.

    The offsets and the flip are folded into one index, so the batch is read once.

    Args:
        images: (N, C, H, W) uint8.
        padding: largest shift in pixels, >= 0.
        flip: whether half of the images are mirrored.
        generator: on the images' device.

    Returns:
        (N, C, H, W) uint8, a new tensor unless there is nothing to do.
    """
    if padding == 0 and not flip:
        return images
    n, channels, height, width = images.shape
    device = images.device
    offsets = torch.randint(0, 2 * padding + 1, (2, n), generator=generator, device=device)
    columns = torch.arange(width, device=device).expand(n, width)
    if flip:
        is_flipped = torch.rand(n, 1, generator=generator, device=device) < 0.5
        columns = torch.where(is_flipped, width - 1 - columns, columns)
    rows = torch.arange(height, device=device) + offsets[0].unsqueeze(1)
    columns = columns + offsets[1].unsqueeze(1)
    index = (rows.unsqueeze(2) * (width + 2 * padding) + columns.unsqueeze(1)).view(n, 1, height * width)
    padded = functional.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, index.expand(n, channels, -1)).view(n, channels, height, width)


class Normalise:
    """Turn uint8 images into a network's float32 input: (x / 255 - mean) / std per channel, as one multiply-add."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> None:
        means = torch.tensor(mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        stds = torch.tensor(std, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._scale = 1.0 / (255.0 * stds)
        self._shift = -means / stds

    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) uint8 to float32."""
        return torch.addcmul(self._shift, images.float(), self._scale)
