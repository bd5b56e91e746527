"""Decoding images: which pixels come out, and what is refused with which reason."""

from __future__ import annotations

import itertools
import struct
import threading
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pu_kd_pipeline.images.decoding import Decoder, Reason, Unusable, map_in_order, to_file_bytes

RED = (255, 0, 0)
BLUE = (0, 0, 255)
GRAY = Decoder(channels=1, size_px=8, max_image_pixels=10_000)
COLOR = Decoder(channels=3, size_px=8, max_image_pixels=10_000)


def noise(*shape: int) -> np.ndarray:
    """Return pixels of which no two rows, columns or channels are alike."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def flat(color: tuple[int, int, int], size_px: int = 8) -> Image.Image:
    """Return an RGB image of one color."""
    return Image.new("RGB", (size_px, size_px), color)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(decoder: Decoder, raw: Any) -> np.ndarray:
    """Return the pixels of an image that can be used, after a check of their shape."""
    pixels = decoder.decode(raw)
    assert isinstance(pixels, np.ndarray), pixels
    assert pixels.dtype == np.uint8
    size_px = decoder.size_px
    assert pixels.shape == (decoder.channels, size_px, size_px)
    return pixels


def reason_of_refusal(decoder: Decoder, raw: Any) -> Reason:
    """Return why an image cannot be used."""
    result = decoder.decode(raw)
    assert isinstance(result, Unusable)
    return result.reason


def gray_pixels(image: Image.Image, kind: str = "PNG", **options: Any) -> np.ndarray:
    """Return the pixels that decoding gives after the image was saved."""
    file = encoded(image, kind, **options)
    return decoded(GRAY, file)


def color_pixels(image: Image.Image, kind: str = "PNG", **options: Any) -> np.ndarray:
    file = encoded(image, kind, **options)
    return decoded(COLOR, file)


def test_a_gray_image_of_the_right_size_keeps_its_pixels() -> None:
    gray = noise(8, 8)
    image = Image.fromarray(gray)
    pixels = gray_pixels(image)
    np.testing.assert_array_equal(pixels[0], gray)


def test_a_color_image_of_the_right_size_keeps_its_pixels() -> None:
    color = noise(8, 8, 3)
    image = Image.fromarray(color)
    pixels = color_pixels(image)

    # torch expects the channels first, Pillow has them last.
    expected = color.transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels, expected)


def test_a_file_an_opened_image_and_an_array_give_the_same_pixels() -> None:
    # Neither square nor of the decoder's size: all three are resized.
    pixels = noise(20, 13, 3)
    image = Image.fromarray(pixels)

    from_file = color_pixels(image)
    from_array = decoded(COLOR, pixels)
    from_image = decoded(COLOR, image)
    np.testing.assert_array_equal(from_array, from_file)
    np.testing.assert_array_equal(from_image, from_file)


def test_a_gray_array_may_have_an_axis_for_its_channel() -> None:
    gray = noise(8, 8, 1)
    pixels = decoded(GRAY, gray)
    # Some data sets keep gray images as (height, width, 1).
    expected = gray.transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels, expected)


def test_the_resize_equals_torchvisions() -> None:
    from pu_kd_pipeline.learning.networks.vision import torchvision

    image = Image.fromarray(noise(31, 20, 3))
    resize = torchvision.transforms.Resize((8, 8))
    expected = np.asarray(resize(image))

    # Networks were trained on images that torchvision resized.
    pixels = color_pixels(image)
    np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_accepted_format_is_read(kind: str) -> None:
    color = (200, 100, 50)
    image = flat(color, size_px=16)
    pixels = color_pixels(image, kind)

    for channel, expected in zip(pixels, color, strict=True):
        # Some of the formats are lossy.
        np.testing.assert_allclose(channel, expected, rtol=0, atol=5)


def test_gray_becomes_rgb() -> None:
    gray = Image.fromarray(noise(8, 8))
    red, green, blue = color_pixels(gray)

    np.testing.assert_array_equal(red, green)
    np.testing.assert_array_equal(green, blue)


def test_rgb_becomes_gray() -> None:
    red = flat(RED)
    pixels = gray_pixels(red)
    assert pixels[0, 0, 0] == 76  # ITU-R 601 luma


def test_sixteen_bit_gray_keeps_its_high_byte() -> None:
    # Reducing them by a conversion of Pillow would clip at 255, which is nearly black.
    ramp = np.linspace(0, 65535, 64)
    values = ramp.astype(np.uint16).reshape(8, 8)
    pixels = gray_pixels(Image.fromarray(values))

    high_bytes = values >> 8
    np.testing.assert_array_equal(pixels[0], high_bytes)


def test_exif_orientation_is_applied() -> None:
    # The top row is white; orientation 6 (turn clockwise) puts it at the right.
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(pixels)

    turned = gray_pixels(image, exif=exif)
    right_column = turned[0, :, 7]
    assert (right_column == 255).all()


def test_transparency_shows_white() -> None:
    transparent = (0, 0, 0, 0)
    opaque = (10, 20, 30, 255)
    image = Image.new("RGBA", (8, 8), transparent)
    image.putpixel((0, 0), opaque)

    pixels = color_pixels(image)
    first_pixel = pixels[:, 0, 0]
    assert first_pixel.tolist() == [10, 20, 30]
    # Their own color is black, which would look like a drawn edge on a white page.
    other_rows = pixels[:, 1:]
    assert (other_rows == 255).all()


def test_images_with_a_palette_are_read() -> None:
    red = flat(RED)
    pixels = color_pixels(red.convert("P"))

    # Otherwise it would be the number of the color in the palette.
    first_pixel = pixels[:, 0, 0]
    assert first_pixel.tolist() == [255, 0, 0]


def test_cmyk_images_are_read() -> None:
    red = flat(RED)
    pixels = color_pixels(red.convert("CMYK"), "JPEG", quality=95)

    # JPEG is lossy, and CMYK red is not exactly RGB red.
    first_pixel = pixels[:, 0, 0]
    np.testing.assert_allclose(first_pixel, RED, rtol=0, atol=12)


def test_one_bit_images_are_read() -> None:
    white = Image.new("1", (8, 8), 1)
    pixels = gray_pixels(white)
    # Its own pixels are 1, which would be nearly black.
    assert pixels[0, 0, 0] == 255


def test_the_first_frame_of_an_animation_is_taken() -> None:
    red = flat(RED)
    blue = flat(BLUE)
    pixels = color_pixels(red, "GIF", save_all=True, append_images=[blue])

    first_pixel = pixels[:, 0, 0]
    assert first_pixel.tolist() == [255, 0, 0]


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that declares any size; its checksums are right."""
    # Eight bits per channel, RGB, the only compression and filter that PNG has, no interlacing.
    declared = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    # A PNG is a signature and chunks, each with length, kind, data and checksum.
    chunks = {b"IHDR": declared, b"IDAT": zlib.compress(b"")}
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks.items():
        length = struct.pack(">I", len(data))
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        file += length + kind + data + checksum
    return file


