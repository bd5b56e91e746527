"""Decoding images: which pixels come out, and what is refused with which reason."""

from __future__ import annotations

import threading
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pu_kd_pipeline.images.decoding import Decoder, Reason, Unusable, map_in_order, to_file_bytes

GRAY = Decoder(channels=1, size_px=8, max_image_pixels=10_000)
COLOR = Decoder(channels=3, size_px=8, max_image_pixels=10_000)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(decoder: Decoder, raw: Any) -> np.ndarray:
    pixels = decoder.decode(raw)
    assert isinstance(pixels, np.ndarray), pixels
    assert pixels.dtype == np.uint8
    assert pixels.shape == (decoder.channels, decoder.size_px, decoder.size_px)
    return pixels


def test_an_image_of_the_right_size_and_colors_keeps_its_pixels() -> None:
    gray = noise(8, 8)
    gray_pixels = decoded(GRAY, encoded(Image.fromarray(gray)))
    np.testing.assert_array_equal(gray_pixels[0], gray)

    color = noise(8, 8, 3)
    color_pixels = decoded(COLOR, encoded(Image.fromarray(color)))
    np.testing.assert_array_equal(color_pixels, color.transpose(2, 0, 1))


def test_a_file_an_opened_image_and_an_array_give_the_same_pixels() -> None:
    pixels = noise(20, 13, 3)
    image = Image.fromarray(pixels)
    from_file = decoded(COLOR, encoded(image))
    from_array = decoded(COLOR, pixels)
    from_image = decoded(COLOR, image)
    np.testing.assert_array_equal(from_array, from_file)
    np.testing.assert_array_equal(from_image, from_file)


def test_a_gray_array_may_have_an_axis_for_its_channel() -> None:
    gray = noise(8, 8, 1)
    np.testing.assert_array_equal(decoded(GRAY, gray), gray.transpose(2, 0, 1))


def test_the_resize_equals_torchvisions() -> None:
    from pu_kd_pipeline.learning.networks.vision import torchvision

    image = Image.fromarray(noise(31, 20, 3))
    resize = torchvision.transforms.Resize((8, 8))
    resized = resize(image)
    expected = np.asarray(resized).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded(COLOR, encoded(image)), expected)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_accepted_format_is_read(kind: str) -> None:
    color = (200, 100, 50)
    flat = Image.new("RGB", (16, 16), color)
    pixels = decoded(COLOR, encoded(flat, kind)).astype(int)
    expected = np.array(color)[:, None, None]
    # Some of the formats are lossy.
    assert np.abs(pixels - expected).max() <= 5


def test_gray_becomes_rgb() -> None:
    gray = Image.fromarray(noise(8, 8))
    pixels = decoded(COLOR, encoded(gray))
    assert (pixels[0] == pixels[1]).all()
    assert (pixels[1] == pixels[2]).all()


def test_rgb_becomes_gray() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    pixels = decoded(GRAY, encoded(red))
    assert pixels[0, 0, 0] == 76  # ITU-R 601 luma


def test_sixteen_bit_gray_keeps_its_high_byte() -> None:
    # Reducing them by a conversion of Pillow would clip at 255, which is nearly black.
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = decoded(GRAY, encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(pixels[0], values >> 8)


def test_exif_orientation_is_applied() -> None:
    # The top row is white; orientation 6 (turn clockwise) puts it at the right.
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decoded(GRAY, encoded(Image.fromarray(pixels), exif=exif))
    assert (turned[0, :, 7] == 255).all()


def test_transparency_shows_white() -> None:
    transparent = (0, 0, 0, 0)
    opaque = (10, 20, 30, 255)
    image = Image.new("RGBA", (8, 8), transparent)
    image.putpixel((0, 0), opaque)
    pixels = decoded(COLOR, encoded(image))
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert (pixels[:, 1:] == 255).all()


def test_images_with_a_palette_are_read() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0)).convert("P")
    pixels = decoded(COLOR, encoded(red))
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]


def test_cmyk_images_are_read() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0)).convert("CMYK")
    pixels = decoded(COLOR, encoded(red, "JPEG", quality=95)).astype(int)
    # JPEG is lossy, and CMYK red is not exactly RGB red.
    difference = np.abs(pixels[:, 0, 0] - [255, 0, 0])
    assert difference.max() <= 12


def test_one_bit_images_are_read() -> None:
    white = Image.new("1", (8, 8), 1)
    pixels = decoded(GRAY, encoded(white))
    assert pixels[0, 0, 0] == 255


def test_the_first_frame_of_an_animation_is_taken() -> None:
    red = Image.new("RGB", (8, 8), "red")
    blue = Image.new("RGB", (8, 8), "blue")
    animation = encoded(red, "GIF", save_all=True, append_images=[blue])
    pixels = decoded(COLOR, animation)
    assert pixels[0, 0, 0] == 255


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that declares any size; its checksums are right."""
    declared = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    # A PNG is a signature and chunks, each with length, kind, data and checksum.
    chunks = {b"IHDR": declared, b"IDAT": zlib.compress(b"")}
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks.items():
        length = len(data).to_bytes(4, "big")
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        file += length + kind + data + checksum
    return file


@pytest.mark.parametrize("size", [101, 20_000])
def test_a_decompression_bomb_is_refused_from_its_header(size: int) -> None:
    assert COLOR.decode(bomb(size, size)) == Unusable(Reason.TOO_MANY_PIXELS)


def test_damaged_images_are_told_apart() -> None:
    assert COLOR.decode(b"") == Unusable(Reason.EMPTY)
    assert COLOR.decode(b"no image at all") == Unusable(Reason.UNREADABLE)
    whole = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    first_half = whole[: len(whole) // 2]
    assert COLOR.decode(first_half) == Unusable(Reason.TRUNCATED)


def test_floating_point_pixels_are_unsupported() -> None:
    # They have no fixed range, so that nobody knows what white is.
    file = encoded(Image.new("F", (8, 8)), "TIFF")
    assert GRAY.decode(file) == Unusable(Reason.UNSUPPORTED)
    array = np.zeros((8, 8), dtype=np.float32)
    assert GRAY.decode(array) == Unusable(Reason.UNSUPPORTED)


def test_formats_that_run_programs_are_not_opened() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    assert COLOR.decode(postscript) == Unusable(Reason.UNREADABLE)


@pytest.mark.parametrize("n_workers", [1, 3])
def test_decoding_keeps_the_order_and_passes_faults_on(n_workers: int) -> None:
    raws: list[Any] = []
    for value in range(200):
        array = np.full((8, 8), value, dtype=np.uint8)
        raws.append(encoded(Image.fromarray(array)))
    # A fault that the source found already.
    raws[7] = Unusable(Reason.LINK)

    results = [pixels for _, pixels in GRAY.decode_all(iter(raws), n_workers)]
    assert results.pop(7) == Unusable(Reason.LINK)
    values = [int(pixels[0, 0, 0]) for pixels in results]
    assert values == [*range(7), *range(8, 200)]


def test_only_a_few_images_are_read_ahead() -> None:
    items = iter(range(1, 10_001))
    results = map_in_order(lambda item: item, items, n_workers=4)
    assert [next(results) for _ in range(3)] == [1, 2, 3]
    n_in_progress = 2 * 4
    assert next(items) <= 3 + n_in_progress
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_pixels_become_a_lossless_file() -> None:
    pixels = noise(9, 7, 3)
    image = Image.open(BytesIO(to_file_bytes(pixels)))
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_file_keeps_its_bytes() -> None:
    assert to_file_bytes(b"as it came") == b"as it came"
