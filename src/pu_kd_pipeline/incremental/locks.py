"""Locks on what a run reads and writes, so that two runs on one data folder do not mix.

A lock is held by the operating system (`flock`), which releases it when the process ends, also when
it is killed.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from pu_kd_pipeline.errors import UnavailableError
from pu_kd_pipeline.incremental.file_states import safe_name

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path, *, writes: Iterable[str], reads: Iterable[str]) -> Iterator[None]:
    """Hold the locks of data sets: exclusive for those that are written, shared for those read.

    Args:
        folder: where the lock files are; they stay, empty or with the name of the last writer.
        writes: names of data sets.
        reads: names of data sets that are not written.

    Raises:
        UnavailableError: another run holds one of them; no lock is held then.
    """
    if sys.platform == "win32":
        logger.warning("this system has no file locks: start no second run on the same data folder")
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    kinds = dict.fromkeys(reads, fcntl.LOCK_SH)
    # A data set that is read as well is locked once, for writing.
    kinds.update(dict.fromkeys(writes, fcntl.LOCK_EX))

    with ExitStack() as stack:
        # In the order of names: of two runs, the second always fails at the first common lock.
        for name, kind in sorted(kinds.items()):
            is_read = kind == fcntl.LOCK_SH
            path = folder / f"{safe_name(name)}.lock"
            file = stack.enter_context(open(path, "a+", encoding="utf-8"))
            if not _acquire(file, kind):
                raise UnavailableError(_conflict(name, file, folder, is_read=is_read))
            if not is_read:
                _write_holder(file)
        yield


def _acquire(file: IO[str], kind: int) -> bool:
    """Return whether a lock was free, and hold it; true also where there are no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:  # such as on some network file systems
        logger.warning(
            "%s cannot be locked (%s): start no second run on the same data folder", file.name, exc
        )
    return True


def _conflict(name: str, file: IO[str], folder: Path, *, is_read: bool) -> str:
    """Return a sentence on the run that holds a lock.

    Args:
        name: of the data set.
        file: its lock file, which holds the name of its last writer.
        folder: of the lock files.
        is_read: whether the lock was wanted for reading; then only a writer can be in the way.
    """
    file.seek(0)
    holder = file.read().strip()
    verb = "reads or makes"
    if is_read or holder:
        verb = "makes"
    who = ""
    if holder:
        who = f" ({holder})"
    return (
        f"another run {verb} `{name}` in {folder.parent.parent}{who}: wait until it has ended, or "
        "give this one a folder of its own with --params=data=/another/folder"
    )


def _write_holder(file: IO[str]) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    host = socket.gethostname()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {host}, since {since}\n")
    # At once, because another run reads it while this one still has the file open.
    file.flush()
