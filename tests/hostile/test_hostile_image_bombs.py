"""Small image files that would unpack to gigabytes: set aside before they do."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from pu_kd_pipeline.images.decoding import Decoder, Reason, Unusable
from tests.hostile.memory import peak_bytes
from tests.hostile.png_files import RGB, png, png_chunk
from tests.hostile.valid_files import encoded, noise

DECODER = Decoder(channels=3, size_px=8, max_image_pixels=50_000_000)
# Far below what the files unpack to, and above what decoding a small image takes.
MAX_GROWTH_BYTES = 64 * 2**20


# --- declared sizes


def image_file(kind: str) -> bytearray:
    """Return a small valid image, whose declared size is then changed."""
    image = Image.fromarray(noise(16, 16, 3))
    return bytearray(encoded(image, kind))


def huge_png() -> bytes:
    return png(60_000, 60_000, 8, RGB, [b""])


def huge_jpeg() -> bytes:
    data = image_file("JPEG")
    # Height and width are in the start-of-frame segment, after its length and its precision.
    size_at = data.index(b"\xff\xc0") + 5
    data[size_at : size_at + 4] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


def huge_bmp() -> bytes:
    data = image_file("BMP")
    data[18:26] = struct.pack("<ii", 60_000, 60_000)
    return bytes(data)


def huge_gif() -> bytes:
    data = image_file("GIF")
    data[6:10] = struct.pack("<HH", 65_000, 65_000)
    return bytes(data)


def huge_tiff() -> bytes:
    data = image_file("TIFF")
    long_type = 4
    short_type = 3
    for tag in (256, 257):  # width and height
        # Pillow may write either type; the search starts after the header.
        with_long = struct.pack("<HH", tag, long_type)
        with_short = struct.pack("<HH", tag, short_type)
        entry_at = data.find(with_long, 8)
        if entry_at < 0:
            entry_at = data.index(with_short, 8)
        entry = struct.pack("<HHII", tag, long_type, 1, 60_000)
        data[entry_at : entry_at + len(entry)] = entry
    return bytes(data)


def huge_webp() -> bytes:
    frames = [Image.new("RGB", (16, 16))]
    image = Image.fromarray(noise(16, 16, 3))
    data = bytearray(encoded(image, "WEBP", save_all=True, append_images=frames))
    # Size of the canvas, minus 1: only animations have one.
    side = (16_383).to_bytes(3, "little")
    data[24:30] = side + side
    return bytes(data)


@pytest.mark.parametrize(
    "make_file", [huge_png, huge_jpeg, huge_bmp, huge_gif, huge_tiff, huge_webp]
)
def test_a_small_file_that_declares_billions_of_pixels_is_not_unpacked(
    make_file: Callable[[], bytes],
) -> None:
    data = make_file()
    before = peak_bytes()
    decoded = DECODER.decode(data)
    growth_bytes = peak_bytes() - before

    assert decoded == Unusable(Reason.TOO_MANY_PIXELS)
    assert growth_bytes < MAX_GROWTH_BYTES


# --- compressed metadata

# What comes before the compressed part: a name, and flags of the chunk.
METADATA_HEADS = {b"iCCP": b"x\0\0", b"zTXt": b"x\0\0", b"iTXt": b"x\0\1\0\0\0"}


def packed_zeros(n_megabytes: int) -> bytes:
    """Return compressed zeros, without ever holding all of them in memory."""
    compressor = zlib.compressobj()
    megabyte = bytes(2**20)
    packed = b""
    for _ in range(n_megabytes):
        packed += compressor.compress(megabyte)
    return packed + compressor.flush()


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", METADATA_HEADS)
def test_metadata_that_unpacks_to_gigabytes_is_not_unpacked(kind: bytes, place: str) -> None:
    bomb = png_chunk(kind, METADATA_HEADS[kind] + packed_zeros(n_megabytes=96))
    rows = [row.tobytes() for row in noise(8, 8, 3)]
    if place == "before":
        data = png(8, 8, 8, RGB, rows, bomb)
    else:
        data = png(8, 8, 8, RGB, rows, after=bomb)
    before = peak_bytes()
    decoded = DECODER.decode(data)
    growth_bytes = peak_bytes() - before

    # Pillow finds some of these chunks itself, and calls the file broken.
    assert isinstance(decoded, Unusable)
    assert decoded.reason in (Reason.TOO_MUCH_METADATA, Reason.UNREADABLE)
    assert growth_bytes < MAX_GROWTH_BYTES