@pytest.mark.parametrize("size", [101, 20_000])
def test_a_decompression_bomb_is_refused_from_its_header(size: int) -> None:
    # 101 pixels squared are just over the limit of 10,000; Pillow itself refuses the other.
    file = bomb(size, size)
    reason = reason_of_refusal(COLOR, file)
    assert reason == Reason.TOO_MANY_PIXELS


def test_nothing_and_something_else_are_distinguished() -> None:
    # Interrupted downloads often leave empty files.
    reason = reason_of_refusal(COLOR, b"")
    assert reason == Reason.EMPTY
    reason = reason_of_refusal(COLOR, b"no image at all")
    assert reason == Reason.UNREADABLE


def test_a_file_that_was_cut_short_is_truncated() -> None:
    image = Image.fromarray(noise(64, 64, 3))
    whole = encoded(image, "JPEG")
    n_bytes = len(whole) // 2
    first_half = whole[:n_bytes]

    reason = reason_of_refusal(COLOR, first_half)
    assert reason == Reason.TRUNCATED


def test_floating_point_pixels_are_unsupported() -> None:
    # They have no fixed range, so that nobody knows what white is.
    image = Image.new("F", (8, 8))
    file = encoded(image, "TIFF")
    array = np.zeros((8, 8), dtype=np.float32)

    for raw in (file, array):
        reason = reason_of_refusal(GRAY, raw)
        assert reason == Reason.FLOATING_POINT


def test_formats_that_run_programs_are_not_opened() -> None:
    # Pillow would start Ghostscript for it.
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    reason = reason_of_refusal(COLOR, postscript)
    assert reason == Reason.UNREADABLE


def numbered_files(n: int) -> list[Any]:
    """Return n encoded images; the pixels of each are its number."""
    files = []
    for number in range(n):
        pixels = np.full((8, 8), number, dtype=np.uint8)
        image = Image.fromarray(pixels)
        files.append(encoded(image))
    return files


@pytest.mark.parametrize("n_workers", [1, 3])
def test_decoding_keeps_the_order_and_passes_faults_on(n_workers: int) -> None:
    raws = numbered_files(200)
    # A fault that the source found already.
    raws[7] = Unusable(Reason.LINK)

    results = [result for _, result in GRAY.decode_all(iter(raws), n_workers)]
    fault = results.pop(7)
    assert fault == Unusable(Reason.LINK)

    numbers = [int(pixels[0, 0, 0]) for pixels in results]
    expected = [*range(200)]
    expected.remove(7)
    assert numbers == expected


def test_only_a_few_images_are_read_ahead() -> None:
    items = iter(range(1, 10_001))
    results = map_in_order(lambda item: item, items, n_workers=4)
    first = list(itertools.islice(results, 3))
    assert first == [1, 2, 3]
    # Reading everything ahead would hold all images of a source in memory.
    n_in_progress = 2 * 4
    assert next(items) <= 3 + n_in_progress

    results.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        assert "ThreadPoolExecutor" not in thread.name


def test_pixels_become_a_lossless_file() -> None:
    pixels = noise(9, 7, 3)
    file = to_file_bytes(pixels)
    image = Image.open(BytesIO(file))
    pixels_again = np.asarray(image)
    np.testing.assert_array_equal(pixels_again, pixels)


def test_a_file_keeps_its_bytes() -> None:
    # Encoding a JPEG again would change its pixels.
    raw = b"as it came"
    assert to_file_bytes(raw) == raw
