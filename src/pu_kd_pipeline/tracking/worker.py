"""The process that talks to MLflow, as the run sees it.

A process and not a thread, because only a process can be ended whatever it waits for: a server that
sends one byte per minute, a name that is never resolved, a locked database.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from typing import IO, Any

from pu_kd_pipeline.tracking.config import ENVIRONMENT

SECONDS_TO_END = 2.0
# Ctrl-C and the signals of job managers reach every process of a job, and the run still has to
# store its status: so the worker ignores them from its first line on.
START = """
import signal
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pu_kd_pipeline.tracking.worker_loop import serve
serve(parent_id=int(sys.argv[2]))
"""


class WorkerError(Exception):
    """MLflow did not carry out a call; the message is one line without credentials."""


class RefusedError(WorkerError):
    """MLflow will not carry out a call, however often it is made."""


class Worker:
    """Starts the process at the first call, and again after it had to be killed.

    Calls are made by one thread at a time; `kill` may be called by any.
    """

    def __init__(self) -> None:
        self.is_running = False
        self.n_starts = 0
        """How often a process was started: what earlier ones had opened is gone."""
        self._process: subprocess.Popen[bytes] | None = None

    def call(
        self, method: str, *args: Any, limit_s: float, **options: Any
    ) -> tuple[Any, list[str]]:
        """Call a method of `RunLog` and return (its result, warnings for the log).

        Args:
            method: its name.
            args: values that can be pickled.
            limit_s: total time; the process is killed when it is over.
            options: further arguments, by name.

        Raises:
            WorkerError: the method failed, or the process ended or took too long.
        """
        process = self._process or self._start()
        is_late = threading.Event()
        watchdog = threading.Timer(limit_s, _kill_late, (process, is_late))
        watchdog.daemon = True
        watchdog.start()
        try:
            # Both block until the watchdog kills a process that reads or answers nothing.
            _write(process, (method, args, options))
            reply = _read(process)
        except (OSError, EOFError, pickle.UnpicklingError):
            self.kill()
            reason = "the process that talks to it ended"
            if is_late.is_set():
                reason = f"no complete answer within {limit_s:g} seconds"
            raise WorkerError(reason) from None
        finally:
            watchdog.cancel()
        return result_of(*reply)

    def kill(self) -> None:
        """End the process, whatever it is doing; the next call starts another one."""
        process = self._process
        self._process = None
        self.is_running = False
        if process is None:
            return
        process.kill()
        # A process that waits for a lost disk cannot be killed, and is not waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
        for pipe in (process.stdin, process.stdout):
            # Closing would flush what the process never read.
            with contextlib.suppress(OSError):
                _pipe(pipe).close()

    def _start(self) -> subprocess.Popen[bytes]:
        search_path = json.dumps([str(entry) for entry in sys.path])
        process_id = str(os.getpid())
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, search_path, process_id],
            env={**ENVIRONMENT, **os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # The terminal's Ctrl-C is for the run.
            start_new_session=True,
        )
        self.is_running = True
        self.n_starts += 1
        return self._process


def result_of(outcome: str, value: Any, warnings: list[str]) -> tuple[Any, list[str]]:
    """Return (result, warnings) of an answer of the process.

    Raises:
        WorkerError: the call was not carried out.
    """
    if outcome == "refused":
        raise RefusedError(value)
    if outcome == "failed":
        raise WorkerError(value)
    return value, warnings


def _kill_late(process: subprocess.Popen[bytes], is_late: threading.Event) -> None:
    is_late.set()
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _write(process: subprocess.Popen[bytes], message: tuple[Any, ...]) -> None:
    pipe = _pipe(process.stdin)
    pickle.dump(message, pipe)
    pipe.flush()


def _read(process: subprocess.Popen[bytes]) -> tuple[str, Any, list[str]]:
    answer: tuple[str, Any, list[str]] = pickle.load(_pipe(process.stdout))
    return answer
