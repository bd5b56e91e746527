"""A folder on an object store, reached through fsspec: see `folders.RemoteFolder`.

Stores fail now and then. The libraries of most of them try again by themselves; what still fails is
tried again here, a few times, and then it is one message with the address.
"""

from __future__ import annotations

import errno
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from pu_kd_pipeline.errors import InputError, UnavailableError, first_line
from pu_kd_pipeline.masking import MASK, is_secret_option, without_credentials
from pu_kd_pipeline.storage.digests import json_digest
from pu_kd_pipeline.storage.file_cache import Copy, FileCache, copy_name, place_name
from pu_kd_pipeline.storage.folders import RemoteFile

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Stores that show a file only when it is complete: a killed upload leaves nothing under its name.
# `memory` is that of one process, for tests.
WHOLE_FILE_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
SECONDS_BETWEEN_ATTEMPTS = (2.0, 10.0)
_MAX_VERSIONS = 3  # of a file that is replaced while it is read
# What stores call a checksum of the content, the best one first, and what they call a time
_CHECKSUMS = ("md5Hash", "content_md5", "ETag", "etag")
_TIMES = ("LastModified", "last_modified", "updated", "created", "mtime")
# What is wrong with the request, and not with the store
_FINAL_ERRNOS = (errno.EINVAL, errno.EPERM, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT)
_FINAL_ERRORS = (
    *(FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError),
    *(InputError, ValueError, TypeError, ImportError, NotImplementedError),
)
_HOW_TO_FIX = "check the address, and the credentials of the catalog entry"


