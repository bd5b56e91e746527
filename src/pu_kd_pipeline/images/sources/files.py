"""The files of sources, local or remote: finding and reading them, and detecting changes."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable
from pu_kd_pipeline.images.sources.base import SourceLostError
from pu_kd_pipeline.masking import without_credentials
from pu_kd_pipeline.params.paths import is_url, resolved_location
from pu_kd_pipeline.storage.digests import json_digest

READ_THREADS = 8  # opening files waits for the disk or the network
# Several files are in memory at a time; a hundred million pixels seldom need as much.
MAX_FILE_BYTES = 2**28
# What file systems call the time or the checksum of a file, in lower case and without signs
_REMOTE_MARKS = frozenset(
    [
        *("etag", "md5", "md5hash", "contentmd5", "crc", "crc32c", "sha", "sha256", "digest"),
        *("blobid", "xethash", "generation", "versionid"),
        *("created", "datetime", "lastmodified", "lastwritetime", "modified", "modify", "mtime"),
        "updated",
    ]
)
_SERVER_FAILED = 500  # and above: status of HTTP
# The clock of a file system advances in steps. Two changes within one of them have the same time.
_CLOCK_STEP_NS = 50 * 10**6
_COARSE_CLOCK_STEP_NS = 2 * 10**9
_WHOLE_SECOND_NS = 10**9
# As shells and WebDataset write them
_BRACES = re.compile(r"\{(?:(?P<first>\d{1,9})\.\.(?P<last>\d{1,9})|(?P<names>[^{}]*,[^{}]*))\}")
_MAX_EXPANDED = 100_000


class SourceFile(NamedTuple):
    """A file that a source consists of.

    Attributes:
        path: below the folder of the source, with slashes; or the whole path.
        version: changes whenever the file may have; empty if it cannot be known.
        fault: why it cannot be used, or "".
    """

    path: str
    version: str
    fault: str


def file_system(path: str) -> tuple[Any, str]:
    """Return the fsspec file system of a local path or URL, and the path in it; opens nothing.

    Raises:
        InputError: the kind of URL is unknown, or the package that reads it is not installed.
    """
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    location = resolved_location(path)
    if not is_url(path):
        return LocalFileSystem(), location
    try:
        system, root = url_to_fs(location)
    except ImportError as exc:
        cause = without_credentials(str(exc), path)
        raise InputError(
            f"{path} cannot be read yet: {cause}, with pip in the environment of this project"
        ) from exc
    except Exception as exc:  # each kind of file system raises errors of its own
        cause = without_credentials(str(exc), path)
        fix = "correct `path` of the source"
        if isinstance(exc, OSError):  # it was reached for
            fix = "check the address, the network and your credentials"
        raise InputError(f"{path} cannot be read ({cause}): {fix}") from exc
    # fsspec shares file systems within a process, with what they listed before.
    system.invalidate_cache()
    return system, str(root)


def is_local(system: Any) -> bool:
    """Return whether a file system of fsspec is that of this machine."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(system, LocalFileSystem)


def joined(root: str, path: str) -> str:
    """Return the address of a file below the root of a remote file system."""
    # The root of an archive is empty, and the names in it have no slash in front of them.
    if not root:
        return path
    return f"{root.rstrip('/')}/{path}"


def is_printable(path: str) -> bool:
    """Return whether a path that was found on disk is valid UTF-8."""
    return path == printable(path)


def printable(path: str) -> str:
    """Return a path that was found on disk as valid text: bytes that are not UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# --- whether files have changed -------------------------------------------------------------------


def file_state(path: str | Path, real_root: str | None = None) -> tuple[str, str]:
    """Return the version of a local file, and why it may not be opened or "".

    The version holds size, time of modification and time of change. The latter is set by the
    kernel alone: it differs for a file that was replaced by one of the same size and time, as `cp
    -p`, rsync and tar do.

    Args:
        path: the file, or a link.
        real_root: folder without links in its path, which links may not lead out of; None: they may
            lead anywhere.
    """
    try:
        about = os.lstat(path)
        is_link = stat.S_ISLNK(about.st_mode)
        link_version = ""
        if is_link:
            # A link that was switched to another file is another link.
            link_version = f"-{about.st_ctime_ns}"
            about = os.stat(path)
    except OSError as exc:
        if os.path.islink(path) and leads_nowhere(exc):
            return "", Reason.BROKEN_LINK
        return "", Reason.NOT_OPENED
    if is_link and real_root is not None and _leads_out(path, about, real_root):
        return "", Reason.LINK
    # Opening a pipe or a device might wait forever.
    if not stat.S_ISREG(about.st_mode):
        return "", Reason.UNREADABLE
    try:
        about = _settled(path, about)
    except OSError:
        return "", Reason.NOT_OPENED

    version = f"{about.st_size}-{about.st_mtime_ns}-{about.st_ctime_ns}{link_version}"
    if about.st_size > MAX_FILE_BYTES:
        return version, Reason.TOO_LARGE
    return version, ""


def leads_nowhere(error: OSError) -> bool:
    """Return whether the error of a link means that there is nothing behind it, or a circle."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def _leads_out(path: str | Path, about: os.stat_result, real_root: str) -> bool:
    """Return whether a link leads to a folder, or to a file outside of `real_root`."""
    if stat.S_ISDIR(about.st_mode):
        return True
    real_path = os.path.realpath(path)
    return os.path.commonpath([real_path, real_root]) != real_root


