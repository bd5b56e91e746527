"""A cache of bounded size, with several threads and processes, and one that was killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.storage import file_cache
from pu_kd_pipeline.storage.file_cache import FileCache, copy_name, place_name

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no file locks")
LIMIT = 1_000
ABOUT = "s3://bucket/x"
PLACE = place_name("0" * 32)
OTHER_PLACE = place_name("1" * 32)


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "cache", LIMIT)


@pytest.fixture
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_cache, "_LONGEST_WAIT_S", 0.3)


def name(letter: str) -> str:
    return copy_name("f" * 32, letter)


def writer(n_bytes: int, calls: list[str] | None = None) -> Callable[[Path], None]:
    """Return a download that counts its calls."""

    def download(path: Path) -> None:
        if calls is not None:
            calls.append(path.name)
        path.write_bytes(b"x" * n_bytes)

    return download


def n_bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_copy_is_downloaded_once_and_again_after_it_was_forgotten(cache):
    calls: list[str] = []
    for _ in range(3):
        with cache.copy(PLACE, name("a"), 10, writer(10, calls), ABOUT) as path:
            assert path.read_bytes() == b"x" * 10
    assert len(calls) == 1

    assert cache.forget(PLACE, name("a"))
    cache.copy(PLACE, name("a"), 10, writer(10, calls), ABOUT).close()

    assert len(calls) == 2


def test_copies_of_two_places_and_of_another_size_are_not_mixed_up(cache):
    calls: list[str] = []
    cache.copy(PLACE, name("a"), 10, writer(10, calls), ABOUT).close()
    cache.copy(OTHER_PLACE, name("a"), 10, writer(10, calls), ABOUT).close()
    # A file that was cut short is not the copy.
    (cache.folder / PLACE / name("a")).write_bytes(b"x")
    with cache.copy(PLACE, name("a"), 10, writer(10, calls), ABOUT) as path:
        assert path.stat().st_size == 10

    assert len(calls) == 3


@given(sizes=st.lists(st.integers(0, LIMIT), max_size=30))
def test_the_limit_is_never_passed(tmp_path_factory, sizes):
    cache = FileCache(tmp_path_factory.mktemp("cache"), LIMIT)
    for number, size in enumerate(sizes):
        with cache.copy(PLACE, name(f"{number % 7}-{size}"), size, writer(size), ABOUT) as path:
            assert path.stat().st_size == size
            assert n_bytes_below(cache.folder) <= LIMIT


def test_what_was_not_used_for_the_longest_time_is_removed_first(cache):
    for letter in ("a", "b"):
        cache.copy(PLACE, name(letter), 400, writer(400), ABOUT).close()
    # `a` was used last, but for a minute the time is not written again.
    os.utime(cache.folder / PLACE / name("a"), (2e9, 1e9))
    os.utime(cache.folder / PLACE / name("b"), (1e9, 1e9))
    cache.copy(PLACE, name("c"), 400, writer(400), ABOUT).close()

    assert {path.name for path in (cache.folder / PLACE).iterdir()} == {name("a"), name("c")}


def test_a_copy_that_is_read_stays_and_the_other_waits_for_it(cache):
    first = cache.copy(PLACE, name("a"), 600, writer(600), ABOUT)
    done = threading.Event()

    def need_room() -> None:
        cache.copy(PLACE, name("b"), 600, writer(600), ABOUT).close()
        done.set()

    thread = threading.Thread(target=need_room, daemon=True)
    thread.start()
    assert not done.wait(0.3)
    assert first.path.read_bytes() == b"x" * 600
    first.close()

    assert done.wait(10)
    assert not first.path.exists()


@pytest.mark.usefixtures("_short_wait")
def test_room_that_others_keep_is_an_error_after_a_while(cache):
    with (
        cache.copy(PLACE, name("a"), 600, writer(600), ABOUT),
        pytest.raises(UnavailableError, match="other processes use all but 4e-07 GB of it"),
    ):
        cache.copy(PLACE, name("b"), 600, writer(600), ABOUT)

    cache.copy(PLACE, name("b"), 600, writer(600), ABOUT).close()


def test_a_file_larger_than_the_cache_is_refused_with_the_size_that_it_needs(cache):
    with pytest.raises(InputError, match=f"{ABOUT} has 2e-06 GB, .*set cache_gb to 2.2e-06"):
        cache.copy(PLACE, name("a"), 2 * LIMIT, writer(0), ABOUT)

    assert not list((cache.folder / PLACE).glob("*")) if cache.folder.exists() else True


def test_a_download_that_ends_early_or_fails_leaves_nothing(cache):
    with pytest.raises(UnavailableError, match="has 10 bytes, and 9 arrived"):
        cache.copy(PLACE, name("a"), 10, writer(9), ABOUT)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.copy(PLACE, name("a"), 10, fail, ABOUT)

    assert n_bytes_below(cache.folder) == 0


def test_threads_that_need_the_same_file_download_it_once(cache):
    calls: list[str] = []

    def slow(path: Path) -> None:
        time.sleep(0.1)
        writer(100, calls)(path)

    def read() -> None:
        with cache.copy(PLACE, name("a"), 100, slow, ABOUT) as path:
            assert path.stat().st_size == 100

    threads = [threading.Thread(target=read) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(calls) == 1


@pytest.mark.usefixtures("_short_wait")
def test_unfinished_files_of_others_count_from_the_start(cache):
    other = FileCache(cache.folder, LIMIT)
    with (
        other.room_for(700, ABOUT) as folder,
        pytest.raises(UnavailableError, match="all but 3e-07 GB"),
    ):
        assert not list(folder.iterdir())
        cache.copy(PLACE, name("a"), 600, writer(600), ABOUT)


def test_files_of_unknown_size_count_as_they_are_written(cache):
    cache.copy(PLACE, name("a"), 600, writer(600), ABOUT).close()
    with cache.empty_room() as folder:
        # No copy gives way before room is made.
        assert (cache.folder / PLACE / name("a")).exists()
        (folder / "x").write_bytes(b"x" * 700)
        cache.copy(PLACE, name("b"), 300, writer(300), ABOUT).close()
        assert n_bytes_below(cache.folder) == 1_000
    assert n_bytes_below(cache.folder) == 300


def test_a_size_is_checked_without_a_wait_for_others(cache):
    with cache.copy(PLACE, name("a"), 600, writer(600), ABOUT):
        cache.check_size(LIMIT, ABOUT)
        with pytest.raises(InputError, match="set cache_gb to"):
            cache.check_size(LIMIT + 1, ABOUT)


_KILLED = """
import sys, time
from pathlib import Path
from pu_kd_pipeline.storage.file_cache import FileCache
cache = FileCache(Path(sys.argv[1]), 1000)
def download(path):
    path.write_bytes(b"x" * 500)
    print("writing", flush=True)
    time.sleep(60)
