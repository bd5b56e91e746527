"""Other ways in which the images may have to enter a teacher: the usual mistakes, undone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pu_kd_pipeline.params.teacher import InputSpec

_N_DIGITS = 5
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
        if _key(changed) in seen:
            continue
        seen.append(_key(changed))
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
    values = []
    for mean, std in zip(spec.mean, spec.std, strict=True):
        scale = (high - low) / std
        shift = (low - mean) / std
        values.append((round(scale, _N_DIGITS), round(shift, _N_DIGITS)))
    return tuple(values), spec.channel_order, geometry_of(spec)


def _normalizations(spec: InputSpec, pixels: np.ndarray) -> Iterator[_Change]:
    n = spec.channels
    if n == 3:
        yield _normalized("ImageNet's mean and std", _IMAGENET_MEAN, _IMAGENET_STD)
    else:
        yield _normalized("MNIST's mean and std", _MNIST_MEAN, _MNIST_STD)
    yield _normalized("mean 127/255 and std 128/255", (127 / 255,) * n, (128 / 255,) * n)
    yield _normalized(
        "mean 0.5 and std 0.5, as of 127.5 (values in [-1, 1])", (0.5,) * n, (0.5,) * n
    )
    yield _normalized("no normalization (values in [0, 1])", (0.0,) * n, (1.0,) * n)
    yield _normalized("no normalization of values in [0, 255]", (0.0,) * n, (1.0,) * n, _BYTES)
    if n == 3:
        means = tuple(255 * mean for mean in _IMAGENET_MEAN)
        yield _normalized("ImageNet's mean of values in [0, 255]", means, (1.0,) * n, _BYTES)
        caffe = _normalized("Caffe's input (BGR in [0, 255])", _CAFFE_MEAN, (1.0,) * n, _BYTES)
        yield _Change(caffe.name, {**caffe.fields, "channel_order": "bgr"})
    own_mean = pixels.mean(axis=(0, 2, 3)) / 255
    own_std = pixels.std(axis=(0, 2, 3)) / 255
    if spec.channel_order == "bgr":
        own_mean = own_mean[::-1]
        own_std = own_std[::-1]
    # Images of a single value have no standard deviation.
    if own_std.min() > 0:
        yield _normalized("the mean and std of the labeled images", own_mean, own_std)


def _normalized(
    name: str, mean: Any, std: Any, value_range: tuple[float, float] = _UNIT
) -> _Change:
    means = tuple(round(float(value), _N_DIGITS) for value in mean)
    stds = tuple(max(round(float(value), _N_DIGITS), 10**-_N_DIGITS) for value in std)
    return _Change(name, {"mean": means, "std": stds, "value_range": value_range})


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
    reversed_fields = {"mean": spec.mean[::-1], "std": spec.std[::-1]}
    yield _Change(
        f"{name}, and mean and std in that order", {"channel_order": other, **reversed_fields}
    )


def _geometries(spec: InputSpec) -> Iterator[_Change]:
    yield _Change("the image squashed to a square", {"resize": "squash"})
    for ratio in _CROP_RATIOS:
        fields = {"resize": "crop", "crop_ratio": ratio}
        yield _Change(f"a center crop of {ratio:g} of the shorter side", fields)


def _has_color(pixels: np.ndarray) -> bool:
    return bool((pixels != pixels[:, :1]).any())


def to_gray(pixels: np.ndarray) -> np.ndarray:
    """Return (N, 3, H, W) uint8 RGB images with their luma in every channel, as Pillow converts."""
    red, green, blue = (pixels[:, channel].astype(np.uint32) for channel in range(3))
    # The weights of ITU-R 601 with 16 bits, and rounding.
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return np.repeat(luma.astype(np.uint8)[:, None], 3, axis=1)
