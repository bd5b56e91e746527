"""Workers that are processes of this machine."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from pu_kd_pipeline.engines.worker import Answer, Assignment, Lost, ShardWorker

_SECONDS_TO_END = 5.0


class ProcessWorkers:
    """Starts processes and talks to them over pipes.

    Not a `ProcessPoolExecutor`: that one ends all processes, with their unfinished shards, as soon
    as one of them is killed.
    """

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        # Spawned: a fork would copy the locks of this process's threads in whatever state they are.
        self._context = get_context("spawn")
        self._processes: dict[int, SpawnProcess] = {}
        self._pipes: dict[int, Connection] = {}
        # Those that work on a shard.
        self._begun: set[int] = set()
        self._n_started = 0

    def start(self) -> int:
        """Start a worker and return its number; its first event says that it is ready."""
        own_end, other_end = self._context.Pipe()
        # A daemon is ended with this process, should `stop` never be called.
        process = self._context.Process(
            target=serve, args=(other_end, self._assignment), daemon=True
        )
        process.start()
        # The pipe then breaks when the worker ends.
        other_end.close()
        worker = self._n_started
        self._n_started += 1
        self._processes[worker] = process
        self._pipes[worker] = own_end
        return worker

    def submit(self, worker: int, name: str, argument: Any) -> None:
        """Send a shard to a worker; if it has ended, the next `wait` says so."""
        with suppress(OSError):
            self._pipes[worker].send((name, argument))

    def wait(self, timeout_s: float) -> list[tuple[int, Answer | Lost]]:
        """Return (worker, its answer) for those that answered, or (worker, how it ended)."""
        worker_of = {pipe: worker for worker, pipe in self._pipes.items()}
        events: list[tuple[int, Answer | Lost]] = []
        for pipe in connection.wait(list(worker_of), timeout_s):
            assert isinstance(pipe, Connection)
            worker = worker_of[pipe]
            try:
                answer: Answer = pipe.recv()
            except (EOFError, OSError):
                had_begun = worker in self._begun
                events.append((worker, Lost(self._end(worker), had_begun)))
                continue
            if answer.kind == "begun":
                self._begun.add(worker)
            else:
                self._begun.discard(worker)
                events.append((worker, answer))
        return events

    def stop(self) -> None:
        """End all workers at once, whatever they are doing."""
        for process in self._processes.values():
            process.kill()
        for worker in list(self._processes):
            self._end(worker)

    def _end(self, worker: int) -> str:
        """Forget a worker that ends, and return how it did."""
        process = self._processes.pop(worker)
        self._pipes.pop(worker).close()
        process.join(_SECONDS_TO_END)
        code = process.exitcode
        process.kill()
        if code is not None and code < 0:
            # Most real-time signals have no name.
            with suppress(ValueError):
                return f"it was killed by {signal.Signals(-code).name}"
        return f"it ended with exit code {code}"


def serve(pipe: Connection, assignment: Assignment) -> None:
    """Answer the requests of the process that started this one, and end with it."""
    # The terminal's Ctrl-C is for the run, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    worker = ShardWorker(assignment)
    with suppress(EOFError, BrokenPipeError):
        pipe.send(worker.prepare())
        while True:
            name, argument = pipe.recv()
            pipe.send(worker.begin())
            answer = worker.make(name, argument)
            try:
                pipe.send(answer)
            except (pickle.PicklingError, AttributeError, TypeError) as exc:
                text = f"what it returns cannot be sent ({exc})\n{traceback.format_exc()}"
                pipe.send(Answer("bug", text))


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        # Not sys.exit: the main thread may be deep in a computation that nobody waits for.
        os._exit(1)