class ObjectFolder:
    """A folder on an object store.

    Args:
        protocol: name of the file system, such as `s3`.
        path: of the folder in it.
        options: arguments of the file system, such as credentials.
        cache: of copies.

    Raises:
        InputError: files may be incomplete on this file system, or its package is not installed.
    """

    def __init__(
        self, protocol: str, path: str, options: Mapping[str, Any], cache: FileCache
    ) -> None:
        self._protocol = protocol
        self._path = path.rstrip("/")
        self._options = dict(options)
        self._cache = cache
        # What was last seen of files: name -> file.
        self._known: dict[str, RemoteFile] = {}
        if protocol not in WHOLE_FILE_STORES:
            listed = ", ".join(f"{each}://" for each in WHOLE_FILE_STORES[:-1])
            raise InputError(
                f"{self} may show files that are incomplete: keep shards on this machine, or on "
                f"one of {listed}"
            )
        # Each listing is a new one, and so no list needs to be kept.
        arguments = {"use_listings_cache": False, **self._options}
        try:
            self._fs = fsspec.filesystem(protocol, **arguments)
        except ImportError as exc:
            raise InputError(
                f"{protocol}:// cannot be used yet: {exc}, with pip in the environment of this "
                "project"
            ) from exc
        # Another server with the same bucket is another place; another password is none.
        about = [protocol, self._path, _without_secrets(self._options)]
        self._place = place_name(json_digest(about))

    def __reduce__(self) -> Any:
        return ObjectFolder, (self._protocol, self._path, self._options, self._cache)

    def __str__(self) -> str:
        return without_credentials(f"{self._protocol}://{self._path.lstrip('/')}")

    __repr__ = __str__

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self._path.rpartition("/")[2]

    @property
    def cache_bytes(self) -> int:
        """How many bytes all copies may have."""
        return self._cache.limit_bytes

    def address(self, name: str) -> str:
        """Return the address of a file, for messages."""
        return f"{self}/{name}"

    def files(self) -> dict[str, RemoteFile]:
        """Return name -> file, by one listing; without hidden files and folders below it."""
        found = {}
        for about in self._attempt(self._list, str(self), "listed"):
            name = str(about["name"]).rstrip("/").rpartition("/")[2]
            is_file = about.get("type") == "file"
            if is_file and name and not name.startswith("."):
                found[name] = _remote_file(about)
        self._known = dict(found)
        return found

    def read_text(self, name: str) -> str:
        """Return the text of a file as it is now; raise FileNotFoundError if there is none."""

        def read() -> bytes:
            content: bytes = self._fs.cat_file(self._file(name))
            return content

        return self._attempt(read, self.address(name), "read").decode()

    def write_text(self, name: str, text: str) -> None:
        """Write a small file."""
        self._write_bytes(name, text.encode())

    def exists(self, name: str) -> bool:
        """Return whether there is a file now."""
        try:
            self._look_up(name)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def copy(self, name: str) -> Iterator[Path]:
        """Yield the path of a copy, which stays on this machine meanwhile.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it is larger than the cache, or may not be read.
            UnavailableError: the store fails, or other processes need the cache.
        """
        with self._copy(name) as path:
            yield path

    def _copy(self, name: str) -> Copy:
        file = self._known.get(name)
        if file is None:
            file = self._look_up(name)
        for _ in range(_MAX_VERSIONS):
            try:
                copy = self._copy_of(name, file)
            except _ReplacedError:
                file = self._look_up(name)
            else:
                return copy
        raise UnavailableError(
            f"{self.address(name)} changes while it is read: another run seems to write it"
        )

    def _copy_of(self, name: str, file: RemoteFile) -> Copy:
        """Return a copy of one version of a file.

        Raises:
            _ReplacedError: there is another version now.
        """

        def get(target: Path) -> None:
            self._fs.get_file(self._file(name), str(target))

        def download(target: Path) -> None:
            self._attempt(lambda: get(target), self.address(name), "read")
            # What arrived is that version only if it is still there.
            if self._look_up(name) != file:
                raise _ReplacedError

        return self._cache.copy(
            self._place, _copy_name(name, file), file.n_bytes, download, self.address(name)
        )

    def forget_copy(self, name: str) -> bool:
        """Remove the copy of a file, unless it is being read, and return whether it is gone."""
        file = self._known.pop(name, None) or self._look_up(name)
        return self._cache.forget(self._place, _copy_name(name, file))

    @contextmanager
    def room_for(self, n_bytes: int, about: str) -> Iterator[Path]:
        """Yield a folder of the cache for unfinished files of a size."""
        with self._cache.room_for(n_bytes, about) as folder:
            yield folder

    @contextmanager
    def empty_room(self) -> Iterator[Path]:
        """Yield a folder of the cache for unfinished files of unknown size."""
        with self._cache.empty_room() as folder:
            yield folder

    def make_room(self, n_bytes: int) -> None:
        """Remove copies, so that so many bytes are free in the cache if that can be."""
        self._cache.make_room(n_bytes)

    def publish(self, unfinished: Path, name: str) -> None:
        """Upload a file of `room_for`, and keep it as a copy.

        Raises:
            InputError: it may not be written, or is larger than the cache.
            UnavailableError: the store fails.
        """
        n_bytes = unfinished.stat().st_size
        address = self.address(name)
        self._cache.check_size(n_bytes, address)

        def put() -> None:
            self._fs.put_file(str(unfinished), self._file(name))

        self._attempt(put, address, "written")
        file = self._look_up(name)
        if file.n_bytes != n_bytes:
            raise UnavailableError(
                f"{address} has {file.n_bytes:,} bytes instead of {n_bytes:,}: another run writes "
                "it, or the store lost some"
            )
        self._cache.add(unfinished, self._place, _copy_name(name, file))

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, and make sure that they are gone; some may not exist.

        Raises:
            InputError: they may not be removed.
            UnavailableError: the store fails.
        """
        wanted = set(names)
        if not wanted:
            return
        present = sorted(wanted & set(self.files()))
        if not present:
            return

        def remove() -> None:
            self._fs.rm([self._file(name) for name in present])

        with suppress(FileNotFoundError):  # another run was faster
            self._attempt(remove, str(self), "cleared")
        # Some libraries do not report what a store refuses to remove.
        left = sorted(set(present) & set(self.files()))
        if left:
            raise InputError(
                f"{self.address(left[0])} cannot be removed: the credentials of the catalog entry "
                "need the permission to delete"
            )

    def written_at_s(self, name: str) -> float:
        """Return when a file was written, in seconds since 1970."""

        def look_up() -> float:
            written = self._fs.modified(self._file(name))
            return float(written.timestamp())

        return self._attempt(look_up, self.address(name), "looked up")

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            InputError: it may not be written or removed, or there is no such bucket.
            UnavailableError: the store fails.
        """
        name = f".write-{uuid.uuid4().hex}"

        def remove() -> None:
            self._fs.rm_file(self._file(name))

        self._write_bytes(name, b"")
        try:
            self._attempt(remove, self.address(name), "removed")
        except FileNotFoundError as exc:
            raise UnavailableError(
                f"{self.address(name)} was written and is not there: the store shows files late"
            ) from exc

    def _write_bytes(self, name: str, content: bytes) -> None:
        def put() -> None:
            self._fs.pipe_file(self._file(name), content)

        self._attempt(put, self.address(name), "written")

    def remove_hidden(self, name: str) -> None:
        """Remove a file whose name begins with a dot, if there is one."""

        def remove() -> None:
            if self._fs.exists(self._file(name)):
                self._fs.rm_file(self._file(name))

        self._attempt(remove, self.address(name), "removed")

    def _list(self) -> list[dict[str, Any]]:
        self._fs.invalidate_cache()
        try:
            found: list[dict[str, Any]] = self._fs.ls(self._path, detail=True)
        except FileNotFoundError as exc:
            # With a cause, the server reported it: there is no such bucket.
            if exc.__cause__ is not None:
                raise InputError(
                    f"{self} cannot be listed ({first_line(exc)}): {_HOW_TO_FIX}"
                ) from exc
            return []
        return found

    def _look_up(self, name: str) -> RemoteFile:
        """Return what the store knows of a file now.

        Raises:
            FileNotFoundError: there is none.
        """

        def look_up() -> RemoteFile:
            self._fs.invalidate_cache()
            return _remote_file(self._fs.info(self._file(name)))

        try:
            file = self._attempt(look_up, self.address(name), "looked up")
        except FileNotFoundError:
            self._known.pop(name, None)
            raise
        self._known[name] = file
        return file

    def _file(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _attempt(self, action: Callable[[], T], address: str, verb: str) -> T:
        """Return the result of an action, which is tried again where that may help.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: the store refuses it.
            UnavailableError: it fails each time.
        """
        for seconds in (*SECONDS_BETWEEN_ATTEMPTS, None):
            try:
                return action()
            except (InputError, _ReplacedError):
                raise
            except FileNotFoundError as exc:
                if verb == "written":  # so it is the bucket that is missing
                    raise InputError(self._message(address, verb, exc)) from exc
                raise
            except Exception as exc:  # each library has its own errors
                if _is_final(exc):
                    raise InputError(self._message(address, verb, exc)) from exc
                if seconds is None:
                    raise UnavailableError(self._message(address, verb, exc)) from exc
                logger.info("%s: tried again in %g s", self._message(address, verb, exc), seconds)
                time.sleep(seconds)
        raise AssertionError

    def _message(self, address: str, verb: str, error: Exception) -> str:
        text = f"{type(error).__name__}: {first_line(error)}"
        for secret in _secrets(self._options):
            text = text.replace(secret, MASK)
        fix = _HOW_TO_FIX
        if not _is_final(error):
            fix += ", and the connection"
        return without_credentials(f"{address} cannot be {verb} ({text}): {fix}")


class _ReplacedError(Exception):
    """A file was replaced while it was downloaded."""


def _remote_file(about: Mapping[str, Any]) -> RemoteFile:
    """Return what fsspec knows of a file."""
    n_bytes = int(about.get("size") or 0)
    for key in _CHECKSUMS:
        if about.get(key):
            return RemoteFile(n_bytes, str(about[key]).strip('"'))
    times = [f"{key} {about[key]}" for key in _TIMES if about.get(key)]
    return RemoteFile(n_bytes, " ".join([str(n_bytes), *times]))


def _copy_name(name: str, file: RemoteFile) -> str:
    return copy_name(json_digest([file.n_bytes, file.mark]), name)


def _is_final(error: Exception) -> bool:
    """Return whether the same attempt would fail again."""
    if isinstance(error, _FINAL_ERRORS):
        return True
    # Of botocore, which is not imported here: no credentials at all, or a part of them.
    if "Credentials" in type(error).__name__:
        return True
    return isinstance(error, OSError) and error.errno in _FINAL_ERRNOS


def _without_secrets(value: Any) -> Any:
    """Return nested options without the values that are secret."""
    if isinstance(value, Mapping):
        kept = {}
        for key, inner in value.items():
            if not _is_secret(str(key)):
                kept[str(key)] = _without_secrets(inner)
        return kept
    if isinstance(value, list | tuple):
        return [_without_secrets(inner) for inner in value]
    return value


def _secrets(value: Any, is_secret: bool = False) -> Iterator[str]:
    """Yield the secret texts in nested options."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _secrets(inner, _is_secret(str(key)))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secrets(inner, is_secret)
    elif is_secret and isinstance(value, str) and len(value) > 2:
        yield value


def _is_secret(name: str) -> bool:
    # `key` is the name of an access key to s3fs.
    return name == "key" or is_secret_option(name)
