"""Files and folders that are either complete or absent.

They are written under a temporary name, flushed and renamed. Who may read them is decided by the
user's umask alone.
"""

from __future__ import annotations

import glob
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; it replaces `path`, or is removed on an error.

    Raises:
        IsADirectoryError: a folder that is not empty has the name of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_empty_folder(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        _set_mode(temporary, mode)
        # Flushed before the rename: after a power cut the new name must not hold an empty file.
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_empty_folder(path: Path) -> None:
    """Remove a folder if it is one, and empty."""
    # Another error than "not empty", such as of permissions, meets whoever writes there.
    with suppress(OSError):
        path.rmdir()


@contextmanager
def replacing_folder(folder: Path, *, keeps_files: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to `folder`; it replaces that, or is removed on an error.

    Args:
        folder: the folder, or a link to it, which is kept.
        keeps_files: the temporary folder starts with copies of the files of `folder`. Copies have
            the modes of their originals, and links are links.
    """
    if folder.is_symlink():
        folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    previous = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        if keeps_files and folder.is_dir():
            shutil.copytree(folder, temporary, dirs_exist_ok=True, symlinks=True)
        copies = set(temporary.rglob("*"))
        yield temporary
        # Files have no use for the bits of folders: search, setgid and sticky.
        mode = stat.S_IMODE(temporary.stat().st_mode) & 0o666
        for path in temporary.rglob("*"):
            # What a link leads to may be anybody's.
            if path not in copies and path.is_file() and not path.is_symlink():
                _set_mode(path, mode)
        # A folder that is not empty cannot be replaced in one step.
        if folder.exists():
            os.replace(folder, previous)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def _set_mode(path: Path, mode: int) -> None:
    """Give a file the mode that a new one gets, which whoever wrote it may have changed.

    Some libraries write to a temporary file of their own, which only its owner can read.
    """
    # Some network drives have modes that cannot be changed.
    with suppress(OSError):
        path.chmod(mode)


def remove_leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """Remove the temporary files of processes that were killed while they wrote to a folder.

    No other process may be writing to the folder.

    Args:
        folder: where files or folders are replaced; it need not exist.
        name: name of the file or folder that was being replaced; None: any.

    Returns:
        The paths that were removed.
    """
    target = "*" if name is None else glob.escape(name)
    temporary = folder.glob(f".{target}.*.tmp")
    previous = folder.glob(f".{target}.*.old")
    leftovers = [*temporary, *previous]
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return leftovers


def flush_folder(folder: Path) -> None:
    """Make the file names in a folder survive a power cut, where the system supports it."""
    with suppress(OSError):  # Windows opens no folders, and some network drives flush none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
