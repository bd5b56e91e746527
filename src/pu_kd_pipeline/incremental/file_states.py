"""Digests of files' contents, remembered while size, times and inode stay as they were."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pu_kd_pipeline.storage.atomic import remove_leftovers, replacing_file
from pu_kd_pipeline.storage.digests import DIGEST_BYTES

_TOO_YOUNG_NS = 20_000_000  # a file of this age may change again without its time changing: clocks of files are coarse


class FileStates:
    """The content digest of any file, read again only where the file system says that it was touched.

    Args:
        cache_file: where digests are remembered between runs; it may be deleted at any time.
    """

    def __init__(self, cache_file: Path) -> None:
        self._cache_file = cache_file
        self._is_changed = False
        self._known: dict[str, list[str]] = {}
        with suppress(OSError, ValueError):
            known = json.loads(cache_file.read_text(encoding="utf-8"))
            self._known = known if isinstance(known, dict) else {}

    def digest(self, file: Path) -> str:
        """Return the digest of a file's content.

        Raises:
            OSError: it cannot be read.
        """
        about = file.stat()
        if (age := time.time_ns() - max(about.st_mtime_ns, about.st_ctime_ns)) < _TOO_YOUNG_NS:
            time.sleep(max(0.0, (_TOO_YOUNG_NS - max(age, 0)) / 1e9))
        signature = f"{about.st_size}-{about.st_mtime_ns}-{about.st_ctime_ns}-{about.st_ino}"
        known = self._known.get(str(file))
        if not (isinstance(known, list) and len(known) == 2 and known[0] == signature):
            with file.open("rb") as opened:
                digest = hashlib.file_digest(
                    opened, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)
                )
            known = self._known[str(file)] = [signature, digest.hexdigest()]
            self._is_changed = True
        return known[1]

    def digests(self, place: Path, files: Iterable[Path]) -> dict[str, str]:
        """Return path below `place` ("" for itself) -> digest, of the files that are there."""
        found = {}
        for file in files:
            with suppress(FileNotFoundError):
                found["" if file == place else file.relative_to(place).as_posix()] = self.digest(
                    file
                )
        return found

    def save(self) -> None:
        """Keep what was learned for the next run, unless the disk is full or another run does so at this moment."""
        if self._is_changed:
            remove_leftovers(self._cache_file.parent, self._cache_file.name)
            with suppress(OSError), replacing_file(self._cache_file) as temporary:
                temporary.write_text(json.dumps(self._known), encoding="utf-8")
            self._is_changed = False


def safe_name(name: str) -> str:
    """Return a name that is a file name everywhere."""
    return re.sub(r"[^\w.-]", "_", name)
