"""Odd, broken or malicious images: decoded to the right pixels, or set aside and counted."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from pu_kd_pipeline.images.decoding import Decoder, Reason, Unusable
from pu_kd_pipeline.images.duplicates import find_duplicates
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.pipelines.data_ingestion.nodes import report_ingestion
from tests.hostile import crashing_decoder
from tests.hostile.png_files import GRAY, GRAY_ALPHA, PALETTE, RGB, RGBA, png, png_chunk
from tests.hostile.valid_files import encoded, noise, noise_png, plan_of

GRAY_DECODER = Decoder(channels=1, size_px=8, max_image_pixels=50_000_000)
COLOR_DECODER = Decoder(channels=3, size_px=8, max_image_pixels=50_000_000)


def pixels_of(raw: bytes) -> np.ndarray:
    """Return the decoded color pixels as (H, W, 3) integers."""
    pixels = COLOR_DECODER.decode(raw)
    assert isinstance(pixels, np.ndarray), pixels
    return pixels.transpose(1, 2, 0).astype(int)


def scan_lines(pixels: np.ndarray) -> list[bytes]:
    """Return the bytes of each row, as `png` takes them."""
    return [row.tobytes() for row in pixels]


def decoded_png(pixels: np.ndarray, *before: bytes) -> np.ndarray:
    """Return what is decoded from a PNG file of 8 x 8 colors with these chunks before them."""
    return pixels_of(png(8, 8, 8, RGB, scan_lines(pixels), *before))


# --- odd, and decoded to the right pixels


@pytest.mark.parametrize(("n_channels", "color"), [(1, GRAY), (2, GRAY_ALPHA), (3, RGB), (4, RGBA)])
def test_sixteen_bits_per_channel_keep_their_high_byte(n_channels: int, color: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**16, (8, 8, n_channels))
    if color in (GRAY_ALPHA, RGBA):
        # Opaque: the color below must not show.
        values[:, :, -1] = 65535
    # PNG stores numbers of 16 bits with the high byte first.
    rows = scan_lines(values.astype(">u2"))
    found = pixels_of(png(8, 8, 16, color, rows))

    n_colors = 1
    if color in (RGB, RGBA):
        n_colors = 3
    high_bytes = values[:, :, :n_colors] >> 8
    expected = np.broadcast_to(high_bytes, (8, 8, 3))
    np.testing.assert_array_equal(found, expected)


def over_white(color: tuple[int, ...], alpha: int) -> list[float]:
    """Return a color of 8 bits per channel as it looks on white paper."""
    white_share = 255 * (255 - alpha)
    return [(part * alpha + white_share) / 255 for part in color]


def test_a_palette_with_transparency_is_blended_with_white() -> None:
    palette = [(10, 20, 30), (200, 0, 100), (0, 255, 7), (90, 90, 90)]
    # The list may be shorter than the palette: the last color is opaque.
    alphas = [255, 0, 128]
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 4, (8, 8))
    palette_bytes = b"".join(bytes(color) for color in palette)
    colors = png_chunk(b"PLTE", palette_bytes)
    transparency = png_chunk(b"tRNS", bytes(alphas))
    rows = scan_lines(indices.astype(np.uint8))
    found = pixels_of(png(8, 8, 8, PALETTE, rows, colors, transparency))

    expected = []
    for color, alpha in zip(palette, [*alphas, 255], strict=True):
        expected.append(over_white(color, alpha))

    # Blending may round up or down.
    np.testing.assert_allclose(found, np.array(expected)[indices], atol=1)


@pytest.mark.parametrize(
    "ink",
    [
        (0, 0, 0, 0),
        (255, 0, 0, 0),
        (0, 255, 0, 0),
        (0, 0, 255, 0),
        (0, 0, 0, 255),
        (128, 64, 0, 32),
    ],
)
def test_cmyk_is_converted_to_the_colors_that_it_prints(ink: tuple[int, int, int, int]) -> None:
    *colored_inks, black = ink
    # An ink absorbs its share of a color, and black absorbs its share of all.
    expected = [255 * (1 - part / 255) * (1 - black / 255) for part in colored_inks]
    image = Image.new("CMYK", (8, 8), ink)
    found = pixels_of(encoded(image, "JPEG", quality=100))

    # JPEG is lossy even at its best quality.
    center = found[4, 4].tolist()
    assert center == pytest.approx(expected, abs=6)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_used(kind: str) -> None:
    red = Image.new("RGB", (8, 8), "red")
    others = [Image.new("RGB", (8, 8), "blue"), Image.new("RGB", (8, 8), "lime")]
    # WebP's default is lossy: red would not be exactly red.
    options: dict[str, Any] = {}
    if kind == "WEBP":
        options["lossless"] = True
    data = encoded(red, kind, save_all=True, append_images=others, **options)

    image = Image.open(BytesIO(data))
    assert getattr(image, "n_frames", 1) == 3

    is_red = pixels_of(data) == [255, 0, 0]
    assert is_red.all()


def displayed(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return what a viewer shows, pixel by pixel, by the table of the EXIF standard.

    The table says at which edge of the picture the file's first row and first column are.
    """
    height, width = pixels.shape[:2]
    shape = (height, width, 3)
    is_transposed = orientation >= 5
    if is_transposed:
        shape = (width, height, 3)
    shown = np.zeros(shape, dtype=pixels.dtype)
    for y in range(height):
        for x in range(width):
            right = width - 1 - x
            bottom = height - 1 - y
            place = {
                1: (y, x),
                2: (y, right),
                3: (bottom, right),
                4: (bottom, x),
                5: (x, y),
                6: (x, bottom),
                7: (right, bottom),
                8: (right, y),
            }[orientation]
            shown[place] = pixels[y, x]
    return shown


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(orientation: int) -> None:
    pixels = noise(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    found = pixels_of(encoded(image, exif=exif))

    np.testing.assert_array_equal(found, displayed(pixels, orientation))


@pytest.mark.parametrize(
    "damage", [b"", b"\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"\xff" * 40]
)
def test_damaged_metadata_does_not_cost_the_pixels(damage: bytes) -> None:
    pixels = noise(8, 8, 3)
    found = decoded_png(pixels, png_chunk(b"eXIf", damage))

    np.testing.assert_array_equal(found, pixels)

    # An EXIF block with one entry, orientation 6, and damage after it: the entry is still read.
    entry = struct.pack(">2sHIHHHII", b"MM", 42, 8, 1, 0x0112, 3, 1, 6 << 16)
    found = decoded_png(pixels, png_chunk(b"eXIf", entry + damage))

    np.testing.assert_array_equal(found, displayed(pixels, 6))


@pytest.mark.parametrize("size", [(1, 1), (65_000, 1), (1, 65_000), (3, 2)])
def test_tiny_and_thin_images_are_resized(size: tuple[int, int]) -> None:
    # One color, so that resizing cannot change it.
    image = Image.new("RGB", size, (1, 2, 3))
    found = pixels_of(encoded(image))
    assert (found == [1, 2, 3]).all()


FILES_WITH_WRONG_NAMES = {
    "is_png.jpg": noise_png(),
    "is_gif.png": encoded(Image.fromarray(noise(8, 8)), "GIF"),
    "text.png": b"Dear reader, this is no image.\n" * 9,
    "script.jpg": b"#!/bin/sh\ntouch canary\n",
    "page.webp": b"<!DOCTYPE html><html></html>",
    "empty.gif": b"",
    # Pillow would run Ghostscript for it, where it is installed.
    "eps.tif": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
    "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


def test_the_content_decides_and_not_the_file_name(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, data in FILES_WITH_WRONG_NAMES.items():
        (folder / name).write_bytes(data)
    plan = plan_of({"type": "folder", "path": str(folder)})
    store = write_store(plan, tmp_path / "store")

    assert sorted(store.index["id"]) == ["is_gif.png", "is_png.jpg"]
    assert store.quarantine_counts == {"unreadable": 5, "empty": 1}


# --- broken, and set aside

DECODER_ERRORS = [
    SyntaxError("broken PNG file"),
    struct.error("unpack"),
    RecursionError("deep"),
    OverflowError("large"),
    MemoryError(),
    ZeroDivisionError(),
    IndexError(),
    KeyError(1),
    AssertionError(),
    StopIteration(),
    EOFError(),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "odd"),
    NotImplementedError(),
    SystemError("bad call"),
]


@pytest.mark.parametrize("error", DECODER_ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_of_a_decoder_costs_one_image(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(self: Any) -> None:
        raise error

    gray_image = Image.fromarray(noise(8, 8))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    bad = encoded(gray_image, "PNG")
    good = encoded(gray_image, "BMP")
    decoded = GRAY_DECODER.decode_all([bad, good, bad], n_workers=2)
    first, second, third = [pixels for _, pixels in decoded]

    assert first == Unusable(Reason.UNREADABLE)
    assert isinstance(second, np.ndarray)
    assert third == Unusable(Reason.UNREADABLE)


def test_broken_images_are_counted_in_the_report_by_reason(tmp_path: Path) -> None:
    good = noise_png()
    jpeg = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    truncated = jpeg[: len(jpeg) // 2]
    too_large = png(60_000, 60_000, 8, RGB, [b""])
    # Numbers without a range, which cannot be shown as gray.
    float_pixels = encoded(Image.new("F", (8, 8)), "TIFF")
    images = [good, truncated, b"", b"text", too_large, good, None, float_pixels]
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), file)
    pool_plan = plan_of({"type": "parquet", "path": str(file)})
    other_plan = plan_of({"type": "demo", "part": "test", "limit": 1})
    pool = write_store(pool_plan, tmp_path / "pool")
    other = write_store(other_plan, tmp_path / "other")

    stores = {"labeled": other, "pool": pool, "test": other, "teacher_training": other}
    duplicates = find_duplicates(stores, None)
    report = report_ingestion(other, pool, other, duplicates)["pool_images"]

    assert report["n_images"] == 1
    assert report["n_quarantined"] == 7
    assert report["quarantined"] == {
        "empty": 2,
        "truncated": 1,
        "unreadable": 1,
        "too many pixels": 1,
        "duplicate": 1,
        "floating-point pixels": 1,
    }


# --- decoders that crash


@pytest.fixture
def parquet_with_a_crash(tmp_path: Path) -> Path:
    """Twenty images, two of which crash the decoder."""
    images = [noise_png(seed) for seed in range(20)]
    images[7] = crashing_decoder.CRASHES
    images[13] = crashing_decoder.CRASHES
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": images}), file)
    return file


def ingest_in_process(parquet: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Ingest in another process: the crash would end this one."""
    return subprocess.run(
        [sys.executable, crashing_decoder.__file__, str(out), str(parquet)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_an_image_that_crashes_its_decoder_costs_the_next_run_one_image(
    parquet_with_a_crash: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"

    # Negative: a signal ended the process.
    assert ingest_in_process(parquet_with_a_crash, out).returncode < 0
    assert not (out / "store.json").exists()

    second = ingest_in_process(parquet_with_a_crash, out)

    assert second.returncode == 0, second.stderr

    store = ImageStore.open(out)

    assert len(store) == 18
    assert store.quarantine_counts == {"crashes its decoder": 2}
    assert sorted(store.quarantine["id"]) == ["a:13", "a:7"]

    # Leaving images out must not have shifted pixels against ids.
    [first_image] = store.read(np.array([0]))
    expected = noise(8, 8, 3)

    np.testing.assert_array_equal(first_image.transpose(1, 2, 0), expected)


def test_decoding_in_other_processes_gives_the_same_pixels_in_the_same_order() -> None:
    raws: list[Any] = []
    for seed in range(70):
        image = Image.fromarray(noise(9, 7, 3, seed=seed))
        raws.append(encoded(image))
    raws[3] = b""
    raws[5] = Unusable(Reason.LINK)
    in_process = COLOR_DECODER.decode_all(raws, 1)
    in_others = COLOR_DECODER.decode_all_in_processes(raws, 2)
    n_compared = 0
    for (_, expected), (_, found) in zip(in_process, in_others, strict=True):
        if isinstance(expected, Unusable):
            assert found == expected
        else:
            np.testing.assert_array_equal(found, expected)
        n_compared += 1

    assert n_compared == len(raws)
