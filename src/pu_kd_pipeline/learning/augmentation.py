"""Random views and normalization of whole uint8 batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_LARGEST_PIXEL = 255.0


def n_views(padding: int, flip: bool) -> int:
    """Return how many views an image has.

    There are (2 padding + 1)^2 crops, and twice as many views where each has a mirror image.
    """
    n_crops = (2 * padding + 1) ** 2
    if flip:
        return 2 * n_crops
    return n_crops


def draw_views(n: int, *, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return (n,) int64 random views, in 0..`n_views`-1, on the generator's device."""
    side = 2 * padding + 1
    device = generator.device
    # One call for both offsets: the order of draws fixes the views of a seed.
    offsets = torch.randint(0, side, (2, n), generator=generator, device=device)
    tops = offsets[0]
    lefts = offsets[1]
    views = tops * side + lefts
    if flip:
        draws = torch.rand(n, generator=generator, device=device)
        is_flipped = draws < 0.5
        views = 2 * views + is_flipped
    return views


def take_views(images: Tensor, views: Tensor, *, padding: int, flip: bool) -> Tensor:
    """Return one view per image: a crop of the zero-padded image, or its mirror image.

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
    # The inverse of the numbering in `draw_views`
    if flip:
        is_flipped = views % 2 == 1
        crops = views // 2
    else:
        is_flipped = torch.zeros_like(views, dtype=torch.bool)
        crops = views
    side = 2 * padding + 1
    tops = crops // side
    lefts = crops % side

    # On all four sides
    padded = functional.pad(images, (padding,) * 4)
    if images.device.type == "cpu":
        return copied(padded, tops, lefts, is_flipped, images.shape)
    return gathered(padded, tops, lefts, is_flipped, images.shape)


def gathered(
    padded: Tensor, tops: Tensor, lefts: Tensor, is_flipped: Tensor, shape: torch.Size
) -> Tensor:
    """Return the windows of `shape` at (tops, lefts), mirrored where `is_flipped`.

    One index addresses all pixels of the batch, so a GPU reads them in one kernel.
    """
    n, channels, height, width = shape
    device = padded.device

    # (N, W) columns of the padded image that each view reads, from left to right
    columns = torch.arange(width, device=device)
    columns = columns.expand(n, width)
    mirrored = width - 1 - columns
    is_flipped = is_flipped.unsqueeze(1)
    columns = torch.where(is_flipped, mirrored, columns)
    columns = columns + lefts.unsqueeze(1)

    # (N, H) rows of the padded image
    rows = torch.arange(height, device=device)
    rows = rows + tops.unsqueeze(1)

    # (N, H, W) positions of the pixels in the flattened (padded) image
    padded_width = padded.shape[3]
    row_starts = rows * padded_width
    positions = row_starts.unsqueeze(2) + columns.unsqueeze(1)

    # The channels share the positions: `expand` repeats them without a copy.
    index = positions.view(n, 1, height * width)
    index = index.expand(n, channels, -1)
    flat_pixels = padded.flatten(2)
    pixels = flat_pixels.gather(2, index)
    return pixels.view(shape)


def copied(
    padded: Tensor, tops: Tensor, lefts: Tensor, is_flipped: Tensor, shape: torch.Size
) -> Tensor:
    """Return the same as `gathered`, image by image.

    A CPU copies rows of pixels 1.3 to 3 times as fast as it gathers single ones.
    """
    _, _, height, width = shape
    pixels = padded.numpy()  # shares the memory
    views = np.empty(shape, dtype=np.uint8)

    # As Python numbers, because indexing by tensors takes longer than the copy itself.
    top_list = tops.tolist()
    left_list = lefts.tolist()
    flip_list = is_flipped.tolist()
    places = zip(top_list, left_list, flip_list, strict=True)
    for number, (top, left, is_mirrored) in enumerate(places):
        bottom = top + height
        right = left + width
        window = pixels[number, :, top:bottom, left:right]
        if is_mirrored:
            window = window[:, :, ::-1]
        views[number] = window
    return torch.from_numpy(views)


class Normalize:
    """Turn uint8 RGB or gray images into a network's float32 input.

    That is (x * (high - low) / 255 + low - mean) / std per channel, and (x / 255 - mean) / std with
    the usual `value_range`.

    Computed as one multiply-add. Color images come out with their channels last in memory, and
    convolutions keep that order, which makes them faster on a CPU (docs/results/speed.md). Gray
    images are the same in both orders.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        *,
        value_range: tuple[float, float] = (0.0, 1.0),
        is_reversed: bool = False,
    ) -> None:
        """Set up the normalization.

        Args:
            mean: one per channel, in the order of the network's channels, of pixels in
                `value_range`.
            std: one per channel, as `mean`.
            device: where the images are.
            value_range: what 0 and 255 become before mean and std.
            is_reversed: the network's channels are blue, green, red.
        """
        device = torch.device(device)
        means = _per_channel(mean, device)
        stds = _per_channel(std, device)
        low, high = value_range
        # (x * (high - low) / 255 + low - mean) / std is x * scale + shift.
        self._scale = (high - low) / (_LARGEST_PIXEL * stds)
        self._shift = (low - means) / stds
        self._is_reversed = is_reversed

        is_color = len(mean) > 1
        self._order = torch.contiguous_format
        if is_color and device.type != "mps":
            self._order = torch.channels_last

    @property
    def scale(self) -> Tensor:
        """(1, C, 1, 1) float32: what pixels are multiplied by."""
        return self._scale

    @property
    def shift(self) -> Tensor:
        """(1, C, 1, 1) float32: what is added then."""
        return self._shift

    @property
    def is_reversed(self) -> bool:
        """Whether the order of the channels is reversed first."""
        return self._is_reversed

    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) uint8 to float32."""
        if self._is_reversed:
            images = images.flip(1)
        if images.device.type == "cpu":
            return self._on_cpu(images)

        # On a GPU, conversion and multiply-add are one kernel each.
        pixels = images.to(torch.float32, memory_format=self._order)
        return torch.addcmul(self._shift, pixels, self._scale)

    def _on_cpu(self, images: Tensor) -> Tensor:
        """Return the same to the last bit in a quarter of the time.

        Reordering while copying is slow where the channels are the innermost of many loops, so each
        channel is copied to its place. A product with operands of three values is slow too, so the
        operands are repeated to the length of an image.
        """
        normalized = torch.empty(images.shape, memory_format=self._order)
        # The assignment also converts uint8 to float32.
        for channel in range(images.shape[1]):
            normalized[:, channel] = images[:, channel]

        # (N, H * W * C), a view: the result is written into `normalized`.
        pixels = normalized.permute(0, 2, 3, 1)
        pixels = pixels.flatten(1)
        n_places = images.shape[2:].numel()
        scale = self._scale.view(-1)
        shift = self._shift.view(-1)
        scales = scale.repeat(n_places)
        shifts = shift.repeat(n_places)
        torch.addcmul(shifts, pixels, scales, out=pixels)
        return normalized


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """Return one number per channel as (1, C, 1, 1) float32, which applies to a batch."""
    vector = torch.tensor(values, dtype=torch.float32, device=device)
    return vector.view(1, -1, 1, 1)
