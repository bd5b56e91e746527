"""Files of sources: local or remote, and still the ones that were listed."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable
from pu_kd_pipeline.images.sources.base import SourceLostError
from pu_kd_pipeline.storage.digests import digest_of, files_below

READ_THREADS = 8  # opening files waits for the disk or the network
MAX_FILE_BYTES = (
    2**28
)  # several files are held at a time; a hundred million pixels seldom need as much


def file_system(path: str) -> tuple[Any, str]:
    """Return the fsspec file system of a local path or URL, and the path in it; nothing is opened yet.

    Raises:
        InputError: there is no such kind of URL, or the package that reads it is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        found: tuple[Any, str] = url_to_fs(path)
    except ImportError as exc:
        raise InputError(
            f"{path} cannot be read yet: {exc}, with pip in the environment of this project"
        ) from exc
    except ValueError as exc:
        raise InputError(f"{path} cannot be read ({exc}): correct `path` of the source") from exc
    return found


def is_printable(path: str) -> bool:
    return path == printable(path)


def printable(path: str) -> str:
    """Return a path that was found on disk as text that any file can hold: bytes that are not UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def file_state(path: Path, real_root: Path | None = None) -> tuple[str, str]:
    """Return the version of a file, and why it may not be opened: it leads out of `real_root`, is no plain file, …"""
    try:
        about = path.stat()
        leads_out = (
            real_root is not None
            and path.is_symlink()
            and (stat.S_ISDIR(about.st_mode) or not path.resolve().is_relative_to(real_root))
        )
    except (
        OSError,
        RuntimeError,
    ):  # a link to nothing or in a circle, a file that is gone or out of reach
        return "", Reason.LINK if path.is_symlink() else Reason.NOT_OPENED
    if leads_out:
        return "", Reason.LINK
    if not stat.S_ISREG(about.st_mode):
        return "", Reason.UNREADABLE
    return (
        f"{about.st_size}-{about.st_mtime_ns}",
        Reason.TOO_LARGE if about.st_size > MAX_FILE_BYTES else "",
    )


def path_state(path: str) -> str:
    """Return a digest of what files are called and when they changed, without reading one.

    Args:
        path: a file, folder or pattern, local or as URL; it need not be there.
    """
    if "://" in path:
        return digest_of(_remote_listing(path))
    local = Path(path)
    if has_wildcard(local.as_posix()):
        pattern = local.relative_to(local.anchor).as_posix()
        files = sorted(Path(local.anchor or ".").glob(pattern))
    else:
        files = list(files_below(local))
    return digest_of([_stamp(file) for file in files])


def has_wildcard(path: str) -> bool:
    """Return whether a path is a pattern for many files."""
    return any(mark in path for mark in "*?[")


def _stamp(file: Path) -> list[Any]:
    name = os.fsencode(file).hex()  # a name may hold bytes that are not text
    try:
        about = file.stat()
    except OSError:  # such as a link that leads nowhere
        return [name]
    return [name, about.st_size, about.st_mtime_ns]


def _remote_listing(path: str) -> Any:
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(path)
        if has_wildcard(root):
            return system.glob(root, detail=True)
        return system.find(root, detail=True) or system.info(root)
    # Each kind of remote file system has errors of its own. The stage that reads the images reports
    # them in a sentence; here a source that cannot be reached only has to differ from one that can.
    except Exception as exc:
        return str(type(exc))


def check_file_unchanged(folder: str, name: str) -> None:
    """Raise a SourceLostError where a folder is gone or empty: deleted, or no longer mounted."""
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is not None:
                return
    except OSError:
        pass
    raise SourceLostError(lost_source_error(name, "it is gone, or no longer mounted"))


def lost_source_error(name: str, why: object) -> str:
    return (
        f"{name} could not be read to its end ({why}). Finished shards are kept: once the source is whole again, the "
        "same command goes on from there"
    )


def remote_version(about: dict[str, Any]) -> str:
    """Return what a file system knows of a file that changes with its content."""
    marks = (
        "ETag",
        "etag",
        "md5Hash",
        "content_md5",
        "LastModified",
        "last_modified",
        "mtime",
        "created",
    )
    return "-".join(
        [
            str(about.get("size")),
            *(str(about[mark]) for mark in marks if about.get(mark) is not None),
        ]
    )


def read_file(file: str, root: str) -> bytes | Unusable:
    try:
        return Path(file).read_bytes()
    except MemoryError:
        return Unusable(Reason.TOO_LARGE)
    except OSError:
        check_file_unchanged(root, root)
        return Unusable(Reason.NOT_OPENED)
