"""What a source reads and what its state is made of are the same files, and no change is missed."""

from __future__ import annotations

import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.sources import file_list, files
from pu_kd_pipeline.images.sources.files import (
    file_state,
    has_mark,
    local_matches,
    remote_version,
)
from pu_kd_pipeline.images.sources.registry import source_state
from tests.images.sources.examples import (
    gray_levels,
    image_folder,
    listed,
    opened,
    parquet_file,
    png,
    served,
    source_of,
)


def replace_with_equal_size_and_time(file: Path, content: bytes) -> None:
    """Put another file in the place of a file, as `cp -p`, rsync and tar do."""
    before = file.stat()
    assert len(content) == before.st_size
    other = file.with_name(".other")
    other.write_bytes(content)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_an_image_of_the_same_size_and_time_is_another_version(tmp_path: Path) -> None:
    root = image_folder(tmp_path, cat__a=1, cat__b=2)
    source = source_of("folder", path=root)
    before = listed("folder", path=root)
    state = source_state(source)

    replace_with_equal_size_and_time(root / "cat" / "a.png", png(3))
    after = listed("folder", path=root)
    assert (before["version"] != after["version"]).tolist() == [True, False]
    assert source_state(source) != state


def test_a_parquet_file_of_the_same_size_and_time_is_another_version(tmp_path: Path) -> None:
    path = Path(parquet_file(tmp_path / "a.parquet", 3))
    source = source_of("parquet", path=path)
    before = listed("parquet", path=path)
    state = source_state(source)

    replace_with_equal_size_and_time(path, path.read_bytes())
    assert (before["version"] != listed("parquet", path=path)["version"]).all()
    assert source_state(source) != state


