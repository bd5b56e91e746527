from __future__ import annotations

import threading
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pu_kd_pipeline.images.decoding import Decoder, Reason, Unusable, as_file, map_in_order

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
    gray, color = noise(8, 8), noise(8, 8, 3)
    np.testing.assert_array_equal(decoded(GRAY, encoded(Image.fromarray(gray)))[0], gray)
    np.testing.assert_array_equal(
        decoded(COLOR, encoded(Image.fromarray(color))), color.transpose(2, 0, 1)
    )


def test_a_file_an_opened_image_and_an_array_give_the_same_pixels() -> None:
    pixels = noise(20, 13, 3)
    image = Image.fromarray(pixels)
    from_file = decoded(COLOR, encoded(image))
    np.testing.assert_array_equal(decoded(COLOR, pixels), from_file)
    np.testing.assert_array_equal(decoded(COLOR, image), from_file)
    np.testing.assert_array_equal(decoded(GRAY, noise(8, 8, 1)), noise(8, 8, 1).transpose(2, 0, 1))


def test_the_resize_equals_torchvisions() -> None:
    from pu_kd_pipeline.learning.networks.vision import torchvision

    image = Image.fromarray(noise(31, 20, 3))
    expected = torchvision.transforms.Resize((8, 8))(image)
    np.testing.assert_array_equal(
        decoded(COLOR, encoded(image)), np.asarray(expected).transpose(2, 0, 1)
    )


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_accepted_format_is_read(kind: str) -> None:
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    pixels = decoded(COLOR, encoded(flat, kind)).astype(int)
    assert np.abs(pixels - np.array([200, 100, 50])[:, None, None]).max() <= 5


def test_gray_becomes_rgb_and_rgb_becomes_gray() -> None:
    gray = decoded(COLOR, encoded(Image.fromarray(noise(8, 8))))
    assert (gray[0] == gray[1]).all()
    assert (gray[1] == gray[2]).all()
    assert (
        decoded(GRAY, encoded(Image.new("RGB", (8, 8), (255, 0, 0))))[0, 0, 0] == 76
    )  # ITU-R 601 luma


def test_sixteen_bit_gray_keeps_its_high_byte() -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    np.testing.assert_array_equal(decoded(GRAY, encoded(Image.fromarray(values)))[0], values >> 8)


def test_exif_orientation_is_applied() -> None:
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[0] = 255  # the top row, which orientation 6 (turn clockwise) puts at the right
    exif = Image.Exif()
    exif[0x0112] = 6
    assert (decoded(GRAY, encoded(Image.fromarray(pixels), exif=exif))[0, :, 7] == 255).all()


def test_transparency_shows_white() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    pixels = decoded(COLOR, encoded(image))
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert (pixels[:, 1:] == 255).all()


def test_palettes_cmyk_and_one_bit_images_are_read() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    assert decoded(COLOR, encoded(red.convert("P")))[:, 0, 0].tolist() == [255, 0, 0]
    cmyk = decoded(COLOR, encoded(red.convert("CMYK"), "JPEG", quality=95))[:, 0, 0].astype(int)
    assert np.abs(cmyk - [255, 0, 0]).max() <= 12
    assert decoded(GRAY, encoded(Image.new("1", (8, 8), 1)))[0, 0, 0] == 255


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    assert (
        decoded(COLOR, encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0, 0]
        == 255
    )


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares any size; its checksums are right."""
    declared = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunks = [(b"IHDR", declared), (b"IDAT", zlib.compress(b""))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in chunks
    )


@pytest.mark.parametrize("size", [101, 20_000])
def test_a_decompression_bomb_is_refused_from_its_header(size: int) -> None:
    assert COLOR.decode(bomb(size, size)) == Unusable(Reason.TOO_MANY_PIXELS)


def test_damaged_images_are_told_apart() -> None:
    whole = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    assert COLOR.decode(b"") == Unusable(Reason.EMPTY)
    assert COLOR.decode(b"no image at all") == Unusable(Reason.UNREADABLE)
    assert COLOR.decode(whole[: len(whole) // 2]) == Unusable(Reason.TRUNCATED)
    assert GRAY.decode(encoded(Image.new("F", (8, 8)), "TIFF")) == Unusable(Reason.UNSUPPORTED)
    assert GRAY.decode(np.zeros((8, 8), dtype=np.float32)) == Unusable(Reason.UNSUPPORTED)


def test_formats_that_run_programs_are_not_opened() -> None:
    assert COLOR.decode(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    ) == Unusable(Reason.UNREADABLE)


@pytest.mark.parametrize("n_workers", [1, 3])
def test_decoding_keeps_the_order_and_passes_faults_on(n_workers: int) -> None:
    arrays = [np.full((8, 8), value, dtype=np.uint8) for value in range(200)]
    raws: list[Any] = [encoded(Image.fromarray(array)) for array in arrays]
    raws[7] = Unusable(Reason.LINK)
    results = [pixels for _, pixels in GRAY.decode_all(iter(raws), n_workers)]
    assert results.pop(7) == Unusable(Reason.LINK)
    assert [int(pixels[0, 0, 0]) for pixels in results] == [
        value for value in range(200) if value != 7
    ]


def test_only_a_few_images_are_read_ahead() -> None:
    items = iter(range(1, 10_001))
    results = map_in_order(lambda item: item, items, n_workers=4)
    assert [next(results) for _ in range(3)] == [1, 2, 3]
    assert next(items) <= 3 + 2 * 4
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_pixels_become_a_lossless_file() -> None:
    pixels = noise(9, 7, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(as_file(pixels)))), pixels)
    assert as_file(b"as it came") == b"as it came"
