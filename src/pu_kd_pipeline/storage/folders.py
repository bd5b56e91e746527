"""Folders of files that are written once: on this machine, or on an object store.

A folder on this machine is a `Path`, and its files are used where they are. Files of a remote
folder are used as copies in a cache of bounded size. A remote folder is a `Protocol` here, so that
the code that reads tables and images, which is part of the names of what it makes, does not depend
on the libraries of object stores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.storage.atomic import remove_empty_folder, remove_leftovers, replacing_file

T = TypeVar("T")
_NEXT_SIZE_RATIO = 1.25
_STARTED = ".started"  # an object store has it while a run writes images to it


@dataclass(frozen=True)
class RemoteFile:
    """What an object store knows of a file.

    Attributes:
        n_bytes: its size.
        mark: changes whenever the content may have changed: the checksum that the store keeps, or a
            time where it keeps none.
    """

    n_bytes: int
    mark: str


class RemoteFolder(Protocol):
    """A folder on an object store; files appear there as a whole or not at all.

    Its text is its address. All methods raise `InputError` for what a user can fix, and
    `UnavailableError` for a store that fails again and again.
    """

    @property
    def name(self) -> str:
        """The last part of the address."""

    @property
    def cache_bytes(self) -> int:
        """How many bytes all copies may have."""

    def address(self, name: str) -> str:
        """Return the address of a file, for messages."""

    def files(self) -> dict[str, RemoteFile]:
        """Return name -> file, by one listing; without hidden files and folders below it."""

    def read_text(self, name: str) -> str:
        """Return the text of a file as it is now; raise FileNotFoundError if there is none."""

    def write_text(self, name: str, text: str) -> None:
        """Write a small file."""

    def exists(self, name: str) -> bool:
        """Return whether there is a file now."""

    def copy(self, name: str) -> AbstractContextManager[Path]:
        """Return the path of a copy that stays on this machine until the context is left.

        It raises FileNotFoundError if there is no such file.
        """

    def forget_copy(self, name: str) -> bool:
        """Remove the copy of a file, unless it is being read, and return whether it is gone."""

    def room_for(self, n_bytes: int, about: str) -> AbstractContextManager[Path]:
        """Return a folder of the cache for unfinished files of a size."""

    def empty_room(self) -> AbstractContextManager[Path]:
        """Return a folder of the cache for unfinished files of unknown size: see `make_room`."""

    def make_room(self, n_bytes: int) -> None:
        """Remove copies, so that so many bytes are free in the cache if that can be."""

    def publish(self, unfinished: Path, name: str) -> None:
        """Upload a file of `room_for`, and keep it as a copy."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, and make sure that they are gone; some may not exist."""

    def remove_hidden(self, name: str) -> None:
        """Remove a file whose name begins with a dot, if there is one."""


Folder = Path | RemoteFolder


def shown(folder: Folder, name: str) -> str:
    """Return the path or address of a file, for messages."""
    if isinstance(folder, Path):
        return str(folder / name)
    return folder.address(name)


def read_text(folder: Folder, name: str) -> str:
    """Return the text of a file as it is now.

    Raises:
        FileNotFoundError: there is none.
        OSError, ValueError: it cannot be read, or is no text.
    """
    if isinstance(folder, Path):
        return (folder / name).read_text(encoding="utf-8")
    return folder.read_text(name)


def write_text(folder: Folder, name: str, text: str) -> None:
    """Write a small file, as a whole or not at all."""
    if isinstance(folder, Path):
        with replacing_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    else:
        folder.write_text(name, text)


def read_file(folder: Folder, name: str, reader: Callable[[Path], T]) -> T:
    """Return what a reader returns for a file, which it must not keep open.

    The copy of a remote file is downloaded once more if the reader cannot use it: the copy may be
    damaged, and the file not.

    Raises:
        FileNotFoundError: there is no such file.
        UnavailableError: the copy may be damaged, and another process reads it.
        Exception: that of the reader.
    """
    if isinstance(folder, Path):
        return reader(folder / name)
    try:
        with folder.copy(name) as path:
            return reader(path)
    except (FileNotFoundError, InputError):
        raise
    except Exception:  # a damaged file makes its reader raise nearly anything
        forget_damaged_copy(folder, name)
    with folder.copy(name) as path:
        return reader(path)


