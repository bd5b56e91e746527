"""Images that are odd, broken or made to harm: decoded to the right pixels, or set aside with a counted reason."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
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
from tests.hostile.valid_files import encoded, noise, plan_of

GRAY, COLOR = Decoder(1, 8, 50_000_000), Decoder(3, 8, 50_000_000)


def pixels_of(raw: Any, decoder: Decoder = COLOR) -> np.ndarray:
    """Return the decoded pixels as (H, W, C) integers."""
    pixels = decoder.decode(raw)
    assert isinstance(pixels, np.ndarray), pixels
    return pixels.transpose(1, 2, 0).astype(int)


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(
    width: int,
    height: int,
    depth: int,
    color: int,
    rows: list[bytes],
    *before: bytes,
    after: bytes = b"",
) -> bytes:
    """Return a PNG written by hand, with chunks before and after its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + data + after + chunk(b"IEND", b"")


# --- odd, and decoded to the right pixels


def test_sixteen_bits_a_channel_keep_their_high_byte() -> None:
    rng = np.random.default_rng(0)
    for n_channels, color in ((1, 0), (2, 4), (3, 2), (4, 6)):
        values = rng.integers(0, 2**16, (8, 8, n_channels))
        if n_channels in (2, 4):
            values[:, :, -1] = 65535
        found = pixels_of(png(8, 8, 16, color, [row.astype(">u2").tobytes() for row in values]))
        expected = values[:, :, :3] if n_channels >= 3 else values[:, :, :1]
        np.testing.assert_array_equal(found, np.broadcast_to(expected >> 8, (8, 8, 3)))


def over_white(color: tuple[int, ...], alpha: int) -> list[float]:
    return [(part * alpha + 255 * (255 - alpha)) / 255 for part in color]


def test_a_palette_with_transparency_lies_over_white() -> None:
    palette = [(10, 20, 30), (200, 0, 100), (0, 255, 7), (90, 90, 90)]
    alphas = [255, 0, 128]  # and opaque where the list ends
    indices = np.random.default_rng(0).integers(0, 4, (8, 8))
    before = (
        chunk(b"PLTE", bytes(part for color in palette for part in color)),
        chunk(b"tRNS", bytes(alphas)),
    )
    found = pixels_of(png(8, 8, 8, 3, [bytes(row.tolist()) for row in indices], *before))
    for y in range(8):
        for x in range(8):
            index = int(indices[y, x])
            expected = over_white(palette[index], [*alphas, 255][index])
            assert found[y, x].tolist() == pytest.approx(expected, abs=1)


