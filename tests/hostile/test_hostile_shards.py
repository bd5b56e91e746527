"""WebDataset shards that are cut short, damaged or hostile: refused, or set aside by image."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.listing import list_images
from pu_kd_pipeline.images.sources import webdataset_samples
from pu_kd_pipeline.images.sources.base import SourceLostError
from pu_kd_pipeline.images.sources.registry import open_source
from tests.hostile.valid_files import noise, noise_png, plan_of

N_SAMPLES = 4


def packed(n: int = N_SAMPLES, **options: object) -> bytes:
    """Return a shard with the images 000, 001, …"""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:  # type: ignore[call-overload]
        for number in range(n):
            content = noise_png(number)
            member = tarfile.TarInfo(f"{number:03}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def error_of(file: Path) -> str:
    """Return the message with which ingestion refuses a shard; it must leave nothing behind."""
    out = file.with_name("store")
    with pytest.raises(InputError) as error:
        write_store(plan_of({"type": "webdataset", "path": str(file)}), out)
    assert not out.exists()
    return str(error.value)


def ids_of(path: Path) -> list[str]:
    table, _ = list_images(plan_of({"type": "webdataset", "path": str(path)}))
    return table["id"].tolist()


def end_of_members(content: bytes) -> int:
    """Return the position of the zeros that end an archive."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        last = tar.getmembers()[-1]
    n_blocks = -(-last.size // 512)
    return last.offset_data + 512 * n_blocks


def damaged_header(content: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        offset = tar.getmembers()[2].offset
    return content[:offset] + b"\xff" * 512 + content[offset + 512 :]


@pytest.mark.parametrize(
    ("damage", "n_samples"),
    [
        # In the middle of an image, of a header, and between two members
        (lambda content: content[: end_of_members(content) - 600], N_SAMPLES - 1),
        (lambda content: content[: end_of_members(content) - 1100], N_SAMPLES - 1),
        (lambda content: content[: end_of_members(content)], N_SAMPLES),
        # Behind the first member, tarfile takes this for the end of the archive.
        (damaged_header, 2),
        (lambda content: content + b"junk", N_SAMPLES),
        (lambda content: b"", 0),
        (lambda content: b"<html>404</html>" * 100, 0),
    ],
    ids=["in an image", "in a header", "between members", "damage", "junk", "empty", "page"],
)
@pytest.mark.parametrize("packs", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_shard_that_is_not_whole_is_refused_by_its_name(
    damage: Callable[[bytes], bytes],
    n_samples: int,
    packs: Callable[[bytes], bytes],
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(packs(damage(packed())))
    message = error_of(file)
    assert f"{file} is not a whole tar archive (" in message
    assert "copy or download it again" in message


@pytest.mark.parametrize("n_kept", [0.3, 0.9, 0.999])
def test_a_compressed_shard_that_is_cut_short_is_refused(n_kept: float, tmp_path: Path) -> None:
    file = tmp_path / "a.tar.gz"
    content = gzip.compress(packed(40))
    file.write_bytes(content[: int(len(content) * n_kept)])
    assert f"{file} is not a whole tar archive (" in error_of(file)


def test_damage_within_compressed_data_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tar.gz"
    content = bytearray(gzip.compress(packed(40)))
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    assert f"{file} is not a whole tar archive (" in error_of(file)


def test_archives_without_members_or_behind_each_other_are_whole(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(packed(0))
    assert "holds no image: files of images are looked for" in error_of(tmp_path)
    # `cat`, and writers that end an archive with one block of zeros or with many
    content = packed(2)
    one_block = content[: end_of_members(content) + 512]
    for ending in (content + packed(0), one_block, content + bytes(700)):
        (tmp_path / "b.tar").write_bytes(ending)
        assert ids_of(tmp_path) == ["b.tar/000", "b.tar/001"]
    (tmp_path / "b.tar").write_bytes(packed(1) + content)
    table, _ = list_images(plan_of({"type": "webdataset", "path": str(tmp_path)}))
    assert table["fault"].fillna("-").tolist() == ["-", "several files of one name"]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a header that declares a size, which may be any."""
    member = tarfile.TarInfo(name)
    member.type = kind
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def test_negative_sizes_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(header("0.png", -1024) + packed())
    assert "is not a whole tar archive (one of its headers points backwards" in error_of(file)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_headers_that_unpack_to_gigabytes_are_not_read(kind: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.tar.gz"
    with gzip.open(file, "wb", compresslevel=1) as packing:
        packing.write(header("x", 2**31, kind) + bytes(2**24))
    tracemalloc.start()
    try:
        message = error_of(file)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "one of its headers declares 2,147,483,648 bytes" in message
    assert peak_bytes < 2**24


def test_images_that_are_too_large_are_set_aside_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset_samples, "MAX_FILE_BYTES", 2**20)
    n_bytes = 2**24
    file = tmp_path / "a.tar.gz"
    with gzip.open(file, "wb", compresslevel=1) as packing:
        packing.write(header("large.png", n_bytes))
        for _ in range(n_bytes // 2**20):
            packing.write(bytes(2**20))
        packing.write(packed())
    assert file.stat().st_size < 2**18

    plan = plan_of({"type": "webdataset", "path": str(file)}, max_quarantined_share=0.5)
    store = write_store(plan, tmp_path / "store")
    source = open_source(plan.sources[0], seed=0)
    tracemalloc.start()
    try:
        listing = source.listing()
        usable = listing[listing["fault"].isna()]
        assert len(list(source.read(usable))) == N_SAMPLES
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert store.quarantine_counts == {"file too large": 1}
    assert len(store) == N_SAMPLES
    first = store.read(np.array([0]))[0]
    np.testing.assert_array_equal(first.transpose(1, 2, 0), noise(8, 8, 3, seed=0))
    assert peak_bytes < n_bytes // 2


def test_names_of_any_bytes_are_set_aside_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    content = header(name, 0) + packed(1)
    file.write_bytes(content)
    table, _ = list_images(plan_of({"type": "webdataset", "path": str(file)}))
    assert table["id"].tolist() == ["a.tar/000", "a.tar/caf\\xe9"]
    assert table["fault"].fillna("-").tolist() == ["-", "file name is not UTF-8"]

    file.write_bytes(packed(1))
    with tarfile.open(file, "a") as tar:
        tar.addfile(tarfile.TarInfo("x" * 20_000 + ".png"))
    assert "the name of a file has 20,000 characters, and 10,000 are allowed" in error_of(file)


def test_a_shard_that_was_replaced_while_it_was_read_ends_the_run(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(packed())
    (block,) = plan_of({"type": "webdataset", "path": str(file)}).sources
    source = open_source(block, seed=0)
    listing = source.listing()
    file.write_bytes(packed(1))
    with pytest.raises(
        SourceLostError, match="a.tar could not be read to its end .it was replaced"
    ):
        list(source.read(listing))
