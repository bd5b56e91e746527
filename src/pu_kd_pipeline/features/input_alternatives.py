"""Other ways in which the images may have to enter a teacher: the usual mistakes, undone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pu_kd_pipeline.params.teacher import InputSpec

_N_DIGITS = 5
_SMALLEST_STD = 10**-_N_DIGITS
# https://pytorch.org/vision/stable/models.html; the mean in BGR is that of Caffe's VGG.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_CAFFE_MEAN = (103.939, 116.779, 123.68)
_MNIST_MEAN = (0.1307,)
_MNIST_STD = (0.3081,)
_BYTES = (0.0, 255.0)
_UNIT = (0.0, 1.0)
_SYMMETRIC = (-1.0, 1.0)
_CROP_RATIOS = (0.875, 1.0)


@dataclass(frozen=True)
class InputAlternative:
    """One way to prepare the images.

    Attributes:
        name: what differs, as a phrase after "with".
        spec: the input as a whole.
        is_gray: the images are converted to gray, which no parameter states.
    """

    name: str
    spec: InputSpec
    is_gray: bool = False

    @property
    def geometry(self) -> tuple[Any, ...]:
        """What decides how files become pixels of the teacher's size."""
        return geometry_of(self.spec)


@dataclass(frozen=True)
class _Change:
    name: str
    fields: dict[str, Any] = field(default_factory=dict)


def geometry_of(spec: InputSpec) -> tuple[Any, ...]:
    """Return what decides how files become pixels of the teacher's size."""
    return spec.resize, spec.shorter_side_px, spec.interpolation


def input_alternatives(
    spec: InputSpec, pixels: np.ndarray, *, has_files: bool
) -> list[InputAlternative]:
    """Return every usual input other than `spec`.

    Args:
        spec: how the images enter the teacher now.
        pixels: (N, C, H, W) uint8 images, whose mean and standard deviation are an alternative.
        has_files: the images can be resized in another way.
    """
    # From usual to unusual: few images may not tell two of them apart.
    changes = [_value_range(_UNIT), _value_range(_BYTES)]
    if spec.channels == 3:
        changes += _channel_orders(spec)
    changes += _normalizations(spec, pixels)
    changes.append(_value_range(_SYMMETRIC))
    if has_files:
        changes += _geometries(spec)
    found = []
    seen = [_key(spec)]
    for change in changes:
        changed = with_fields(spec, change.fields)
        key = _key(changed)
        if key in seen:
            continue
        seen.append(key)
        found.append(InputAlternative(change.name, changed))
    if spec.channels == 3 and _has_color(pixels):
        found.append(InputAlternative("gray images", spec, is_gray=True))
    return found


def with_fields(spec: InputSpec, fields: dict[str, Any]) -> InputSpec:
    """Return an input with other fields, which is validated."""
    content = {**spec.model_dump(), **fields}
    if content.get("resize", "squash") == "squash":
        content.pop("crop_ratio", None)
    return InputSpec.model_validate(content)


def _key(spec: InputSpec) -> tuple[Any, ...]:
    """Return what a network sees of an input: scale and shift of every color, and the geometry."""
    low, high = spec.value_range
    colors = []
    for mean, std in zip(spec.mean, spec.std, strict=True):
        scale = _rounded((high - low) / std)
        shift = _rounded((low - mean) / std)
        colors.append((scale, shift))
    return tuple(colors), spec.channel_order, geometry_of(spec)


def _normalizations(spec: InputSpec, pixels: np.ndarray) -> Iterator[_Change]:
    n = spec.channels
    zeros = (0.0,) * n
    halves = (0.5,) * n
    ones = (1.0,) * n
    if n == 3:
        yield _normalized("ImageNet's mean and std", _IMAGENET_MEAN, _IMAGENET_STD)
    else:
        yield _normalized("MNIST's mean and std", _MNIST_MEAN, _MNIST_STD)
    yield _normalized("mean 127/255 and std 128/255", (127 / 255,) * n, (128 / 255,) * n)
    yield _normalized("mean 0.5 and std 0.5, as of 127.5 (values in [-1, 1])", halves, halves)
    yield _normalized("no normalization (values in [0, 1])", zeros, ones)
    yield _normalized("no normalization of values in [0, 255]", zeros, ones, _BYTES)
    if n == 3:
        means = [255 * mean for mean in _IMAGENET_MEAN]
        yield _normalized("ImageNet's mean of values in [0, 255]", means, ones, _BYTES)
        caffe = _normalized("Caffe's input (BGR in [0, 255])", _CAFFE_MEAN, ones, _BYTES)
        yield _Change(caffe.name, {**caffe.fields, "channel_order": "bgr"})
    yield from _own_normalization(spec, pixels)


def _own_normalization(spec: InputSpec, pixels: np.ndarray) -> Iterator[_Change]:
    means = pixels.mean(axis=(0, 2, 3)) / 255
    stds = pixels.std(axis=(0, 2, 3)) / 255
    if spec.channel_order == "bgr":
        means = means[::-1]
        stds = stds[::-1]
    # Images of a single value have no standard deviation.
    if stds.min() > 0:
        yield _normalized("the mean and std of the labeled images", means, stds)


def _normalized(
    name: str, mean: Any, std: Any, value_range: tuple[float, float] = _UNIT
) -> _Change:
    means = [_rounded(value) for value in mean]
    stds = [max(_rounded(value), _SMALLEST_STD) for value in std]
    fields = {"mean": tuple(means), "std": tuple(stds), "value_range": value_range}
    return _Change(name, fields)


def _rounded(value: Any) -> float:
    return round(float(value), _N_DIGITS)


def _value_range(value_range: tuple[float, float]) -> _Change:
    """Return the configured mean and std, for values in another range."""
    low, high = value_range
    name = f"mean and std as they are, of values in [{low:g}, {high:g}]"
    return _Change(name, {"value_range": value_range})


def _channel_orders(spec: InputSpec) -> Iterator[_Change]:
    other = "rgb"
    if spec.channel_order == "rgb":
        other = "bgr"
    name = f"channels in the order {other.upper()}"
    yield _Change(name, {"channel_order": other})
    fields = {"channel_order": other, "mean": spec.mean[::-1], "std": spec.std[::-1]}
    yield _Change(f"{name}, and mean and std in that order", fields)


def _geometries(spec: InputSpec) -> Iterator[_Change]:
    yield _Change("the image squashed to a square", {"resize": "squash"})
    for ratio in _CROP_RATIOS:
        fields = {"resize": "crop", "crop_ratio": ratio}
        yield _Change(f"a center crop of {ratio:g} of the shorter side", fields)


def _has_color(pixels: np.ndarray) -> bool:
    first_channel = pixels[:, :1]
    is_other_value = pixels != first_channel
    return bool(is_other_value.any())


def to_gray(pixels: np.ndarray) -> np.ndarray:
    """Return (N, 3, H, W) uint8 RGB images with their luma in every channel, as Pillow converts."""
    red = pixels[:, 0].astype(np.uint32)
    green = pixels[:, 1].astype(np.uint32)
    blue = pixels[:, 2].astype(np.uint32)
    # The weights of ITU-R 601 with 16 bits, and rounding.
    weighted = 19595 * red + 38470 * green + 7471 * blue
    luma = ((weighted + 0x8000) >> 16).astype(np.uint8)
    return np.stack([luma, luma, luma], axis=1)
