"""The files of sources, local or remote: finding and reading them, and detecting changes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable
from pu_kd_pipeline.images.sources.base import SourceLostError
from pu_kd_pipeline.storage.digests import files_below, json_digest

READ_THREADS = 8  # opening files waits for the disk or the network
# Several files are in memory at a time; a hundred million pixels seldom need as much.
MAX_FILE_BYTES = 2**28
# What file systems call the time or the checksum of a file.
_REMOTE_MARKS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)


def file_system(path: str) -> tuple[Any, str]:
    """Return the fsspec file system of a local path or URL, and the path in it; opens nothing.

    Raises:
        InputError: the kind of URL is unknown, or the package that reads it is not installed.
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
    """Return whether a path that was found on disk is valid UTF-8."""
    return path == printable(path)


def printable(path: str) -> str:
    """Return a path that was found on disk as valid text: bytes that are not UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def file_state(path: Path, real_root: Path | None = None) -> tuple[str, str]:
    """Return the version of a file, and why it may not be opened or "".

    Args:
        path: the file, or a link.
        real_root: folder that links may not lead out of; None: they may lead anywhere.
    """
    try:
        about = path.stat()
        leads_out = real_root is not None and _leads_out(path, about, real_root)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        if path.is_symlink():
            return "", Reason.LINK
        return "", Reason.NOT_OPENED
    if leads_out:
        return "", Reason.LINK
    # Opening a pipe or a device might wait forever.
    if not stat.S_ISREG(about.st_mode):
        return "", Reason.UNREADABLE
    version = f"{about.st_size}-{about.st_mtime_ns}"
    if about.st_size > MAX_FILE_BYTES:
        return version, Reason.TOO_LARGE
    return version, ""


def _leads_out(path: Path, about: os.stat_result, real_root: Path) -> bool:
    """Return whether a path is a link to a folder, or to a file outside of `real_root`."""
    if not path.is_symlink():
        return False
    return stat.S_ISDIR(about.st_mode) or not path.resolve().is_relative_to(real_root)


def path_state(path: str) -> str:
    """Return a digest of what files are called and when they changed, without reading one.

    Args:
        path: a file, folder or pattern, local or as URL; it need not be there.
    """
    if "://" in path:
        return json_digest(_remote_listing(path))
    local = Path(path)
    if has_wildcard(local.as_posix()):
        pattern = local.relative_to(local.anchor).as_posix()
        files = sorted(Path(local.anchor or ".").glob(pattern))
    else:
        files = list(files_below(local))
    stamps = [_stamp(file) for file in files]
    return json_digest(stamps)


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
    # them; here a source that cannot be reached only has to differ from one that can.
    except Exception as exc:
        return str(type(exc))


def check_folder_exists(folder: str, name: str) -> None:
    """Raise a SourceLostError if a folder is gone or empty: deleted, or no longer mounted."""
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is not None:
                return
    except OSError:
        pass  # the same as an empty folder, which an unmounted disk leaves behind
    raise SourceLostError(lost_source_error(name, "it is gone, or no longer mounted"))


def lost_source_error(name: str, why: object) -> str:
    """Return the message of a SourceLostError."""
    return (
        f"{name} could not be read to its end ({why}). Finished shards are kept: once the source "
        "is whole again, the same command resumes from there"
    )


def remote_version(about: dict[str, Any]) -> str:
    """Return a text that changes with the content of a remote file.

    Args:
        about: what fsspec knows of the file; the keys depend on the file system.
    """
    parts = [str(about.get("size"))]
    for mark in _REMOTE_MARKS:
        if about.get(mark) is not None:
            parts.append(str(about[mark]))
    return "-".join(parts)


def read_file(file: str, root: str) -> bytes | Unusable:
    """Return the content of a local file below `root`, or why it cannot be read.

    Raises:
        SourceLostError: the whole folder is gone.
    """
    try:
        return Path(file).read_bytes()
    except MemoryError:
        return Unusable(Reason.TOO_LARGE)
    except OSError:
        check_folder_exists(root, root)
        return Unusable(Reason.NOT_OPENED)