def _settled(path: str | Path, about: os.stat_result) -> os.stat_result:
    """Return what a file is like once any further change gives it another time.

    A file that was changed just now may change again within the same step of the clock, which
    would not show later.
    """
    step_ns = _CLOCK_STEP_NS
    if about.st_ctime_ns % _WHOLE_SECOND_NS == 0:
        step_ns = _COARSE_CLOCK_STEP_NS
    age_ns = time.time_ns() - about.st_ctime_ns
    # A time in the future is that of another machine's clock.
    if not 0 <= age_ns < step_ns:
        return about
    time.sleep((step_ns - age_ns) / _WHOLE_SECOND_NS)
    return os.stat(path)


def remote_version(about: dict[str, Any]) -> str:
    """Return a text that changes with the content of a remote file.

    Args:
        about: what fsspec knows of the file; the keys depend on the file system.
    """
    parts = [str(about.get("size"))]
    for key, value in about.items():
        if value is not None and _is_mark(key):
            parts.append(str(value))
    return "-".join(parts)


def remote_info(system: Any, location: str) -> dict[str, Any] | None:
    """Return what a remote file system knows of a file or folder; None if there is none.

    Raises:
        Exception: of any kind: the server cannot be reached, or fails.
    """
    try:
        about: dict[str, Any] = system.info(location)
    except FileNotFoundError as exc:
        # fsspec raises this for whatever goes wrong over HTTP.
        cause = exc.__cause__
        if cause is not None and _is_failure_of_server(cause):
            raise cause from None
        return None
    return about


def _is_failure_of_server(error: BaseException) -> bool:
    """Return whether the cause of a missing file is that the server was not reached, or failed."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status >= _SERVER_FAILED
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def with_marks(system: Any, location: str, about: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of a remote file, with its time or checksum if the server has one.

    Args:
        system: file system of fsspec.
        location: of the file.
        about: what a listing of its folder says. Over HTTP that is only the name, and the file
            itself is asked for.
    """
    if has_mark(about):
        return about
    return remote_info(system, location) or about


def is_remote_folder(system: Any, path: str, extensions: tuple[str, ...]) -> bool:
    """Return whether a remote path is a folder, without reading a file to find out.

    Args:
        system: file system of fsspec.
        path: of a file or folder.
        extensions: in lower case, of files. Old versions of fsspec read a file over HTTP as a whole
            to answer `isdir`.
    """
    address, _, _ = path.partition("?")
    if not address.lower().endswith(extensions):
        return bool(system.isdir(path))
    about = remote_info(system, path)
    return about is not None and about.get("type") == "directory"


def has_mark(about: dict[str, Any]) -> bool:
    """Return whether a remote file has a time or checksum: else only its size tells of changes."""
    return any(value is not None and _is_mark(key) for key, value in about.items())


def _is_mark(key: str) -> bool:
    plain = key.lower().replace("-", "").replace("_", "")
    return plain in _REMOTE_MARKS


def unmarked_warning(path: str, n_unmarked: int, n_files: int) -> str:
    """Return the warning about remote files without a time or checksum."""
    return (
        f"{without_credentials(path)}: the server gives neither time nor checksum of "
        f"{n_unmarked:,} of {n_files:,} files, so that a change may go unnoticed, at least if the "
        "size stays the same: run with --force after a change"
    )


def state_of(find: Callable[[], Iterable[SourceFile]]) -> str:
    """Return a digest of the files that a function lists; of its error if it raises one.

    Each kind of remote file system has errors of its own. The stage that reads the images reports
    them; here a source that cannot be read only has to differ from one that can.
    """
    found: list[Any] = []
    try:
        for file in find():
            path = file.path
            if "://" in path:
                path = without_credentials(path)
            raw_path = os.fsencode(path)  # it need not be text
            found.append([raw_path.hex(), file.version, file.fault])
    except Exception as exc:
        return json_digest(type(exc).__name__)
    return json_digest(found)


def tree(root: Path) -> Iterator[SourceFile]:
    """Yield all files below a folder in order, also hidden ones and those that links lead to."""
    visited: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real_folder = os.path.realpath(folder)
        if real_folder in visited:  # links in a circle
            subfolders.clear()
            continue
        visited.add(real_folder)
        subfolders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            version, fault = file_state(path)
            yield SourceFile(os.path.relpath(path, root), version, fault)


# --- patterns -------------------------------------------------------------------------------------


def has_wildcard(path: str) -> bool:
    """Return whether a path is a pattern for many files."""
    return any(mark in path for mark in "*?[")


