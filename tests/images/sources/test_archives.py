"""Images in archives: `tar://` and `zip://`, alone, compressed, and behind other file systems."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from pu_kd_pipeline.images.sources.archives import archive_version, reads_one_file_at_a_time
from pu_kd_pipeline.images.sources.files import file_system
from pu_kd_pipeline.images.sources.registry import source_state
from tests.images.sources.examples import (
    gray_levels,
    listed,
    opened,
    parquet_file,
    png,
    source_of,
)

N_IMAGES = 60


def tar_of(file: Path, files: dict[str, bytes], mode: Any = "w") -> Path:
    """Write files into a tar archive, all with the same time."""
    with tarfile.open(file, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def zip_of(file: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file


def images() -> dict[str, bytes]:
    """Return image files of different sizes, whose gray levels are their numbers."""
    return {f"cat/{gray:03}.png": png(gray, 8 + gray) for gray in range(N_IMAGES)}


def tar_address(folder: Path) -> str:
    return f"tar://::{tar_of(folder / 'a.tar', images())}"


def compressed_tar_address(folder: Path) -> str:
    return f"tar://::{tar_of(folder / 'a.tar.gz', images(), 'w:gz')}"


def zip_address(folder: Path) -> str:
    return f"zip://::{zip_of(folder / 'a.zip', images())}"


def nested_address(folder: Path) -> str:
    inner = tar_of(folder / "a.tar", images())
    outer = zip_of(folder / "a.zip", {"in/a.tar": inner.read_bytes()})
    return f"tar://::zip://in/a.tar::{outer}"


def prefixed_address(folder: Path) -> str:
    return f"dir::{tar_address(folder)}"


ADDRESSES = pytest.mark.parametrize(
    "address_in",
    [tar_address, compressed_tar_address, zip_address, nested_address, prefixed_address],
)


@ADDRESSES
def test_every_image_of_an_archive_has_its_own_pixels(
    address_in: Callable[[Path], str], tmp_path: Path
) -> None:
    reader = opened("folder", path=address_in(tmp_path))
    listing = reader.listing()
    before = sys.getswitchinterval()
    # Threads take turns as often as they can, as they would on a busy machine.
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(2):
            assert gray_levels(reader.read(listing)) == list(range(N_IMAGES))
    finally:
        sys.setswitchinterval(before)


@ADDRESSES
def test_an_archive_is_read_by_one_thread(
    address_in: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = opened("folder", path=address_in(tmp_path))
    listing = reader.listing()
    threads = set()
    fetch = reader._fetch  # type: ignore[attr-defined]

    def noted(file: tuple[str, str]) -> Any:
        threads.add(threading.get_ident())
        return fetch(file)

    monkeypatch.setattr(reader, "_fetch", noted)
    assert len(list(reader.read(listing))) == N_IMAGES
    assert len(threads) == 1


def test_caches_of_archives_and_ftp_are_read_by_one_thread_and_others_by_several(
    tmp_path: Path,
) -> None:
    archive = tar_of(tmp_path / "a.tar", images())
    cached, _ = file_system(f"simplecache::tar://::{archive}")
    assert reads_one_file_at_a_time(cached)
    # Made without a connection
    assert reads_one_file_at_a_time(SimpleNamespace(protocol="ftp"))

    for name in ("memory", "local"):
        assert not reads_one_file_at_a_time(fsspec.filesystem(name))
    prefixed = fsspec.filesystem("dir", path="/a", target_protocol="memory")
    assert not reads_one_file_at_a_time(prefixed)
    assert archive_version(prefixed) == ""


@pytest.mark.parametrize("address_in", [tar_address, prefixed_address])
def test_an_archive_with_other_images_of_the_same_size_and_time_has_another_state(
    address_in: Callable[[Path], str], tmp_path: Path
) -> None:
    address = address_in(tmp_path)
    before = source_state(source_of("folder", path=address))
    assert source_state(source_of("folder", path=address)) == before

    archive = max(tmp_path.iterdir(), key=os.path.getsize)
    content = archive.read_bytes()
    about = archive.stat()
    archive.write_bytes(content.replace(png(3, 11), png(4, 11)))
    os.utime(archive, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert archive.stat().st_size == about.st_size
    assert source_state(source_of("folder", path=address)) != before


def test_parquet_files_in_an_archive_have_its_version(tmp_path: Path) -> None:
    states = set()
    # A state is computed without opening the files.
    for content in (b"first", b"other"):
        archive = tar_of(tmp_path / "a.tar", {"a.parquet": content})
        source = source_of("parquet", path=f"tar://*.parquet::{archive}")
        states.add(source_state(source))
    assert len(states) == 2


def test_hidden_folders_in_an_archive_are_left_out_and_counted(tmp_path: Path) -> None:
    parquet = Path(parquet_file(tmp_path / "a.parquet", 3)).read_bytes()
    shard = tar_of(tmp_path / "s.tar", {"a.png": png(1)}).read_bytes()
    files = {}
    for folder in ("x", ".h", "x/.h/y"):
        files[f"{folder}/a.parquet"] = parquet
        files[f"{folder}/s.tar"] = shard
        files[f"{folder}/a.png"] = png(1)
    archive = zip_of(tmp_path / "a.zip", files)
    for kind, path, n, n_hidden in (
        ("parquet", "**/*.parquet", 3, 2),
        ("webdataset", "**/*.tar", 1, 2),
        ("folder", "", 1, 6),
    ):
        listing = listed(kind, path=f"zip://{path}::{archive}")
        assert len(listing) == n, kind
        assert listing.attrs["passed_over"]["hidden file"] == n_hidden
    # A folder that is named is no hidden one.
    for path in (".h/*.parquet", ".*/*.parquet", ".h"):
        assert len(listed("parquet", path=f"zip://{path}::{archive}")) == 3


def test_names_that_begin_with_a_dot_and_a_slash_are_not_hidden(tmp_path: Path) -> None:
    parquet = Path(parquet_file(tmp_path / "a.parquet", 3)).read_bytes()
    # As `tar cf a.tar .` calls them
    archive = tar_of(tmp_path / "a.tar", {"./x/a.parquet": parquet, "./cat/a.png": png(1)})
    assert len(listed("parquet", path=f"tar://**/*.parquet::{archive}")) == 3
    reader = opened("folder", path=f"tar://::{archive}")
    listing = reader.listing()
    assert listing["label_name"].tolist() == ["cat"]
    assert gray_levels(reader.read(listing)) == [1]
