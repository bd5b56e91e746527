"""Pixels of all depths and colors: the right 8-bit values come out, or the file is set aside."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL import __version__ as pillow_version

from pu_kd_pipeline.images.decoding import Decoder, Reason, Unusable
from tests.hostile.png_files import RGB, RGBA, png
from tests.images import tiff_files
from tests.images.tiff_files import (
    BLACK_IS_ZERO,
    FLOAT,
    SIGNED,
    WHITE_IS_ZERO,
    packed_tiff,
    tiff,
)

PILLOW_VERSION = int(pillow_version.partition(".")[0])
ORDERS = pytest.mark.parametrize("order", ["<", ">"])
LEVELS = np.array([0, 36, 72, 108, 144, 180, 216, 252])
RAMP = np.tile(LEVELS, (8, 1))
FALLING = RAMP[:, ::-1]
GRAY = Decoder(channels=1, size_px=8, max_image_pixels=10_000)
COLOR = Decoder(channels=3, size_px=8, max_image_pixels=10_000)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gray_row(raw: Any) -> list[int]:
    """Return the first row of the gray pixels, after a check that all rows are alike."""
    pixels = GRAY.decode(raw)
    assert isinstance(pixels, np.ndarray), pixels
    assert (pixels == pixels[:, :1]).all()
    row: list[int] = pixels[0, 0].tolist()
    return row


def color_pixels(raw: Any) -> np.ndarray:
    """Return the (H, W, 3) pixels of a file."""
    pixels = COLOR.decode(raw)
    assert isinstance(pixels, np.ndarray), pixels
    return pixels.transpose(1, 2, 0)


def reason(raw: Any, decoder: Decoder = GRAY) -> str:
    result = decoder.decode(raw)
    assert isinstance(result, Unusable), result
    return result.reason


# --- polarity and byte order


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_white_is_zero_comes_out_with_the_right_polarity(dtype: str) -> None:
    scale = 1 if dtype == "u1" else 257
    pixels = (scale * RAMP).astype(dtype)
    assert gray_row(tiff(pixels, BLACK_IS_ZERO)) == LEVELS.tolist()
    assert gray_row(tiff(pixels, WHITE_IS_ZERO)) == (255 - LEVELS).tolist()


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_files_have_the_same_polarity(compression: str) -> None:
    pixels = (257 * RAMP).astype(np.uint16)
    options: dict[str, Any] = {"compression": compression}
    image = Image.fromarray(pixels)
    assert gray_row(encoded(image, "TIFF", **options)) == LEVELS.tolist()
    # Pillow writes the values as they are, and states that white is zero.
    inverted = encoded(image, "TIFF", tiffinfo={262: WHITE_IS_ZERO}, **options)
    assert gray_row(inverted) == (255 - LEVELS).tolist()


@pytest.mark.parametrize(("photometric", "first", "last"), [(0, 255, 0), (1, 0, 255)])
def test_one_bit_files_have_the_right_polarity(photometric: int, first: int, last: int) -> None:
    # Bits 0, 0, 0, 0, 1, 1, 1, 1 in each row
    file = packed_tiff(b"\x0f" * 8, 8, 8, photometric, n_bits=1)
    assert gray_row(file) == [first] * 4 + [last] * 4


def test_a_portable_bitmap_has_black_ones() -> None:
    assert gray_row(b"P1\n8 1\n1 1 1 1 0 0 0 0\n") == [0] * 4 + [255] * 4
    assert gray_row(b"P4\n8 1\n\xf0") == [0] * 4 + [255] * 4


@ORDERS
def test_both_byte_orders_give_the_same_pixels(order: str) -> None:
    gray = (257 * RAMP).astype(np.uint16)
    assert gray_row(tiff(gray, order=order)) == LEVELS.tolist()
    color = (257 * np.stack([RAMP, FALLING, 0 * RAMP], axis=2)).astype(np.uint16)
    pixels = color_pixels(tiff(color, tiff_files.RGB, order=order))
    np.testing.assert_array_equal(pixels, color >> 8)


# --- depths


def test_twelve_bits_reach_white() -> None:
    # Two values of 12 bits in three bytes
    values = [0, 585, 1170, 1755, 2340, 2925, 3510, 4095]
    row = b""
    for first, second in zip(values[::2], values[1::2], strict=True):
        row += (first << 12 | second).to_bytes(3, "big")
    assert gray_row(packed_tiff(8 * row, 8, 8, n_bits=12)) == [v >> 4 for v in values]


@pytest.mark.parametrize(
    ("largest", "values", "expected"),
    [
        (15, [0, 1, 7, 15], [0, 17, 119, 255]),
        (255, [0, 1, 7, 255], [0, 1, 7, 255]),
        # Scaled to 16 bits, of which the high byte is kept
        (1023, [0, 300, 700, 1023], [0, 75, 175, 255]),
        (65535, [0, 300, 30_000, 65_535], [0, 1, 117, 255]),
    ],
)
def test_portable_graymaps_of_any_depth_reach_white(
    largest: int, values: list[int], expected: list[int]
) -> None:
    text = " ".join(str(value) for value in values for _ in range(2))
    file = f"P2\n8 1\n{largest}\n{text}\n".encode()
    assert gray_row(file)[::2] == pytest.approx(expected, abs=1)


def test_sixteen_bit_colors_keep_their_high_bytes() -> None:
    # Pillow cannot write them; PNG is big-endian.
    colors = (257 * np.stack([RAMP, FALLING, RAMP], axis=2)).astype(">u2")
    file = png(8, 8, 16, RGB, [row.tobytes() for row in colors])
    np.testing.assert_array_equal(color_pixels(file), colors >> 8)


# --- values without a known range


@ORDERS
@pytest.mark.parametrize(
    ("dtype", "sample_format", "expected"),
    [
        ("u4", 1, "integer pixels of 32 bits or more"),
        ("i4", SIGNED, "integer pixels of 32 bits or more"),
        ("i2", SIGNED, "signed integer pixels"),
        ("f4", FLOAT, "floating-point pixels"),
        # Pillow does not open these.
        ("f2", FLOAT, "floating-point pixels"),
        ("f8", FLOAT, "floating-point pixels"),
        ("u8", 1, "integer pixels of 32 bits or more"),
    ],
)
def test_values_without_a_range_are_set_aside_with_a_reason(
    dtype: str, sample_format: int, expected: str, order: str
) -> None:
    for scale in (1, 100):
        file = tiff((scale * RAMP).astype(dtype), 1, sample_format, order=order)
        assert reason(file) == expected


def test_signed_bytes_are_set_aside() -> None:
    # Pillow would show -1 as 255, which is white.
    assert reason(tiff((RAMP // 2).astype("i1"), 1, SIGNED)) == "signed integer pixels"


def test_floating_point_colors_are_set_aside_with_their_reason() -> None:
    colors = np.stack([RAMP] * 3, axis=2).astype("f4")
    assert reason(tiff(colors, tiff_files.RGB, FLOAT)) == "floating-point pixels"
    assert reason(encoded(Image.new("F", (8, 8)), "TIFF")) == "floating-point pixels"
    assert reason(b"Pf\n2 1\n-1.0\n" + np.ones(2, "f4").tobytes()) == "floating-point pixels"


def test_pixels_that_pillow_does_not_know_are_not_called_damaged() -> None:
    # Big-endian 16 bits with white as zero
    file = tiff((257 * RAMP).astype("u2"), WHITE_IS_ZERO, order=">")
    assert reason(file) == "unsupported pixel format"
    assert reason(file[:-100]) == "unreadable"


def test_integers_in_memory_have_no_range() -> None:
    image = Image.fromarray(RAMP.astype(np.int32))
    assert reason(image) == "integer pixels of 32 bits or more"


# --- 8-bit values in 16 bits


def low() -> np.ndarray:
    """Return 8-bit values that are stored in 16 bits."""
    return RAMP.astype(np.uint16)


@ORDERS
def test_sixteen_bits_with_an_empty_high_byte_are_set_aside(order: str) -> None:
    expected = "16-bit pixels without a value above 255"
    assert reason(tiff(low(), order=order)) == expected
    colors = np.stack([low()] * 3, axis=2)
    assert reason(tiff(colors, tiff_files.RGB, order=order), COLOR) == expected


def test_an_empty_high_byte_is_seen_on_both_sides_of_the_inversion() -> None:
    expected = "16-bit pixels without a value above 255"
    # All of its pixels would be black.
    assert reason(tiff(65535 - low(), WHITE_IS_ZERO)) == expected
    # And all of these white
    assert reason(tiff(low(), WHITE_IS_ZERO)) == expected
    assert gray_row(tiff(65535 - low(), BLACK_IS_ZERO)) == [255] * 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_rule_holds_for_every_format(kind: str) -> None:
    expected = "16-bit pixels without a value above 255"
    assert reason(encoded(Image.fromarray(low()), kind)) == expected


@pytest.mark.parametrize("magic", ["P2", "P3"])
def test_the_rule_holds_for_portable_files(magic: str) -> None:
    width = {"P2": 6, "P3": 2}[magic]
    for last, is_refused in ((255, True), (512, False)):
        text = f"{magic}\n{width} 1\n65535\n0 100 200 255 200 {last}\n"
        result = COLOR.decode(text.encode())
        assert isinstance(result, Unusable) == is_refused, (magic, last)


def test_sixteen_bit_colors_of_a_png_follow_the_rule() -> None:
    colors = np.stack([low()] * 3, axis=2).astype(">u2")
    file = png(8, 8, 16, RGB, [row.tobytes() for row in colors])
    assert reason(file, COLOR) == "16-bit pixels without a value above 255"


def test_one_value_above_the_low_byte_is_enough() -> None:
    # A dark image, such as one of the night sky: its range is known, and so is its darkness.
    pixels = low()
    pixels[:, 7] = 256
    assert gray_row(tiff(pixels)) == [0] * 7 + [1]


def test_dark_images_of_eight_bits_are_kept() -> None:
    assert gray_row(np.zeros((8, 8), dtype=np.uint8)) == [0] * 8


def test_dark_drawings_with_transparency_are_kept() -> None:
    # 16-bit black on transparent: the color is empty, the transparency is not.
    alpha = 257 * RAMP
    black = np.zeros_like(alpha)
    values = np.stack([black, black, black, alpha], axis=2).astype(">u2")
    file = png(8, 8, 16, RGBA, [row.tobytes() for row in values])
    np.testing.assert_array_equal(color_pixels(file)[0, :, 0], 255 - LEVELS)


# --- colors


def test_gray_with_transparency_is_put_on_white() -> None:
    half = np.full((8, 8), 128)
    values = np.stack([0 * RAMP, half], axis=2).astype(np.uint8)
    # Extra sample 2: transparency; 1: the color is multiplied by it already; 0: something else
    assert gray_row(tiff(values, extra_sample=2)) == [127] * 8
    for extra_sample, value in ((1, 127), (0, 0)):
        file = tiff(values, extra_sample=extra_sample)
        if PILLOW_VERSION < 13:
            assert GRAY.decode(file) == Unusable(Reason.UNSUPPORTED)
        else:
            assert gray_row(file) == [value] * 8


def test_palettes_with_transparency_are_put_on_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    for options in ({}, {"transparency": 0}):
        pixels = color_pixels(encoded(image, "PNG", **options))
        np.testing.assert_array_equal(pixels[0, 0], [0, 0, 255])
    pixels = color_pixels(encoded(image, "PNG", transparency=1))
    np.testing.assert_array_equal(pixels[0, 0], [255, 255, 255])


def test_a_palette_with_an_alpha_channel_is_put_on_white() -> None:
    image = Image.new("PA", (8, 8), (1, 0))
    image.putpalette([255, 0, 0, 0, 0, 255])
    np.testing.assert_array_equal(color_pixels(image)[0, 0], [255, 255, 255])


@pytest.mark.parametrize("decoder", [GRAY, COLOR])
def test_ycbcr_files_have_their_luma(decoder: Decoder) -> None:
    neutral = np.full((8, 8), 128)
    values = np.stack([RAMP, neutral, neutral], axis=2).astype(np.uint8)
    pixels = decoder.decode(tiff(values, tiff_files.YCBCR))
    if PILLOW_VERSION < 13:
        # It would read other colors.
        assert pixels == Unusable(Reason.UNSUPPORTED)
        return
    assert isinstance(pixels, np.ndarray)
    for channel in pixels:
        assert channel[0].tolist() == LEVELS.tolist()


@pytest.mark.parametrize("decoder", [GRAY, COLOR])
def test_lab_files_have_their_lightness(decoder: Decoder) -> None:
    # L* = 50.2 is sRGB 119; a* and b* are signed, and 0 is neutral.
    values = np.stack([np.full((8, 8), 128), 0 * RAMP, 0 * RAMP], axis=2).astype(np.uint8)
    pixels = decoder.decode(tiff(values, tiff_files.LAB))
    assert isinstance(pixels, np.ndarray)
    np.testing.assert_allclose(pixels, 119, atol=2)


@pytest.mark.parametrize("decoder", [GRAY, COLOR])
def test_cmyk_files_are_read_in_gray_and_color(decoder: Decoder) -> None:
    # No ink is white, and only black ink is black.
    white = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    black = Image.new("CMYK", (8, 8), (0, 0, 0, 255))
    for image, value in ((white, 255), (black, 0)):
        pixels = decoder.decode(encoded(image, "TIFF"))
        assert isinstance(pixels, np.ndarray)
        assert (pixels == value).all()


# --- formats


def test_portable_pixmaps_and_avif_are_read() -> None:
    colors = np.stack([RAMP, FALLING, 0 * RAMP], axis=2).astype(np.uint8)
    image = Image.fromarray(colors)
    np.testing.assert_array_equal(color_pixels(encoded(image, "PPM")), colors)

    pytest.importorskip("PIL.AvifImagePlugin", reason="Pillow reads AVIF from 11.3 on")
    smooth = Image.new("RGB", (8, 8), (200, 100, 50))
    pixels = color_pixels(encoded(smooth, "AVIF", quality=100))
    np.testing.assert_allclose(pixels[0, 0], [200, 100, 50], atol=3)


@pytest.mark.parametrize(
    "content",
    [
        b"\0\0\0\x18ftypheic" + bytes(100),  # a photo of a telephone, called .jpg
        b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
        b"8BPS\0\1" + bytes(100),
    ],
)
def test_other_formats_are_named_as_such(content: bytes) -> None:
    assert reason(content) == Reason.OTHER_FORMAT
