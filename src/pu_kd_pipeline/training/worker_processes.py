"""Starts the workers of a data-parallel training on this machine, and waits for them.

Whatever happens to a worker ends the training with one sentence: the others are ended, and the same
command resumes from the last checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from pu_kd_pipeline import progress
from pu_kd_pipeline.errors import UnavailableError
from pu_kd_pipeline.params.compute import ComputeParams, TrainingWorkersParams
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint
from pu_kd_pipeline.training.checkpoints import checkpoint_settings
from pu_kd_pipeline.training.worker_files import TASK_FILE, Task, packed
from pu_kd_pipeline.training.worker_group import LostWorkerError, check_device

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Message = tuple[int, str, tuple[Any, ...]]

START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pathlib import Path
from pu_kd_pipeline.training.worker_main import main
main(Path(sys.argv[2]))
"""
# Between the first failure and the end of the others: the cause may be that of another worker.
SECONDS_FOR_CAUSES = 2.0
# Of a worker that has sent its result.
SECONDS_TO_END = 10.0
_N_LINES_SHOWN = 5  # of what a worker wrote to stderr before it ended
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}


def by_workers(
    function: Callable[P, T],
    params: TrainingWorkersParams,
    compute: ComputeParams,
    name: str,
) -> Callable[P, T]:
    """Return a function that lets several processes train together, and returns their result.

    What the first of them logs and publishes on the channels of `progress` is logged and published
    here.

    Args:
        function: of a module; trains by `worker_group.current_workers`.
        params: number of processes; with one, `function` itself is returned.
        compute: device of the training.
        name: of the training, for messages.

    Returns:
        A function that raises InputError for what a user can fix, and where a worker has ended.
    """
    if params.n == 1:
        return function

    def start_and_wait(*args: P.args, **kwargs: P.kwargs) -> T:
        check_device(compute, params.n)
        task = Task(
            function=function,
            args=args,
            kwargs=kwargs,
            code=maker_fingerprint(function),
            compute=compute,
            timeout_s=params.timeout_s,
            checkpoints=checkpoint_settings(),
            log_level=logging.getLogger("pu_kd_pipeline").getEffectiveLevel(),
        )
        logger.info("%s: %d workers train together", name, params.n)
        with tempfile.TemporaryDirectory(prefix="pu_kd_workers-") as folder:
            (Path(folder) / TASK_FILE).write_bytes(packed(task, Path(folder)))
            with _Team(params.n, Path(folder), compute, name) as team:
                result: T = pickle.loads(team.result())
        return result

    return start_and_wait


class _Team:
    """The processes of one training; none of them outlives the `with` block.

    Args:
        n: number of processes.
        folder: with the task; their stderr is written there.
        compute: device of the training.
        name: of the training, for messages.
    """

    def __init__(self, n: int, folder: Path, compute: ComputeParams, name: str) -> None:
        self._n = n
        self._folder = folder
        self._compute = compute
        self._name = name
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> _Team:
        try:
            for rank in range(self._n):
                self._processes.append(self._started(rank))
        except BaseException:
            self._end()
            raise
        for rank, process in enumerate(self._processes):
            threading.Thread(target=self._receive, args=(rank, process), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def result(self) -> bytes:
        """Wait for all processes, and return what the first one has sent.

        Raises:
            InputError: a worker has refused the training, has ended, or does not answer.
            RuntimeError: a worker has failed by an error of ours; with its traceback.
        """
        results: dict[int, bytes] = {}
        failures: dict[int, BaseException] = {}
        deadline = None
        while len(results) < self._n:
            rest_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                rank, kind, content = self._messages.get(timeout=rest_s)
            except queue.Empty:
                break
            if kind == "result":
                [results[rank]] = content
            elif kind == "log":
                logger_name, level, text = content
                logging.getLogger(logger_name).log(level, "%s", text)
            elif kind == "publish":
                channel, event = content
                getattr(progress, channel).publish(*event)
            elif rank not in results and rank not in failures:
                failures[rank] = self._failure(rank, kind, content)
                deadline = deadline or time.monotonic() + SECONDS_FOR_CAUSES
                if len(failures) + len(results) == self._n:
                    break
        if failures:
            raise _cause(failures)
        return results[0]

    def _failure(self, rank: int, kind: str, content: tuple[Any, ...]) -> BaseException:
        if kind == "refused":
            error: BaseException = content[0]
            if isinstance(error, LostWorkerError):
                return LostWorkerError(f"{self._name}: {self._worker(rank)}: {error}")
            return error
        if kind == "failed":
            return RuntimeError(f"{self._name}: {self._worker(rank)} failed:\n{content[0]}")
        # Its pipe is closed, so that it has ended or is about to.
        with suppress(subprocess.TimeoutExpired):
            self._processes[rank].wait(SECONDS_TO_END)
        code = self._processes[rank].returncode
        reason = f"ended with exit code {code}"
        if code is not None and code < 0:
            reason = f"was ended by {signal.Signals(-code).name}"
        if code == -getattr(signal, "SIGKILL", 0):
            reason += ", as where memory runs out"
        message = (
            f"{self._name}: {self._worker(rank)} {reason}. The same command resumes from the last "
            "checkpoint, also with another training_workers.n."
        )
        lines = self._log_file(rank).read_text("utf-8", "replace").splitlines()
        if lines:
            message += " It wrote: " + " / ".join(lines[-_N_LINES_SHOWN:])
        return UnavailableError(message)

    def _worker(self, rank: int) -> str:
        return f"worker {rank + 1} of {self._n}"

    def _started(self, rank: int) -> subprocess.Popen[bytes]:
        search_path = json.dumps([str(entry) for entry in sys.path])
        with open(self._log_file(rank), "wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-c", START, search_path, str(self._folder)],
                env={**os.environ, **self._environment(rank)},
                # Held open while this process lives: a worker ends when it is closed.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                # The terminal's Ctrl-C is for this process, which ends the workers.
                start_new_session=True,
            )

    def _environment(self, rank: int) -> Mapping[str, str]:
        added = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self._n)}
        if "OMP_NUM_THREADS" not in os.environ and self._compute.n_threads is None:
            added["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self._n))
        loopback = _LOOPBACK.get(sys.platform)
        # All are on this machine, whose own name need not lead to an address.
        if loopback is not None and "GLOO_SOCKET_IFNAME" not in os.environ:
            added["GLOO_SOCKET_IFNAME"] = loopback
        return added

    def _log_file(self, rank: int) -> Path:
        return self._folder / f"worker-{rank}.log"

    def _receive(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        pipe = process.stdout
        assert pipe is not None
        # A worker that is killed may leave half a message.
        with suppress(EOFError, OSError, pickle.UnpicklingError, ValueError):
            while True:
                kind, content = pickle.load(pipe)
                self._messages.put((rank, kind, content))
        self._messages.put((rank, "ended", ()))

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            # A process that waits for a lost disk cannot be killed, and is not waited for.
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_END)
            _close(process.stdin)


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with suppress(OSError):
            pipe.close()


def _cause(failures: Mapping[int, BaseException]) -> BaseException:
    """Return the failure that the others follow from: a worker that ended, or an error of one."""
    # A worker that waits for one that has ended reports no cause.
    ranked = sorted(failures.values(), key=lambda error: isinstance(error, LostWorkerError))
    ended = [error for error in ranked if type(error) is UnavailableError]
    return [*ended, *ranked][0]
