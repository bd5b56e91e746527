"""A worker of a data-parallel training, from inside: it trains, and sends what it has to report.

Workers are started by `worker_processes`, which reads their messages, or by an actor on another
machine, which passes these on.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any

from pu_kd_pipeline import progress
from pu_kd_pipeline.devices import arithmetic, prepare_device
from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint
from pu_kd_pipeline.training.checkpoints import set_checkpoint_folder
from pu_kd_pipeline.training.worker_files import TASK_FILE, Task, packed
from pu_kd_pipeline.training.worker_group import worker_group

PACKAGE = "pu_kd_pipeline"
# Channels of `progress` that the first worker sends on.
CHANNELS = ("records", "paces", "long_loops")


def main(folder: Path, rendezvous: str) -> None:
    """Carry out the task of a folder, and end this process.

    Ends early if stdin is closed, because the process that started it has ended.

    Args:
        folder: with the task; the environment has rank and number of workers, as torchrun sets
            them.
        rendezvous: where the workers find each other, as for `worker_group`.
    """
    messages = _Messages(_private_stdout())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        task: Task = pickle.loads((folder / TASK_FILE).read_bytes())
        _report(messages, task)
        result = _carried_out(task, rendezvous)
        if os.environ["RANK"] != "0":
            result = None
        messages.send("result", packed(result, folder))
    except InputError as error:
        messages.send("refused", _kind_of(error), str(error))
    except BaseException:
        messages.send("failed", traceback.format_exc())
    # Not `sys.exit`, which would wait for threads that may wait for other workers.
    os._exit(0)


def _carried_out(task: Task, rendezvous: str) -> Any:
    if maker_fingerprint(task.function) != task.code:
        raise UnavailableError(
            f"a worker on {socket.gethostname()} would train with other code or libraries than "
            "this command was started with: if the code has changed, run the same command again; "
            "on several machines, install the same version of this project and of its libraries"
        )
    if task.checkpoints is not None:
        set_checkpoint_folder(*task.checkpoints)
    with worker_group(task.compute, task.timeout_s, rendezvous):
        # Parts of a batch in different number formats would be averaged without a word.
        own = arithmetic(task.compute, prepare_device(task.compute))
        if own != task.arithmetic:
            raise InputError(
                f"compute.precision: a worker on {socket.gethostname()} would compute with {own}, "
                f"and this command was started for {task.arithmetic}: set compute.precision and "
                "compute.device to values that mean the same on all machines, such as float32 and "
                "cpu"
            )
        return task.function(*task.args, **task.kwargs)


def _kind_of(error: InputError) -> type[InputError]:
    """Return the type of an error, or its nearest base that the other process can import."""
    for kind in type(error).__mro__:
        if kind.__module__.partition(".")[0] == PACKAGE and issubclass(kind, InputError):
            return kind
    return InputError


class _Messages:
    """Sends messages to the process that started this one; may be called by any thread."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, kind: str, *content: Any) -> None:
        with self._lock:
            pickle.dump((kind, content), self._pipe)
            self._pipe.flush()


class _LogMessages(logging.Handler):
    def __init__(self, messages: _Messages) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.send("log", record.name, record.levelno, record.getMessage())


def _report(messages: _Messages, task: Task) -> None:
    """Let the first worker send what is logged and published; the others do the same work."""
    package = logging.getLogger(PACKAGE)
    package.setLevel(task.log_level)
    package.propagate = False
    if os.environ["RANK"] != "0":
        package.addHandler(logging.NullHandler())
        return
    package.addHandler(_LogMessages(messages))
    for name in CHANNELS:
        channel: progress.Channel[Any] = getattr(progress, name)
        channel.add(_publisher(messages, name))


def _publisher(messages: _Messages, name: str) -> Any:
    def publish(*event: Any) -> None:
        messages.send("publish", name, event)

    return publish


def _private_stdout() -> IO[bytes]:
    """Return a copy of stdout that nothing else prints to."""
    pipe = os.fdopen(os.dup(1), "wb")
    sys.stdout.flush()
    os.dup2(2, 1)
    return pipe


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
