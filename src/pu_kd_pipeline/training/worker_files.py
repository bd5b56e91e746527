"""What a training gets from the process that starts its workers, and what comes back, as bytes.

Networks are written as model folders, as the catalog stores them: not every network can be pickled.
"""

from __future__ import annotations

import pickle
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.model import (
    Model,
    PUClassifier,
    load_model,
    load_pu_classifier,
    save_model,
)
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.provenance.fingerprint import unknown_code

if sys.platform != "win32":
    import fcntl

TASK_FILE = "task.pickle"
RENDEZVOUS_FILE = "rendezvous"
_FOLDER_PREFIX = "pu_kd_workers-"
_LOCK_FILE = "lock"


@dataclass(frozen=True)
class Task:
    """A training that workers carry out.

    Attributes:
        function: of a module, that trains.
        args: its positional arguments.
        kwargs: its other arguments.
        code: `maker_fingerprint` of the function in the process that starts the workers.
        compute: device of the training.
        arithmetic: kind of device and number format of that process, by `devices.arithmetic`.
        timeout_s: see `TrainingWorkersParams`.
        checkpoints: arguments of `set_checkpoint_folder`; None: no checkpoints.
        log_level: of the package's logger.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    code: str
    compute: ComputeParams
    arithmetic: str
    timeout_s: float
    checkpoints: tuple[Path, float] | None
    log_level: int


def check_code_is_known(function: Callable[..., Any], n: int, name: str) -> None:
    """Check that workers can load the code that this process would run.

    Args:
        function: of the training.
        n: number of workers.
        name: of the training, for messages.

    Raises:
        InputError: it is not known which code runs here, such as after a module was loaded again.
    """
    unknown = unknown_code(function)
    if unknown:
        raise InputError(
            f"{name}: {n} workers load the code from its files, and this process may run other "
            f"code: it uses {unknown}. Restart this process, or set training_workers.n to 1"
        )


@contextmanager
def task_folder() -> Iterator[Path]:
    """Yield a new temporary folder; remove those of processes that were killed before."""
    _remove_leftovers(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_FOLDER_PREFIX) as name:
        folder = Path(name)
        with _held(folder):
            yield folder


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which the system releases when this process ends."""
    if sys.platform == "win32":
        yield
        return
    # The lock is held before it has its name, so that nobody else gets it first.
    unnamed = folder / f"{_LOCK_FILE}.tmp"
    with open(unnamed, "wb") as file:
        with suppress(OSError):  # some network drives have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
            unnamed.rename(folder / _LOCK_FILE)
        yield


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders whose process has ended."""
    if sys.platform == "win32":
        return
    for lock in parent.glob(f"{_FOLDER_PREFIX}*/{_LOCK_FILE}"):
        # A lock that is held, a folder of somebody else, or one that is being removed.
        with suppress(OSError), open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


class _Pickler(pickle.Pickler):
    def __init__(self, file: BytesIO, folder: Path) -> None:
        # Without torch's shared memory, which is small in containers and ends with its process.
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._folder = folder

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Model | PUClassifier):
            return NotImplemented
        folder = self._folder / f"model-{uuid.uuid4().hex}"
        save_model(value, folder)
        load = load_model if isinstance(value, Model) else load_pu_classifier
        return load, (folder,)


def packed(value: Any, folder: Path) -> bytes:
    """Return a value for `pickle.loads`, while the folder exists.

    Args:
        value: to be sent to another process.
        folder: for networks.
    """
    buffer = BytesIO()
    _Pickler(buffer, folder).dump(value)
    return buffer.getvalue()
