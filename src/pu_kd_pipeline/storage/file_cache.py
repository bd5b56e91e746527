"""Copies of remote files on this machine, of a bounded size in total, shared by processes.

Below the folder of a cache:

- `place-*/<mark>-<name>`: copies. `place` stands for the remote folder, `mark` for the content that
  the file had there. They are immutable.
- `work-*`: unfinished files of one process, which holds the lock in the folder while it lives. What
  a killed process leaves there is removed by the next one that needs room.

A copy is locked while it is read, and never removed then. All locks are those of the operating
system, which ends them with their process.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

from pu_kd_pipeline.errors import InputError, UnavailableError

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

_WORK = "work-"
_WORK_NAME = re.compile(r"work-[0-9a-f]{32}")
_PLACE_NAME = re.compile(r"place-[0-9a-f]{32}")
_MARK_LENGTH = 16
_COPY_NAME = re.compile(r"[0-9a-f]{16}-")
# Downloads of one file wait for each other; those of others seldom share its number.
_N_DOWNLOAD_LOCKS = 64
_SECONDS_BETWEEN_TRIES = 0.1
# Who reads a copy needs seconds. What takes longer than this is a process that was stopped.
_LONGEST_WAIT_S = 600.0
# How old the time of last use may get: setting it at each use would cost more than it is worth.
_USE_STEP_NS = 60 * 10**9
GB = 10**9


class Copy:
    """A file on this machine that is not removed before it is closed; a context manager."""

    def __init__(self, path: Path, file: IO[bytes] | None = None) -> None:
        self.path = path
        self._file = file

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Allow the removal."""
        if self._file is not None:
            self._file.close()  # which ends the lock


@dataclass(frozen=True)
class _CachedCopy:
    """A copy in a cache, and what decides when it is removed."""

    path: Path
    n_bytes: int
    used_ns: int