def forget_damaged_copy(folder: RemoteFolder, name: str) -> None:
    """Remove the copy of a file, so that it is downloaded again.

    Raises:
        FileNotFoundError: there is no such file.
        UnavailableError: another process reads the copy.
    """
    if not folder.forget_copy(name):
        raise UnavailableError(
            f"the copy of {folder.address(name)} on this machine is damaged, and another process "
            "reads it: try again"
        )


@contextmanager
def writing_file(folder: Folder, name: str, n_bytes: int) -> Iterator[Path]:
    """Yield a path; what is written there becomes a file of the folder.

    A remote file appears as a whole or not at all. In a folder on this machine, the path is that of
    the file itself, which has to be replaced as a whole, as `write_parquet` does.

    Args:
        folder: where the file belongs.
        name: of the file.
        n_bytes: it has no more; matters only for a remote folder.
    """
    if isinstance(folder, Path):
        yield folder / name
        return
    with folder.room_for(n_bytes, folder.address(name)) as room:
        unfinished = room / name
        yield unfinished
        folder.publish(unfinished, name)


def finish_file(folder: Folder, unfinished: Path, name: str) -> None:
    """Give a file that was written its final name, in place of a file that has it.

    Where it is uploaded, there is then room in the cache for another one that is a bit larger.
    """
    if isinstance(folder, Path):
        remove_empty_folder(folder / name)
        os.replace(unfinished, folder / name)
    else:
        n_bytes = unfinished.stat().st_size
        folder.publish(unfinished, name)
        folder.make_room(int(n_bytes * _NEXT_SIZE_RATIO))


def file_exists(folder: Folder, name: str) -> bool:
    """Return whether there is a file now."""
    if isinstance(folder, Path):
        return (folder / name).is_file()
    return folder.exists(name)


def existing_files(folder: Folder, names: Iterable[str]) -> set[str]:
    """Return those names that a folder has a file of; a remote folder is listed once."""
    if isinstance(folder, Path):
        return {name for name in names if (folder / name).is_file()}
    found = folder.files()
    return {name for name in names if name in found}


def file_sizes(folder: Folder, names: Iterable[str]) -> dict[str, int]:
    """Return name -> bytes of files; a remote folder is listed once.

    Raises:
        FileNotFoundError: one does not exist.
    """
    if isinstance(folder, Path):
        return {name: (folder / name).stat().st_size for name in names}
    found = folder.files()
    sizes = {}
    for name in names:
        if name not in found:
            raise FileNotFoundError(folder.address(name))
        sizes[name] = found[name].n_bytes
    return sizes


def file_names(folder: Folder, suffix: str = "") -> list[str]:
    """Return the names in a folder that end in a suffix, in order."""
    if isinstance(folder, Path):
        names = os.listdir(folder)
    else:
        names = list(folder.files())
    return sorted(name for name in names if name.endswith(suffix))


def remove_files(folder: Folder, names: Iterable[str]) -> None:
    """Remove files, of which some may not exist."""
    if isinstance(folder, Path):
        for name in names:
            remove_empty_folder(folder / name)
            (folder / name).unlink(missing_ok=True)
    else:
        folder.remove(names)


def remove_hidden(folder: Folder, name: str) -> None:
    """Remove a file whose name begins with a dot, if there is one."""
    if isinstance(folder, Path):
        (folder / name).unlink(missing_ok=True)
    else:
        folder.remove_hidden(name)


@contextmanager
def unfinished_store(folder: Folder, prefix: str) -> Iterator[tuple[Path, bool]]:
    """Yield a folder of this machine for unfinished files, and whether an earlier run was killed.

    Args:
        folder: that is written to; one on this machine is made, and is the folder itself.
        prefix: of the names of unfinished files, of which only a killed run leaves one behind.
    """
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        leftovers = remove_leftovers(folder)
        yield folder, any(leftover.name.startswith(prefix) for leftover in leftovers)
        return
    was_killed = folder.exists(_STARTED)
    folder.write_text(_STARTED, "")
    try:
        with folder.empty_room() as work:
            yield work, was_killed
    finally:
        folder.remove_hidden(_STARTED)