def test_cmyk_is_turned_into_the_colors_it_prints() -> None:
    inks = [
        (0, 0, 0, 0),
        (255, 0, 0, 0),
        (0, 255, 0, 0),
        (0, 0, 255, 0),
        (0, 0, 0, 255),
        (128, 64, 0, 32),
    ]
    for ink in inks:
        c, m, y, k = ink
        expected = [255 * (1 - part / 255) * (1 - k / 255) for part in (c, m, y)]
        found = pixels_of(encoded(Image.new("CMYK", (8, 8), ink), "JPEG", quality=100))
        assert found[4, 4].tolist() == pytest.approx(expected, abs=6), ink


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    data = encoded(
        frames[0],
        kind,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if kind == "WEBP" else {}),
    )
    assert getattr(Image.open(BytesIO(data)), "n_frames", 1) == 3
    assert (pixels_of(data) == [255, 0, 0]).all()


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return what a viewer shows, place by place: the table of the EXIF standard (row 0 and column 0 of the file)."""
    height, width = pixels.shape[:2]
    swapped = orientation >= 5
    shown = np.zeros((width, height, 3) if swapped else (height, width, 3), dtype=pixels.dtype)
    for y in range(height):
        for x in range(width):
            right, bottom = width - 1 - x, height - 1 - y
            place = {
                1: (y, x), 2: (y, right), 3: (bottom, right), 4: (bottom, x),
                5: (x, y), 6: (x, bottom), 7: (right, bottom), 8: (right, y),
            }[orientation]  # fmt: skip
            shown[place] = pixels[y, x]
    return shown


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_undone(orientation: int) -> None:
    pixels = noise(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(
        pixels_of(encoded(Image.fromarray(pixels), exif=exif)),
        turned(pixels, orientation).astype(int),
    )


@pytest.mark.parametrize(
    "damage", [b"", b"\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"\xff" * 40]
)
def test_damaged_metadata_does_not_cost_the_pixels(damage: bytes) -> None:
    pixels = noise(8, 8, 3)
    rows = [row.tobytes() for row in pixels]
    np.testing.assert_array_equal(pixels_of(png(8, 8, 8, 2, rows, chunk(b"eXIf", damage))), pixels)
    orientation = struct.pack(">2sHIHHHII", b"MM", 42, 8, 1, 0x0112, 3, 1, 6 << 16)
    unwritable = orientation[:-4] + struct.pack(">I", 6 << 16) + damage
    np.testing.assert_array_equal(
        pixels_of(png(8, 8, 8, 2, rows, chunk(b"eXIf", unwritable))), turned(pixels, 6)
    )


@pytest.mark.parametrize("size", [(1, 1), (65_000, 1), (1, 65_000), (3, 2)])
def test_tiny_and_thin_images_are_resized(size: tuple[int, int]) -> None:
    assert (pixels_of(encoded(Image.new("RGB", size, (1, 2, 3)))) == [1, 2, 3]).all()


def test_what_an_image_is_decides_and_not_what_its_file_is_called(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, data in {
        "is_png.jpg": encoded(Image.fromarray(noise(8, 8, 3))),
        "is_gif.png": encoded(Image.fromarray(noise(8, 8)), "GIF"),
        "text.png": b"Dear reader, this is no image.\n" * 9,
        "script.jpg": b"#!/bin/sh\ntouch canary\n",
        "page.webp": b"<!DOCTYPE html><html></html>",
        "empty.gif": b"",
        "eps.tif": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    }.items():
        (tmp_path / "images" / name).write_bytes(data)
    store = write_store(
        plan_of({"type": "folder", "path": str(tmp_path / "images")}), tmp_path / "store"
    )
    assert sorted(store.index["id"]) == ["is_gif.png", "is_png.jpg"]
    assert store.quarantine_counts == {"unreadable": 5, "empty": 1}


# --- broken or made to harm, and set aside


def declared(kind: str) -> bytes:
    """Return a file of a few hundred bytes that declares billions of pixels."""
    image = Image.fromarray(noise(16, 16, 3))
    if kind == "PNG":
        return png(60_000, 60_000, 8, 2, [b""])
    if kind == "WEBP":
        data = bytearray(
            encoded(image, "WEBP", save_all=True, append_images=[Image.new("RGB", (16, 16))])
        )
        data[24:30] = (16_383).to_bytes(3, "little") * 2
    else:
        data = bytearray(encoded(image, kind))
    if kind == "JPEG":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", 65_000, 65_000)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", 60_000, 60_000)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", 65_000, 65_000)
    elif kind == "TIFF":
        for tag in (256, 257):
            place = (
                data.index(struct.pack("<HH", tag, 4), 8)
                if struct.pack("<HH", tag, 4) in data
                else -1
            )
            place = place if place >= 0 else data.index(struct.pack("<HH", tag, 3), 8)
            data[place : place + 12] = struct.pack("<HHII", tag, 4, 1, 60_000)
    return bytes(data)


def peak_bytes() -> int:
    resource = pytest.importorskip("resource", reason="Windows does not tell")
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (
        1 if sys.platform == "darwin" else 1024
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_a_small_file_that_declares_billions_of_pixels_is_not_unpacked(kind: str) -> None:
    before = peak_bytes()
    assert COLOR.decode(declared(kind)) == Unusable(Reason.TOO_MANY_PIXELS)
    assert peak_bytes() - before < 64 * 2**20


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_metadata_that_unpacks_to_gigabytes_is_not_unpacked(kind: bytes, place: str) -> None:
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(96)) + packer.flush()
    head = {b"iCCP": b"x\0\0", b"zTXt": b"x\0\0", b"iTXt": b"x\0\1\0\0\0"}[kind]
    bomb = chunk(kind, head + packed)
    rows = [row.tobytes() for row in noise(8, 8, 3)]
    data = png(8, 8, 8, 2, rows, bomb) if place == "before" else png(8, 8, 8, 2, rows, after=bomb)
    before = peak_bytes()
    assert COLOR.decode(data) in (Unusable(Reason.TOO_MUCH_METADATA), Unusable(Reason.UNREADABLE))
    assert peak_bytes() - before < 64 * 2**20


@pytest.mark.parametrize(
    "fault",
    [SyntaxError("broken PNG file"), struct.error("unpack"), RecursionError("deep"), OverflowError("large"),
     MemoryError(), ZeroDivisionError(), IndexError(), KeyError(1), AssertionError(), StopIteration(), EOFError(),
     UnicodeDecodeError("utf-8", b"x", 0, 1, "odd"), NotImplementedError(), SystemError("bad call")],
    ids=lambda fault: type(fault).__name__,
)  # fmt: skip
def test_whatever_a_decoder_raises_costs_one_image(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fails(self: Any) -> None:
        raise fault

    data = encoded(Image.fromarray(noise(8, 8)))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fails)
    good = encoded(Image.fromarray(noise(8, 8)), "BMP")
    results = [pixels for _, pixels in GRAY.decode_all([data, good, data], n_workers=2)]
    assert results[0] == results[2] == Unusable(Reason.UNREADABLE)
    assert isinstance(results[1], np.ndarray)


def test_broken_images_are_counted_in_the_report_by_reason(tmp_path: Path) -> None:
    jpeg = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    good = encoded(Image.fromarray(noise(8, 8, 3)))
    images = [
        good,
        jpeg[: len(jpeg) // 2],
        b"",
        b"text",
        declared("PNG"),
        good,
        None,
        encoded(Image.new("F", (8, 8)), "TIFF"),
    ]
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), tmp_path / "a.parquet")
    plan = plan_of({"type": "parquet", "path": str(tmp_path / "a.parquet")})
    store = write_store(plan, tmp_path / "pool")
    empty = write_store(plan_of({"type": "demo", "part": "test", "limit": 1}), tmp_path / "other")
    stores = {"labeled": empty, "pool": store, "test": empty, "teacher_training": empty}
    report = report_ingestion(empty, store, empty, find_duplicates(stores, None))["pool_images"]
    assert report["n_images"] == 1
    assert report["quarantined"] == {
        "empty": 2, "truncated": 1, "unreadable": 1, "too many pixels": 1, "duplicate": 1,
        "unsupported pixel format": 1,
    }  # fmt: skip
    assert report["n_quarantined"] == 7


# --- decoders that crash


@pytest.fixture
def parquet_with_a_crash(tmp_path: Path) -> Path:
    images = [encoded(Image.fromarray(noise(8, 8, 3, seed=seed))) for seed in range(20)]
    images[7] = images[13] = crashing_decoder.CRASHES
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


def test_an_image_that_crashes_its_decoder_costs_the_next_run_one_image(
    parquet_with_a_crash: Path, tmp_path: Path
) -> None:
    script, out = Path(crashing_decoder.__file__), tmp_path / "store"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run: Callable[[], subprocess.CompletedProcess[str]] = lambda: subprocess.run(  # noqa: E731
        [sys.executable, str(script), str(out), str(parquet_with_a_crash)],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run().returncode < 0
    assert not (out / "store.json").exists()
    again = run()
    assert again.returncode == 0, again.stderr
    store = ImageStore.open(out)
    assert len(store) == 18
    assert store.quarantine_counts == {"crashes its decoder": 2}
    assert sorted(store.quarantine["id"]) == ["a:13", "a:7"]
    np.testing.assert_array_equal(
        store.read(np.array([0])), noise(8, 8, 3)[None].transpose(0, 3, 1, 2)
    )


def test_decoding_apart_gives_the_same_pixels_in_the_same_order() -> None:
    raws: list[Any] = [encoded(Image.fromarray(noise(9, 7, 3, seed=seed))) for seed in range(70)]
    raws[3], raws[5] = b"", Unusable(Reason.LINK)
    together, apart = (
        [pixels for _, pixels in decoded]
        for decoded in (COLOR.decode_all(raws, 1), COLOR.decode_all_apart(raws, 2))
    )
    assert [isinstance(pixels, Unusable) for pixels in apart] == [
        isinstance(pixels, Unusable) for pixels in together
    ]
    for one, other in zip(together, apart, strict=True):
        assert one == other if isinstance(one, Unusable) else np.array_equal(one, other)