cache.copy(sys.argv[2], sys.argv[3], 900, download, "s3://bucket/x")
"""


def test_what_a_killed_process_was_writing_is_removed_and_never_used(cache):
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(cache.folder), PLACE, name("a")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    # While it lives, its room is its own.
    cache.make_room(LIMIT)
    assert n_bytes_below(cache.folder) == 500
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    process.stdout.close()

    with cache.copy(PLACE, name("a"), 900, writer(900), ABOUT) as path:
        assert path.read_bytes() == b"x" * 900
        assert n_bytes_below(cache.folder) == 900


def test_locks_are_those_of_nfs_too(cache, monkeypatch):
    flock = file_cache.fcntl.flock

    def flock_of_nfs(file, kind):
        if kind & file_cache.fcntl.LOCK_EX and not file.writable():
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(file, kind)

    monkeypatch.setattr(file_cache.fcntl, "flock", flock_of_nfs)
    abandoned = cache.folder / f"work-{'0' * 32}"
    (abandoned / "x-900").mkdir(parents=True)
    (abandoned / "lock").touch()
    for letter in ("a", "b"):
        cache.copy(PLACE, name(letter), 600, writer(600), ABOUT).close()

    assert {path.name for path in (cache.folder / PLACE).iterdir()} == {name("b")}
    assert not abandoned.exists()


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EACCES])
def test_the_files_of_a_process_whose_lock_cannot_be_asked_stay(cache, monkeypatch, error):
    other = cache.folder / f"work-{'0' * 32}"
    (other / "x-900").mkdir(parents=True)
    (other / "lock").touch()
    flock = file_cache.fcntl.flock

    def refuse(file, kind):
        if file.name == str(other / "lock"):
            raise OSError(error, os.strerror(error))
        flock(file, kind)

    monkeypatch.setattr(file_cache.fcntl, "flock", refuse)
    cache.copy(PLACE, name("a"), 100, writer(100), ABOUT).close()
    cache.make_room(LIMIT)

    assert (other / "x-900").exists()


def test_downloading_again_and_again_is_said_once_with_the_size_that_helps(cache, caplog):
    for _ in range(6):
        for letter in ("a", "b", "c"):
            cache.copy(PLACE, name(letter), 400, writer(400), ABOUT).close()
    warnings = [record.getMessage() for record in caplog.records]

    assert len(warnings) == 1
    assert "too small for the 1.2e-06 GB that this run reads again and again" in warnings[0]
    assert "set cache_gb to 1.32e-06 or more" in warnings[0]


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    cache = FileCache(tmp_path / "file" / "cache", LIMIT)

    with pytest.raises(InputError, match="cannot be made .*: name another folder as `cache`"):
        cache.copy(PLACE, name("a"), 1, writer(1), ABOUT)


def test_files_of_somebody_else_in_the_folder_are_never_removed(cache):
    cache.copy(PLACE, name("a"), 10, writer(10), ABOUT).close()
    others = ["note.txt", "Documents/thesis.odt", "work-of-mine/draft.txt", f"{PLACE}/note.txt"]
    for other in others:
        (cache.folder / other).parent.mkdir(exist_ok=True)
        (cache.folder / other).write_text("mine")

    cache.make_room(LIMIT)

    for other in others:
        assert (cache.folder / other).read_text() == "mine"
    assert not (cache.folder / PLACE / name("a")).exists()