def test_a_version_is_taken_when_further_changes_would_change_it(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    # The clock of a file system advances in steps of up to ten milliseconds.
    for _ in range(20):
        file.write_bytes(b"1")
        before = file_state(file)
        file.write_bytes(b"2")
        os.utime(file, ns=(0, 0))
        after = file_state(file)
        assert before[0].split("-")[2] != after[0].split("-")[2]


def test_files_that_did_not_just_change_are_not_waited_for(tmp_path: Path) -> None:
    paths = []
    for number in range(200):
        path = tmp_path / f"{number}.png"
        path.write_bytes(b"1")
        paths.append(path)
    start = time.monotonic()
    for path in paths:
        file_state(path)
    # One wait, after which all of them are old enough.
    assert time.monotonic() - start < 1


def test_a_file_changed_while_it_is_read_is_another_version_in_the_next_run(tmp_path: Path) -> None:
    root = image_folder(tmp_path, a=1)
    reader = opened("folder", path=root)
    listing = reader.listing()
    writer = threading.Thread(target=(root / "a.png").write_bytes, args=(png(2),))
    writer.start()
    writer.join()
    assert gray_levels(reader.read(listing)) == [2]
    assert (listed("folder", path=root)["version"] != listing["version"]).all()


# --- one listing for reading and for the state ---


def _home(folder: Path) -> str:
    return "~/" + folder.relative_to(Path.home()).as_posix()


def add_image(folder: Path, number: int) -> None:
    (folder / f"{number}.png").write_bytes(png(number))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


# A path below the home folder, and whether files of it are read
PATHS: dict[str, Callable[[Path], str]] = {
    "home": _home,
    "file": lambda folder: f"file://{folder}",
    "link": lambda folder: f"{folder.parent}/link",
}


@pytest.mark.parametrize("kind", PATHS)
def test_changes_in_a_folder_are_seen_however_its_path_is_written(kind: str, home: Path) -> None:
    folder = image_folder(home / "photos", cat__a=1)
    (home / "link").symlink_to(folder)
    source = source_of("folder", path=PATHS[kind](folder))
    states = [source_state(source)]
    add_image(folder / "cat", 2)
    states.append(source_state(source))
    replace_with_equal_size_and_time(folder / "cat" / "a.png", png(3))
    states.append(source_state(source))
    assert len(set(states)) == 3
    assert states[-1] == source_state(source)


def test_a_link_that_leads_to_another_folder_now_is_seen(tmp_path: Path) -> None:
    first = image_folder(tmp_path / "first", a=1)
    second = tmp_path / "second"
    shutil.copytree(first, second)  # the same names, sizes and times
    link = tmp_path / "link"
    link.symlink_to(first)
    source = source_of("folder", path=link)
    before = source_state(source)
    link.unlink()
    link.symlink_to(second)
    assert source_state(source) != before


def test_what_links_in_a_folder_lead_to_is_seen(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "root", blobs__a=1, blobs__b=2)
    link = root / "cat" / "a.png"
    link.parent.mkdir()
    link.symlink_to("../blobs/a.png")
    source = source_of("folder", path=root)
    states = [source_state(source)]
    replace_with_equal_size_and_time(root / "blobs" / "a.png", png(3))
    states.append(source_state(source))
    link.unlink()
    link.symlink_to("../blobs/b.png")
    states.append(source_state(source))
    # A link to a folder is not followed, and counted.
    (root / "dog").symlink_to(root / "blobs")
    states.append(source_state(source))
    assert len(set(states)) == 4


def test_files_that_are_not_read_do_not_change_the_state(tmp_path: Path) -> None:
    root = image_folder(tmp_path, cat__a=1)
    source = source_of("folder", path=root)
    before = source_state(source)
    (root / "notes.txt").write_text("no image")
    image_folder(root / ".thumbnails", a=1)
    assert source_state(source) == before


GLOBS = {
    "**/part-*.parquet": ["deep/er/part-1.parquet", "part-0.parquet", "run[1]/part-2.parquet"],
    "*/part-*.parquet": ["link/part-1.parquet", "run[1]/part-2.parquet"],
    "run[1]/*.parquet": ["run[1]/part-2.parquet"],
    "run[1]/part-2.parquet": ["run[1]/part-2.parquet"],
    "run[1]": ["run[1]/part-2.parquet"],
    "deep/**": ["deep/er/part-1.parquet"],
    "part-[0-9].parquet": ["part-0.parquet"],
    ".hidden/*.parquet": [".hidden/part-3.parquet"],
}


@pytest.mark.parametrize("pattern", GLOBS)
def test_a_pattern_reads_and_fingerprints_the_same_files(pattern: str, home: Path) -> None:
    root = home / "data"
    for name in ("part-0", "deep/er/part-1", "run[1]/part-2", ".hidden/part-3", ".part-4"):
        file = root / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet_file(file, 1)
    (root / "link").symlink_to(root / "deep" / "er")
    (root / "deep" / "circle").symlink_to(root)
    (root / "run1").mkdir()
    parquet_file(root / "run1" / "other.parquet", 1)

    path = f"~/data/{pattern}"
    found = opened("parquet", path=path)._files  # type: ignore[attr-defined]
    names = [Path(file.path).relative_to(root).as_posix() for file in found]
    assert names == GLOBS[pattern]

    source = source_of("parquet", path=path)
    for name in names:
        before = source_state(source)
        parquet_file(root / name, 2)
        assert source_state(source) != before
    before = source_state(source)
    parquet_file(root / ".part-4.parquet", 2)
    assert source_state(source) == before


def test_a_pipe_called_like_a_parquet_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: unreadable\. Fix or remove it"):
        listed("parquet", path=tmp_path)


def test_a_pattern_without_a_match_matches_nothing(tmp_path: Path) -> None:
    assert local_matches(f"{tmp_path}/**/*.parquet") == []


# --- remote files ---


@pytest.mark.parametrize("key", ["ETag", "Last-Modified", "Content-MD5", "mtime", "blob_id"])
def test_times_and_checksums_of_remote_files_are_part_of_their_version(key: str) -> None:
    about = {"name": "a", "size": 3, key: "1"}
    assert remote_version(about) != remote_version({**about, key: "2"})


def test_remote_files_without_time_or_checksum_are_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.filesystem("memory").pipe("/unmarked/a.png", png(1))
    url = "memory://unmarked"
    listed("folder", path=url)
    assert not caplog.messages
    monkeypatch.setattr(files, "_REMOTE_MARKS", frozenset())
    listed("folder", path=url)
    assert "1 of 1 files" in caplog.text
    assert "go unnoticed, at least if the size stays the same" in caplog.text
    assert "run with --force after a change" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset", "list"])
def test_a_replaced_file_of_a_web_server_is_noticed(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the folder of the list is asked for what is in it
    monkeypatch.setattr(file_list, "_FEW_FILES", 0)
    root = image_folder(tmp_path / "images", cat__a=1)
    parquet_file(root / "a.parquet", 1)
    (root / "list.csv").write_text("path\ncat/a.png\n")
    with tarfile.open(root / "a.tar", "w") as archive:
        archive.add(root / "cat" / "a.png", "a.png")
    replaced = {"folder": "cat/a.png", "list": "cat/a.png"}
    replaced |= {"parquet": "a.parquet", "webdataset": "a.tar"}
    file = root / replaced[kind]

    with served(root) as url:
        path = f"{url}/list.csv" if kind == "list" else f"{url}/"
        source = source_of(kind, path=path)
        before = source_state(source)
        (version,) = set(listed(kind, path=path)["version"])
        assert source_state(source) == before
        if not has_mark(fsspec.filesystem("http").info(f"{url}/{replaced[kind]}")):
            # An old version of fsspec does not pass on the time that the server gives.
            assert "neither time nor checksum" in caplog.text
            return

        # A listing over HTTP has neither size nor time.
        about = file.stat()
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns + 10**10))
        assert source_state(source) != before
        assert set(listed(kind, path=path)["version"]).isdisjoint({version})
    assert "neither time nor checksum" not in caplog.text
