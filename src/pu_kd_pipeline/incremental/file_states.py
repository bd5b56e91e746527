"""Digests of files' contents, remembered while size, times and inode stay as they were, and of what is outside."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.storage.atomic import remove_leftovers, replacing_file

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import ImageSource

_DIGEST_BYTES = 16
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
                    opened, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)
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


def files_below(place: Path) -> Iterator[Path]:
    """Yield a file itself, or the files below a folder in order; hidden ones are somebody's temporary files."""
    if place.is_file():
        yield place
    elif place.is_dir():
        for folder, subfolders, names in os.walk(place):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def safe_name(name: str) -> str:
    """Return a name that is a file name everywhere."""
    return re.sub(r"[^\w.-]", "_", name)


def digest_of(value: Any) -> str:
    """Return a digest of what JSON can write."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES
    ).hexdigest()


# --- what is outside of the catalog -----------------------------------------------------------------------------------


def source_state(source: ImageSource) -> str:
    """Return a digest of what a source's files are called and when they were changed; no image is read.

    Embedded images are code. Data sets of torchvision are looked for where it keeps them.
    """
    if source.type == "demo":
        return ""
    if "://" in (source.path or ""):
        return digest_of(_remote_state(str(source.path)))
    path = Path(source.path or source.options.get("root") or "data/01_raw")
    if any(mark in path.as_posix() for mark in "*?["):
        files = sorted(Path(path.anchor or ".").glob(path.relative_to(path.anchor).as_posix()))
    else:
        files = list(files_below(path))
    return digest_of([_stamp(file) for file in files])


def _stamp(file: Path) -> list[Any]:
    try:
        about = file.stat()
    except OSError:  # such as a link that leads nowhere
        return [os.fsencode(file).hex()]
    return [os.fsencode(file).hex(), about.st_size, about.st_mtime_ns]


def _remote_state(path: str) -> Any:
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(path)
        if any(mark in root for mark in "*?["):
            return system.glob(root, detail=True)
        return system.find(root, detail=True) or system.info(root)
    except (
        Exception
    ) as exc:  # each kind of remote file system has errors of its own; the stage will tell
        return str(type(exc))