def expanded_ranges(path: str) -> list[str]:
    """Return the paths that `{000..127}` and `{train,val}` in a path stand for, in order.

    A number has as many digits as the longer end of its range. A file or folder that is called like
    a pattern is taken as it is.

    Raises:
        InputError: there are too many.
    """
    if os.path.lexists(path):
        return [path]
    paths = [""]
    end = 0
    for match in _BRACES.finditer(path):
        plain = path[end : match.start()]
        parts = _parts_of_range(match)
        if len(paths) * len(parts) > _MAX_EXPANDED:
            raise InputError(
                f"{path} stands for more than {_MAX_EXPANDED:,} files: use a smaller range, or `*`"
            )
        paths = [f"{path_so_far}{plain}{part}" for path_so_far in paths for part in parts]
        end = match.end()
    return [f"{path_so_far}{path[end:]}" for path_so_far in paths]


def _parts_of_range(match: re.Match[str]) -> list[str]:
    first = match["first"]
    if first is None:
        return match["names"].split(",")
    last = match["last"]
    n_digits = max(len(first), len(last))
    lower, upper = sorted([int(first), int(last)])
    if upper - lower >= _MAX_EXPANDED:
        upper = lower + _MAX_EXPANDED
    is_padded = first.startswith("0") or last.startswith("0")
    numbers = []
    for number in range(lower, upper + 1):
        text = str(number)
        if is_padded:
            text = text.zfill(n_digits)
        numbers.append(text)
    return numbers


def local_matches(path: str) -> list[str]:
    """Return what a local path or pattern stands for, in order: one path, or all that match.

    `**` stands for any folders, links to folders are followed by `*` but not by `**`, and hidden
    files match only a pattern that begins with a dot. Folders that are called like a pattern, such
    as `run[1]`, are taken as they are.
    """
    if not has_wildcard(path) or os.path.lexists(path):
        return [path]
    literal = literal_part(path)
    parts = list(Path(path).relative_to(literal).parts)
    matches = _matches([literal], parts)
    return sorted(set(matches))


def remote_literal_part(path: str) -> str:
    """Return the folders in front of the first wildcard of a remote path."""
    literal = []
    for part in path.split("/"):
        if has_wildcard(part):
            break
        literal.append(part)
    return "/".join(literal)


def is_hidden(path: str, pattern: str) -> bool:
    """Return whether a remote file, or a folder above it, is hidden and not asked for.

    fsspec's patterns match names that begin with a dot, which those of shells do not.

    Args:
        path: of the file.
        pattern: that it matches. Folders in front of its first wildcard do not count, nor do names
            that match a part of it that begins with a dot.
    """
    asked_for = [part for part in pattern.split("/") if part.startswith(".")]
    below = path.removeprefix(remote_literal_part(pattern))
    for part in below.split("/"):
        # "." begins the names in an archive of `tar cf x.tar .`
        if not part.startswith(".") or part == ".":
            continue
        if not any(fnmatch.fnmatchcase(part, name) for name in asked_for):
            return True
    return False


def literal_part(path: str) -> str:
    """Return the folders at the beginning of a local path or pattern that exist."""
    real = Path(path)
    literal = Path(real.anchor)
    for part in real.relative_to(literal).parts:
        if not os.path.lexists(literal / part):
            break
        literal /= part
    return str(literal)


def _matches(folders: Iterable[str], parts: list[str]) -> Iterator[str]:
    """Yield what matches the parts of a pattern below some folders."""
    if not parts:
        yield from folders
        return
    first, *others = parts
    for folder in folders:
        if first == "**":
            below = _folders_below(folder)
            yield from _matches(below, others or ["*"])
        else:
            escaped = glob.escape(folder)
            found = glob.glob(os.path.join(escaped, first))
            yield from _matches(found, others)


def _folders_below(folder: str) -> Iterator[str]:
    """Yield a folder and those below it, without hidden ones and links."""
    for path, subfolders, _ in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield path


# --- reading --------------------------------------------------------------------------------------


def check_folder_exists(folder: str, name: str) -> None:
    """Raise a SourceLostError if a folder is gone or empty: deleted, or no longer mounted."""
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is not None:
                return
    except OSError:
        pass  # the same as an empty folder, which an unmounted disk leaves behind
    raise SourceLostError(lost_source_error(name, "it is gone, or no longer mounted"))


def check_version(file: str, version: str) -> None:
    """Check that a local file is the one that was listed; a missing one is left to who reads it.

    Between listing and reading it may have been replaced, and another machine may have another file
    at its path.

    Raises:
        SourceLostError: it is not.
    """
    found, _ = file_state(file)
    if found not in ("", version):
        raise SourceLostError(lost_source_error(file, "it is not the file that was listed"))


def lost_source_error(name: str, why: object) -> str:
    """Return the message of a SourceLostError."""
    return (
        f"{name} could not be read to its end ({why}). Finished shards are kept: once the source "
        "is whole again, the same command resumes from there"
    )


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
