"""Files on any file system of fsspec, copied as a whole; what goes wrong is one message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from pu_kd_pipeline.errors import InputError, UnavailableError

# What file systems call a checksum of a file's content; times and sizes are none.
_CONTENT_MARKS = ("ETag", "etag", "md5Hash", "content_md5")


class RemoteFiles:
    """Files, or folders of a few files with fixed names, on one file system.

    Args:
        protocol: name of the file system, such as `s3`.
        options: its arguments, such as credentials; `open_args_load` and `open_args_save` are
            arguments of reading and writing a file.
        parts: names of the files of a folder, in the order in which they are written: the last one
            makes it complete. Empty: a path is one file.

    Raises:
        InputError: the package that reads this file system is not installed.
    """

    def __init__(
        self, protocol: str, options: Mapping[str, Any], parts: tuple[str, ...] = ()
    ) -> None:
        self._protocol = protocol
        self._parts = parts
        arguments = dict(options)
        self._load_options = _copy_options(arguments.pop("open_args_load", None))
        self._save_options = _copy_options(arguments.pop("open_args_save", None))
        try:
            self._fs = fsspec.filesystem(protocol, **arguments)
        except ImportError as exc:
            raise InputError(
                f"{protocol}:// cannot be used yet: {exc}, with pip in the environment of this "
                "project"
            ) from exc

    def is_complete(self, path: str) -> bool:
        """Return whether the file, or the last file of the folder, exists."""
        *_, last = self._paths(path)
        with self._named_errors(path, "looked up"):
            self.forget_lists()
            return bool(self._fs.exists(last))

    def glob(self, pattern: str) -> list[str]:
        """Return the paths that match."""
        with self._named_errors(pattern, "looked up"):
            self.forget_lists()
            return list(self._fs.glob(pattern))

    def checksum(self, path: str) -> str | None:
        """Return a checksum of the content, or None if it is not there or the store has none."""
        if not self.is_complete(path):
            return None
        marks = []
        for file in self._paths(path):
            with self._named_errors(path, "looked up"):
                about = self._fs.info(file)
            found = [str(about[mark]) for mark in _CONTENT_MARKS if about.get(mark)]
            if not found:
                return None
            marks.append(found[0])
        return " ".join(marks)

    def download(self, path: str, target: Path) -> None:
        """Copy the file or folder to this machine.

        Raises:
            InputError: it is not there, or cannot be read.
        """
        if self._parts:
            target.mkdir()
        with self._named_errors(path, "read"):
            for source, copy in zip(self._paths(path), self._paths(target), strict=True):
                self._fs.get_file(source, copy, **self._load_options)

    def upload(self, source: Path, path: str) -> None:
        """Copy a file or folder of this machine.

        Raises:
            InputError: it cannot be written.
        """
        targets = self._paths(path)
        with self._named_errors(path, "written"):
            if self._parts and self._fs.exists(targets[-1]):
                # A kill between two files must not leave parts of two versions as a whole.
                self._fs.rm_file(targets[-1])
            for file, target in zip(self._paths(source), targets, strict=True):
                # Object stores show a file only once it is complete.
                self._fs.put_file(file, target, **self._save_options)
        self.forget_lists()

    def forget_lists(self) -> None:
        """Drop the lists of files in memory: other processes may have changed the store."""
        self._fs.invalidate_cache()

    def url(self, path: str) -> str:
        """Return the address of a path, for messages."""
        if self._protocol == "file" or "://" in path:
            return path
        return f"{self._protocol}://{path}"

    def _paths(self, path: str | Path) -> list[str]:
        """Return the paths of all files, in the order in which they are written."""
        if not self._parts:
            return [str(path)]
        return [f"{path}/{part}" for part in self._parts]

    @contextmanager
    def _named_errors(self, path: str, action: str) -> Iterator[None]:
        """Turn the errors of a file system, which are of any type, into one message."""
        address = self.url(path)
        try:
            yield
        except FileNotFoundError as exc:
            raise InputError(f"there is no {address}: {exc}") from exc
        except Exception as exc:
            raise UnavailableError(
                f"{address} cannot be {action} ({type(exc).__name__}: {exc}): check the address, "
                "the credentials of the catalog entry, and the connection"
            ) from exc


def _copy_options(open_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return arguments of opening a file as those of copying it, which has no mode."""
    options = dict(open_options or {})
    options.pop("mode", None)
    return options
