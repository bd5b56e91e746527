"""Digests of files' contents, remembered while size, times and inode stay as they were."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from pu_kd_pipeline.incremental.checked_files import read_checked, write_checked
from pu_kd_pipeline.storage.atomic import remove_leftovers
from pu_kd_pipeline.storage.digests import DIGEST_BYTES

# File systems count time in coarse steps: a file may change again within one, with the same time.
_CLOCK_STEP_NS = 20_000_000


class FileStates:
    """The content digest of any file, computed again only if the file system says that it changed.

    Args:
        cache_file: where digests are remembered between runs; it may be deleted at any time.
        is_read_only: write nothing.
    """

    def __init__(self, cache_file: Path, *, is_read_only: bool = False) -> None:
        self._cache_file = cache_file
        self._is_read_only = is_read_only
        self._is_changed = False
        self._known: dict[str, list[str]] = {}  # path -> [signature, digest]
        # Without the cache, or with a damaged one, every digest is computed again.
        known = read_checked(cache_file)
        if isinstance(known, dict):
            self._known = known

    def digest(self, file: Path) -> str:
        """Return the digest of a file's content.

        Raises:
            OSError: it cannot be read.
        """
        about = file.stat()
        _wait_until_settled(about)
        signature = f"{about.st_size}-{about.st_mtime_ns}-{about.st_ctime_ns}-{about.st_ino}"

        path = str(file)
        known = self._known.get(path)
        if isinstance(known, list) and len(known) == 2 and known[0] == signature:
            return known[1]

        digest = _digest_of_content(file)
        self._known[path] = [signature, digest]
        self._is_changed = True
        return digest

    def digests(self, place: Path, files: Iterable[Path]) -> dict[str, str]:
        """Return path -> digest, of those files that exist; an error if one cannot be read.

        Args:
            place: a file, or the folder that paths are relative to; a file's own path is "".
            files: the file itself, or files in the folder.
        """
        found = {}
        for file in files:
            path = ""
            if file != place:
                path = file.relative_to(place).as_posix()
            try:
                found[path] = self.digest(file)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as exc:
                found[path] = f"cannot be read: {exc.strerror}"
        return found

    def save(self) -> None:
        """Remember what was computed for the next run, if the disk has room.

        Another run may save at the same moment: one of the two files stays, and both are right.
        """
        if not self._is_changed or self._is_read_only:
            return
        file = self._cache_file
        remove_leftovers(file.parent, file.name)
        with suppress(OSError):
            write_checked(file, self._known)
        self._is_changed = False


def _wait_until_settled(about: os.stat_result) -> None:
    """Wait until a change of the file would change its times, too."""
    changed_ns = max(about.st_mtime_ns, about.st_ctime_ns)
    age_ns = time.time_ns() - changed_ns
    if age_ns >= _CLOCK_STEP_NS:
        return
    age_ns = max(age_ns, 0)  # negative: a time in the future
    remaining_ns = _CLOCK_STEP_NS - age_ns
    time.sleep(remaining_ns / 1e9)


def _digest_of_content(file: Path) -> str:
    new_digest = partial(hashlib.blake2b, digest_size=DIGEST_BYTES)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, new_digest)
    return digest.hexdigest()


def safe_name(name: str) -> str:
    """Return a name that is a valid file name on every system."""
    return re.sub(r"[^\w.-]", "_", name)
