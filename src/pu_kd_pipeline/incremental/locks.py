"""Locks on what a run reads and writes, so that two runs on one data folder cannot mix their outputs.

A lock is the operating system's (`flock`): it ends with the process, however that ends.
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

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.incremental.file_states import safe_name

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path, *, writes: Iterable[str], reads: Iterable[str]) -> Iterator[None]:
    """Hold the locks of data sets: alone for those that are written, together with others for those that are read.

    Args:
        folder: where the lock files are; they stay, empty or with the last writer's name.
        writes: names of data sets.
        reads: names of data sets that are not written.

    Raises:
        InputError: another run holds one of them; nothing is held then.
    """
    if sys.platform == "win32":
        logger.warning("this system has no file locks: start no second run on the same data folder")
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {**dict.fromkeys(reads, fcntl.LOCK_SH), **dict.fromkeys(writes, fcntl.LOCK_EX)}
    with ExitStack() as stack:
        for name, kind in sorted(wanted.items()):  # in one order, whoever asks
            file = stack.enter_context(
                open(folder / f"{safe_name(name)}.lock", "a+", encoding="utf-8")
            )
            if not _take(file, kind):
                break
            if kind == fcntl.LOCK_EX:
                _sign(file)
        else:
            yield
            return
        file.seek(0)
        holder = file.read().strip()
        verb = "makes" if kind == fcntl.LOCK_SH or holder else "reads or makes"
        raise InputError(
            f"another run {verb} `{name}` in {folder.parent.parent}"
            + (f" ({holder})" if holder else "")
            + ": wait until it has ended, or give this one a folder of its own with --params=data=/another/folder"
        )


def _take(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        logger.warning(
            "%s cannot be locked (%s): start no second run on the same data folder", file.name, exc
        )
    return True


def _sign(file: IO[str]) -> None:
    file.truncate(0)
    file.write(
        f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
    )
    file.flush()
