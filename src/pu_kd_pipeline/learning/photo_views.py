"""Random resized crops and color jitter of whole batches, each image with parameters of its own.

The parameters follow from a number per image. There is no loop over images: torchvision's
transforms (v2), which treat one image at a time, define what is computed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pu_kd_pipeline.learning.augmentation import n_views, take_views

_LARGEST_PIXEL = 255.0
_LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue in torchvision's grayscale
_CACHED_BYTES = 3 * 2**20
_N_ATTEMPTS = 10  # as in torchvision's RandomResizedCrop
_MAX_VIEW = 2**62  # so many that two equal ones are never drawn

# Which uniform number of an image decides what. Fixed, so that switching one option on or off
# leaves the others as they are.
_FLIP = 0
_SHIFT = 1
_TOP = 2
_LEFT = 3
_COLORS = 4  # brightness, contrast and saturation
_AREAS = 7
_RATIOS = _AREAS + _N_ATTEMPTS
_N_UNIFORMS = _RATIOS + _N_ATTEMPTS

# Of splitmix64 (Steele, Lea & Flood 2014), as signed integers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_N_DIGITS = 24  # bits that float32 represents exactly


class Boxes(NamedTuple):
    """The part of each image that is shown; (N,) int64 each."""

    tops: Tensor
    lefts: Tensor
    heights: Tensor
    widths: Tensor


@dataclass(frozen=True)
class PhotoViews:
    """Views of photos: shifted or resized crops, mirror images, and changed colors.

    Every view has a number, from which its parameters are computed: the same number gives the same
    view, on any device and after a resumed training.

    Attributes:
        padding: crops of the padded image are shifted by up to so many pixels; 0 with `scale`.
        flip: whether half of the views are mirrored.
        scale: smallest and largest share of the image's area that a resized crop shows, in (0, 1];
            None: there are no resized crops.
        ratio: smallest and largest width / height of the crop, before it is resized.
        brightness: b; the pixels are multiplied by a factor in [max(0, 1 - b), 1 + b].
        contrast: the same for the difference to the mean of the gray image.
        saturation: the same for the difference to the gray image.
    """

    padding: int = 0
    flip: bool = False
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    @property
    def n_views(self) -> None:
        """None: the parameters are continuous."""
        return None

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Return (n,) int64 random views, on the generator's device."""
        return torch.randint(0, _MAX_VIEW, (n,), generator=generator, device=generator.device)

    def take(self, images: Tensor, views: Tensor) -> Tensor:
        """Return one view of each image.

        Args:
            images: (N, C, H, W) uint8, C is 1 or 3 (red, green, blue).
            views: (N,) int64 of `draw`, on the same device.

        Returns:
            (N, C, H, W) float32 in [0, 255], not rounded.
        """
        if images.device.type != "cpu":
            return self._taken(images, views)
        # Several passes over the pixels: parts that fit the cache of a CPU take half the time where
        # images are large.
        n_floats = math.prod(images.shape[1:])
        n_at_once = max(1, _CACHED_BYTES // (4 * n_floats))
        pixels = torch.empty(images.shape)
        for start in range(0, len(images), n_at_once):
            part = slice(start, start + n_at_once)
            pixels[part] = self._taken(images[part], views[part])
        return pixels

    def _taken(self, images: Tensor, views: Tensor) -> Tensor:
        uniforms = uniform_numbers(views)
        pixels = self._cropped(images, uniforms)
        factors = self._factors(uniforms)
        adjust_colors(pixels, *factors)
        return pixels

    def _cropped(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Return a new float32 tensor."""
        is_flipped = uniforms[:, _FLIP] < 0.5
        if self.scale is not None:
            height, width = images.shape[2:]
            boxes = resized_crop_boxes(height, width, self.scale, self.ratio, uniforms)
            if not self.flip:
                is_flipped = torch.zeros_like(is_flipped)
            return resized_crops(images, boxes, is_flipped)
        # Discrete views need no interpolation.
        n_crops = n_views(self.padding, flip=False)
        numbers = _whole_numbers(uniforms[:, _SHIFT], torch.tensor(n_crops))
        if self.flip:
            numbers = 2 * numbers + is_flipped
        shifted = take_views(images, numbers, padding=self.padding, flip=self.flip)
        return shifted.float()

    def _factors(self, uniforms: Tensor) -> list[Tensor | None]:
        """Return (N,) factors of brightness, contrast and saturation; None: no change."""
        factors: list[Tensor | None] = []
        for number, strength in enumerate((self.brightness, self.contrast, self.saturation)):
            if strength == 0:
                factors.append(None)
                continue
            low = max(0.0, 1.0 - strength)
            high = 1.0 + strength
            factors.append(low + (high - low) * uniforms[:, _COLORS + number])
        return factors


def uniform_numbers(views: Tensor) -> Tensor:
    """Return (N, n) float32 in [0, 1), which are independent for all practical purposes.

    The k-th number of a view is the splitmix64 hash of the view and k.

    Args:
        views: (N,) int64.
    """
    counters = torch.arange(1, _N_UNIFORMS + 1, device=views.device)
    # Integers of 64 bits wrap around, as the hash wants it. A first round, so that neighboring
    # views do not share numbers.
    states = _hashed(views + _GOLDEN).unsqueeze(1) + counters * _GOLDEN
    high_bits = _shifted(_hashed(states), 64 - _N_DIGITS)
    return high_bits.float() * 2.0**-_N_DIGITS


def _whole_numbers(uniforms: Tensor, n: Tensor) -> Tensor:
    """Return (N,) int64 numbers in 0..n-1."""
    # The product may be rounded up to n.
    return torch.minimum((uniforms * n).long(), n - 1)


def _hashed(states: Tensor) -> Tensor:
    states = (states ^ _shifted(states, 30)) * _MIX_1
    states = (states ^ _shifted(states, 27)) * _MIX_2
    return states ^ _shifted(states, 31)


def _shifted(values: Tensor, n_bits: int) -> Tensor:
    """Return the values shifted to the right, with zeros on the left whatever their sign."""
    return (values >> n_bits) & (2 ** (64 - n_bits) - 1)


def resized_crop_boxes(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    uniforms: Tensor,
) -> Boxes:
    """Return the boxes of random resized crops, drawn as torchvision's RandomResizedCrop does.

    Area and the logarithm of width / height are uniform. Of ten attempts the first that fits the
    image counts; if none does, the largest box in the center whose ratio is allowed.

    Args:
        height: of the images, in pixels.
        width: of the images, in pixels.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width / height.
        uniforms: see `uniform_numbers`.
    """
    areas = scale[0] + (scale[1] - scale[0]) * uniforms[:, _AREAS : _AREAS + _N_ATTEMPTS]
    areas = height * width * areas
    low = math.log(ratio[0])
    high = math.log(ratio[1])
    logs = low + (high - low) * uniforms[:, _RATIOS : _RATIOS + _N_ATTEMPTS]
    ratios = torch.exp(logs)
    widths = torch.sqrt(areas * ratios).round().long()
    heights = torch.sqrt(areas / ratios).round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)

    # The first attempt that fits: argmax finds the first of equal values.
    first = fits.int().argmax(dim=1, keepdim=True)
    has_fit = fits.any(dim=1)
    fallback_height, fallback_width = _fallback(height, width, ratio)
    box_heights = heights.gather(1, first).squeeze(1)
    box_widths = widths.gather(1, first).squeeze(1)
    box_heights = torch.where(has_fit, box_heights, fallback_height)
    box_widths = torch.where(has_fit, box_widths, fallback_width)

    n_tops = height - box_heights + 1
    n_lefts = width - box_widths + 1
    tops = _whole_numbers(uniforms[:, _TOP], n_tops)
    lefts = _whole_numbers(uniforms[:, _LEFT], n_lefts)
    tops = torch.where(has_fit, tops, (height - fallback_height) // 2)
    lefts = torch.where(has_fit, lefts, (width - fallback_width) // 2)
    return Boxes(tops, lefts, box_heights, box_widths)


def _fallback(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Return height and width of the largest box with an allowed ratio."""
    of_image = width / height
    if of_image < ratio[0]:
        return round(width / ratio[0]), width
    if of_image > ratio[1]:
        return height, round(height * ratio[1])
    return height, width


def resized_crops(images: Tensor, boxes: Boxes, is_flipped: Tensor) -> Tensor:
    """Return boxes of the images, resized to the images' size by bilinear interpolation.

    The same as torchvision's `resized_crop`, up to rounding: pixels outside of a box do not count.
    A box is never larger than the image, so that nothing is made smaller and antialiasing, which
    this has not, would change nothing.

    Args:
        images: (N, C, H, W) uint8.
        boxes: inside of the images.
        is_flipped: (N,) bool, the views that are mirrored.

    Returns:
        (N, C, H, W) float32.
    """
    height, width = images.shape[2:]
    rows = _sources(boxes.tops, boxes.heights, height)
    columns = _sources(boxes.lefts, boxes.widths, width)
    columns = torch.where(is_flipped.unsqueeze(1), columns.flip(1), columns)

    # The places of the grid are in [-1, 1], from the center of the first pixel to that of the last.
    y = _grid_places(rows, height).unsqueeze(2).expand(-1, -1, width)
    x = _grid_places(columns, width).unsqueeze(1).expand(-1, height, -1)
    grid = torch.stack([x, y], dim=3)
    return functional.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="border", align_corners=True
    )


def _sources(starts: Tensor, sizes: Tensor, n: int) -> Tensor:
    """Return (N, n) float32 places in the image that n pixels of a view are read at."""
    sizes = sizes.unsqueeze(1)
    centers = torch.arange(n, device=starts.device) + 0.5
    places = centers * (sizes / n) - 0.5
    # Beyond the center of the outermost pixels there is nothing to interpolate with.
    places = torch.minimum(places.clamp(min=0.0), (sizes - 1).float())
    return places + starts.unsqueeze(1)


def _grid_places(places: Tensor, n: int) -> Tensor:
    # An image of one pixel has its only place in the middle.
    return 2.0 * places / max(n - 1, 1) - 1.0


def adjust_colors(
    pixels: Tensor,
    brightness: Tensor | None = None,
    contrast: Tensor | None = None,
    saturation: Tensor | None = None,
) -> None:
    """Change the colors of each image by factors of its own, in place.

    One after the other, as torchvision's `adjust_brightness`, `adjust_contrast` and
    `adjust_saturation` (whose ColorJitter shuffles this order for every image). Gray images have no
    saturation.

    Args:
        pixels: (N, C, H, W) float32 in [0, 255].
        brightness: (N,) factors; None: 1.
        contrast: as `brightness`.
        saturation: as `brightness`.
    """
    if brightness is not None:
        pixels.mul_(_per_image(brightness)).clamp_(0.0, _LARGEST_PIXEL)
    if contrast is not None:
        means = _gray(pixels).mean(dim=(1, 2, 3), keepdim=True)
        _blend(pixels, means, contrast)
    if saturation is not None and pixels.shape[1] > 1:
        _blend(pixels, _gray(pixels), saturation)


def _gray(pixels: Tensor) -> Tensor:
    """Return (N, 1, H, W), the pixels themselves where they are gray."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.unbind(1)
    gray = red * _LUMA[0]
    gray.add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return gray.unsqueeze(1)


def _blend(pixels: Tensor, others: Tensor, factors: Tensor) -> None:
    """Set the pixels to others + factor (pixels - others), in [0, 255]."""
    others = others.expand_as(pixels)
    pixels.sub_(others).mul_(_per_image(factors)).add_(others).clamp_(0.0, _LARGEST_PIXEL)


def _per_image(factors: Tensor) -> Tensor:
    return factors.view(-1, 1, 1, 1)
