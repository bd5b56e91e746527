"""Resizing to squares: the pixels are those of torchvision, and nothing grows without bound."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pu_kd_pipeline.images.decoding import Decoder, Reason, Unusable
from pu_kd_pipeline.images.resizing import INTERPOLATIONS, input_text

# Width and height: odd differences, upscaling, lines, equal sides, and the size itself
SHAPES = [(31, 20), (20, 31), (40, 37), (3, 2), (1, 9), (200, 7), (5, 181), (16, 16), (13, 13)]
# Size and shorter side
SIZES = [(16, None), (16, 18), (15, 18), (16, 16), (7, 8)]


def noise(width: int, height: int, channels: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def torchvisions_pixels(
    image: Image.Image, size_px: int, shorter_side_px: int | None, interpolation: str
) -> np.ndarray:
    """Return what torchvision's transforms make of an opened image, as (C, H, W)."""
    from pu_kd_pipeline.learning.networks.vision import torchvision

    transforms = torchvision.transforms
    mode = transforms.InterpolationMode(interpolation)
    if shorter_side_px is None:
        resized = transforms.Resize((size_px, size_px), mode)(image)
    else:
        resized = transforms.Resize(shorter_side_px, mode)(image)
        resized = transforms.CenterCrop(size_px)(resized)
    pixels = np.asarray(resized)
    if pixels.ndim == 2:
        return pixels[None]
    return pixels.transpose(2, 0, 1)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_pixels_are_torchvisions_to_the_last_bit(
    size: tuple[int, int | None], interpolation: str, channels: int
) -> None:
    size_px, shorter_side_px = size
    decoder = Decoder(channels, size_px, 100_000, shorter_side_px, interpolation)
    for width, height in SHAPES:
        image = noise(width, height, channels)
        pixels = decoder.decode(png(image))
        expected = torchvisions_pixels(image, size_px, shorter_side_px, interpolation)
        np.testing.assert_array_equal(pixels, expected)


def test_the_crop_of_a_large_photo_is_torchvisions() -> None:
    image = noise(501, 334, 3)
    decoder = Decoder(3, 224, 10**6, 256, "bicubic")
    expected = torchvisions_pixels(image, 224, 256, "bicubic")
    np.testing.assert_array_equal(decoder.decode(image), expected)


def test_squash_and_crop_keep_different_parts_of_an_image() -> None:
    # Left third black, the rest white: a center crop of the square sees half of the black.
    pixels = np.full((8, 24), 255, dtype=np.uint8)
    pixels[:, :8] = 0
    squashed = Decoder(1, 8, 1000, None, "nearest").decode(pixels)
    cropped = Decoder(1, 8, 1000, 8, "nearest").decode(pixels)
    assert (np.asarray(squashed)[0, 0] == 0).sum() == 3
    assert (np.asarray(cropped)[0, 0] == 0).sum() == 0


def test_a_line_that_a_crop_would_make_huge_is_set_aside() -> None:
    line = np.zeros((1, 5000), dtype=np.uint8)
    # Resized, it would have 16 x 80,000 pixels.
    cropped = Decoder(1, 16, 10_000, 16).decode(line)
    assert cropped == Unusable(Reason.TOO_ELONGATED)
    squashed = Decoder(1, 16, 10_000).decode(line)
    assert isinstance(squashed, np.ndarray)


def test_a_limit_below_the_size_of_the_input_does_not_refuse_small_images() -> None:
    tiny = np.zeros((2, 2), dtype=np.uint8)
    assert isinstance(Decoder(1, 16, 10).decode(tiny), np.ndarray)
    assert isinstance(Decoder(1, 16, 10, 20).decode(tiny), np.ndarray)


def test_an_input_is_described_in_words() -> None:
    assert input_text(1, 8, None, "bilinear") == "8 × 8 px, gray, bilinear"
    assert input_text(3, 224, 256, "box") == "224 × 224 px, color, box, center of 256 px"