class FileCache:
    """A folder of copies that never takes more space than its limit.

    Args:
        folder: of the cache; it is made when it is first used.
        limit_bytes: for all files in it, copies and unfinished ones. Other processes may use the
            same folder with another limit: each one keeps its own when it adds a file.
    """

    _instances: ClassVar[dict[tuple[str, int], FileCache]] = {}

    @classmethod
    def at(cls, folder: Path, limit_bytes: int) -> FileCache:
        """Return the cache of a folder, one per process."""
        key = (os.path.abspath(folder), limit_bytes)
        return cls._instances.setdefault(key, cls(Path(key[0]), limit_bytes))

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._work: Path | None = None
        self._work_lock: IO[bytes] | None = None
        self._process = 0
        self._thread_lock = threading.Lock()
        # What this process downloaded: path of the copy -> bytes.
        self._downloaded: dict[Path, int] = {}
        self._repeated_bytes = 0
        self._has_warned = False

    def __reduce__(self) -> Any:
        return FileCache.at, (self.folder, self.limit_bytes)

    def copy(
        self, place: str, name: str, n_bytes: int, download: Callable[[Path], None], about: str
    ) -> Copy:
        """Return a copy of a file, which is downloaded unless it is here.

        Args:
            place: of the remote folder.
            name: of the copy.
            n_bytes: size of the file.
            download: writes the file to a path. It raises an error of its own if it cannot.
            about: address of the file, for messages.

        Raises:
            InputError: the file is larger than the cache.
            UnavailableError: other processes need the room, or the download is incomplete.
        """
        path = self.folder / place / name
        with self._download_lock(path):
            found = _locked_copy(path, n_bytes)
            if found is not None:
                return found
            with self.room_for(n_bytes, about) as folder:
                unfinished = folder / "download"
                download(unfinished)
                got_bytes = unfinished.stat().st_size
                if got_bytes != n_bytes:
                    raise UnavailableError(
                        f"{about} has {n_bytes:,} bytes, and {got_bytes:,} arrived: try again"
                    )
                self._count_download(path, n_bytes)
                return self._add(unfinished, path)

    def add(self, unfinished: Path, place: str, name: str) -> None:
        """Keep a file of `room_for` as a copy."""
        self._add(unfinished, self.folder / place / name).close()

    def forget(self, place: str, name: str) -> bool:
        """Remove a copy, unless it is being read, and return whether it is gone."""
        path = self.folder / place / name
        with self._locked():
            return _remove_unused(path)

    @contextmanager
    def room_for(self, n_bytes: int, about: str) -> Iterator[Path]:
        """Yield an empty folder for files of a size, which is removed afterwards.

        Copies that were not used for the longest time are removed for it.

        Args:
            n_bytes: at most, in total.
            about: what needs the room, for messages.

        Raises:
            InputError: it is more than the limit.
            UnavailableError: other processes need the room for too long.
        """
        self.check_size(n_bytes, about)
        folder = self._reserve(n_bytes, about)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def empty_room(self) -> Iterator[Path]:
        """Yield an empty folder for files of unknown size, which is removed afterwards.

        They count as they are written, and no room is made for them: see `make_room`.
        """
        with self._locked():
            folder = self._new_room(0)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def make_room(self, n_bytes: int) -> None:
        """Remove unused copies, so that so many bytes are free if that can be."""
        with self._locked():
            self._make_room(min(n_bytes, self.limit_bytes))

    def check_size(self, n_bytes: int, about: str) -> None:
        """Check that a file is not larger than the cache.

        Raises:
            InputError: it is.
        """
        if n_bytes > self.limit_bytes:
            raise InputError(
                f"{about} has {n_bytes / GB:.3g} GB, and the cache {self.folder} may hold "
                f"{self.limit_bytes / GB:.3g} GB: set cache_gb to {n_bytes / GB * 1.1:.3g} or more"
            )

    def _reserve(self, n_bytes: int, about: str) -> Path:
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while True:
            with self._locked():
                n_free = self._make_room(n_bytes)
                if n_free >= n_bytes:
                    return self._new_room(n_bytes)
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"{about} needs {n_bytes / GB:.3g} GB of the cache {self.folder}, and other "
                    f"processes use all but {n_free / GB:.3g} GB of it since "
                    f"{_LONGEST_WAIT_S / 60:g} minutes: set cache_gb higher, or engine.n_workers "
                    "lower"
                )
            time.sleep(_SECONDS_BETWEEN_TRIES)

    def _new_room(self, n_bytes: int) -> Path:
        """Return a new folder for unfinished files; the lock of the cache is held."""
        # The size is in the name: what is not written yet counts, too.
        folder = self._work_folder() / f"{uuid.uuid4().hex}-{n_bytes}"
        folder.mkdir()
        return folder

    def _make_room(self, n_bytes: int) -> int:
        """Remove unused copies until so many bytes are free, and return how many are."""
        copies, n_unfinished = self._found()
        n_free = self.limit_bytes - n_unfinished - sum(copy.n_bytes for copy in copies)
        for copy in sorted(copies, key=lambda copy: copy.used_ns):
            if n_free >= n_bytes:
                break
            if _remove_unused(copy.path):
                n_free += copy.n_bytes
        return n_free

    def _found(self) -> tuple[list[_CachedCopy], int]:
        """Return the copies, and the bytes of unfinished files."""
        copies: list[_CachedCopy] = []
        n_unfinished = 0
        # Only what a cache can have made: somebody may name a folder with files of his own.
        for folder in os.scandir(self.folder):
            if not folder.is_dir(follow_symlinks=False):
                continue
            if _WORK_NAME.fullmatch(folder.name):
                n_unfinished += self._unfinished_bytes(Path(folder.path))
            elif _PLACE_NAME.fullmatch(folder.name):
                copies += _copies_in(folder.path)
        return copies, n_unfinished

    def _unfinished_bytes(self, work: Path) -> int:
        """Return the bytes of a process's unfinished files; remove those of one that ended."""
        if work != self._work and _is_abandoned(work):
            shutil.rmtree(work, ignore_errors=True)
            return 0
        total = 0
        # Its process may remove or rename anything in the meantime.
        with suppress(FileNotFoundError):
            for folder in list(work.iterdir()):
                _, _, reserved = folder.name.partition("-")
                if reserved.isdigit():  # and not the lock
                    total += max(int(reserved), _bytes_in(folder))
        return total

    def _work_folder(self) -> Path:
        """Return this process's folder of unfinished files; the lock of the cache is held."""
        if self._work is None or self._process != os.getpid() or not self._work.is_dir():
            work = self.folder / f"{_WORK}{uuid.uuid4().hex}"
            work.mkdir()
            lock = open(work / "lock", "wb")  # noqa: SIM115  (open while the process lives)
            _lock(lock, exclusive=True)
            self._work = work
            self._work_lock = lock
            self._process = os.getpid()
        return self._work

    def _add(self, unfinished: Path, path: Path) -> Copy:
        # Open and locked before others see it.
        file = open(unfinished, "rb")  # noqa: SIM115  (closed by the copy)
        _lock(file, exclusive=False)
        path.parent.mkdir(exist_ok=True)
        os.replace(unfinished, path)
        return Copy(path, file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock for making room, for moments only."""
        self._make_folder()
        with self._thread_lock, open(self.folder / ".lock", "ab") as file:
            _lock(file, exclusive=True)
            yield

    @contextmanager
    def _download_lock(self, path: Path) -> Iterator[None]:
        self._make_folder()
        number = zlib.crc32(str(path).encode()) % _N_DOWNLOAD_LOCKS
        folder = self.folder / ".downloads"
        folder.mkdir(exist_ok=True)
        with open(folder / f"{number:02d}", "ab") as file:
            _lock(file, exclusive=True)
            yield

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise InputError(
                f"the cache {self.folder} cannot be made ({exc.strerror}): name another folder "
                "as `cache` in the catalog entry"
            ) from exc

    def _count_download(self, path: Path, n_bytes: int) -> None:
        """Warn once if files are downloaded again and again because they do not fit together."""
        if path in self._downloaded:
            self._repeated_bytes += n_bytes
        self._downloaded[path] = n_bytes
        needed_bytes = sum(self._downloaded.values())
        is_too_small = needed_bytes > self.limit_bytes
        if is_too_small and self._repeated_bytes > self.limit_bytes and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%.3g GB were downloaded a second time, because the cache %s is too small for the "
                "%.3g GB that this run reads again and again: set cache_gb to %.3g or more",
                self._repeated_bytes / GB,
                self.folder,
                needed_bytes / GB,
                needed_bytes / GB * 1.1,
            )


def place_name(digest: str) -> str:
    """Return the name of the folder of copies of a remote folder."""
    return f"place-{digest}"


def copy_name(mark: str, name: str) -> str:
    """Return the name of the copy of a file.

    Args:
        mark: hexadecimal digits that stand for the content.
        name: of the file.
    """
    return f"{mark[:_MARK_LENGTH]}-{name}"


def _copies_in(folder: str) -> list[_CachedCopy]:
    copies = []
    for file in os.scandir(folder):
        if _COPY_NAME.match(file.name) and file.is_file(follow_symlinks=False):
            about = file.stat(follow_symlinks=False)
            copies.append(_CachedCopy(Path(file.path), about.st_size, about.st_atime_ns))
    return copies


def _locked_copy(path: Path, n_bytes: int) -> Copy | None:
    """Return a copy that is here and has the right size."""
    try:
        file = open(path, "rb")  # noqa: SIM115  (closed by the copy)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            raise
        return None
    _lock(file, exclusive=False)
    about = os.fstat(file.fileno())
    # Without a link it was removed just before it was locked.
    if about.st_nlink == 0 or about.st_size != n_bytes:
        file.close()
        return None
    now_ns = time.time_ns()
    if now_ns - about.st_atime_ns > _USE_STEP_NS:
        with suppress(OSError):
            os.utime(path, ns=(now_ns, about.st_mtime_ns))
    return Copy(path, file)


def _remove_unused(path: Path) -> bool:
    """Remove a copy that nobody reads, and return whether it is gone."""
    try:
        # Open for writing, as NFS asks for where a lock is exclusive.
        with open(path, "rb+") as file:
            if not _lock(file, exclusive=True, waits=False):
                return False
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except PermissionError:  # of another user, or open on Windows
        return False
    return True


def _bytes_in(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError):
        for file in list(folder.iterdir()):
            with suppress(FileNotFoundError):
                total += file.stat().st_size
    return total


def _is_abandoned(work: Path) -> bool:
    """Return whether the process of a folder of unfinished files has ended."""
    if sys.platform == "win32":  # which has no locks to ask
        return False
    try:
        # Open for writing, as NFS asks for where a lock is exclusive.
        with open(work / "lock", "rb+") as file:
            return _lock(file, exclusive=True, waits=False)
    except FileNotFoundError:
        return True
    # Of another user, or it cannot be locked: its process may live.
    except (PermissionError, InputError):
        return False


def _lock(file: IO[bytes], *, exclusive: bool, waits: bool = True) -> bool:
    """Lock an open file and return whether that succeeded; on systems without locks, do nothing."""
    if sys.platform == "win32":
        return True
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    if not waits:
        kind |= fcntl.LOCK_NB
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError as exc:  # such as on some network file systems
        raise InputError(
            f"{file.name} cannot be locked ({exc.strerror}): name a folder on a disk of this "
            "machine as `cache` in the catalog entry"
        ) from exc
    return True
