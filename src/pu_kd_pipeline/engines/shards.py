"""Distributing shards among workers, whatever these are."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import sys
import time
from collections import Counter, deque
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

from pu_kd_pipeline.engines.processes import ProcessWorkers
from pu_kd_pipeline.engines.ray_cluster import (
    RayWorkers,
    connect,
    kept_exit_codes,
    n_own_cpus,
    n_workers_of,
)
from pu_kd_pipeline.engines.worker import PACKAGE, Answer, Assignment, Lost, Work
from pu_kd_pipeline.errors import InputError, UnavailableError, first_line
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.storage.atomic import remove_leftovers

logger = logging.getLogger(__name__)

LOCAL = EngineParams(
    kind="local", n_workers=None, address=None, gpus_per_worker=0, stall_minutes=120
)
# How often the work on a shard is begun, if its worker is lost each time.
_MAX_ATTEMPTS = 3
# How many workers in a row may be lost while they start, before any shard is finished. As many, and
# all that the run began with, may be lost before they begin a shard: they were on one machine.
_MAX_LOST_STARTS = 3
# With so many failed shards, others would fail, too.
_MAX_FAILURES = 10
_SECONDS_BETWEEN_CHECKS = 1.0
_LONGEST_CHECK_S = 10.0
_N_NAMES_SHOWN = 3
# In the name of the file that the work is sent in.
_WORK = "work"


class Workers(Protocol):
    """Workers of one kind. Each works on one shard at a time."""

    def start(self) -> int:
        """Start a worker and return its number; its first event says that it is ready."""

    def submit(self, worker: int, name: str, argument: Any) -> None:
        """Send a shard to a worker that is ready."""

    def wait(self, timeout_s: float) -> list[tuple[int, Answer | Lost]]:
        """Return (worker, its answer) for those that answered, or (worker, how it ended).

        A worker acknowledges a shard before it begins with it: that is no event.
        """

    def stop(self) -> None:
        """End all workers at once, whatever they are doing."""


def map_shards(
    work: Work, arguments: Mapping[str, Any], engine: EngineParams, folder: Path
) -> Generator[tuple[str, Any]]:
    """Yield (name of a shard, result of the work on it), in the order in which they finish.

    A shard whose worker is lost is made again by another worker. An error in a shard is raised
    after the others are finished; with `local`, at once. Close the iterator to end the workers.

    Args:
        work: what to do.
        arguments: shard -> what the work is called with.
        engine: who does it. A single shard is not worth further processes on the same machine.
        folder: an existing folder that all workers can read. No other run may use it.

    Raises:
        InputError: of the work, or a worker has other code, libraries or devices.
        UnavailableError: of the work; or no shard was finished for too long, workers keep ending,
            or the Ray cluster cannot be used.
        ShardError: any other error of the work.
    """
    if is_local(engine, len(arguments)):
        for name, argument in arguments.items():
            yield name, work(name, argument)
        return
    remove_leftovers(folder, _WORK)
    file = folder / f".{_WORK}.{os.getpid()}.tmp"
    n_workers = n_workers_for(engine, len(arguments))
    workers: Workers
    with kept_exit_codes(), ExitStack() as left:
        left.callback(file.unlink, missing_ok=True)
        if engine.kind == "ray":
            workers = RayWorkers(_assignment(work, file, 1), engine, connect(engine))
        else:
            n_threads = max(1, n_own_cpus() // n_workers)
            workers = ProcessWorkers(_assignment(work, file, n_threads))
        left.callback(workers.stop)
        distribution = _Distribution(workers, arguments, engine.stall_minutes * 60)
        yield from left.enter_context(closing(distribution.results(n_workers)))


def is_local(engine: EngineParams, n_shards: int) -> bool:
    """Return whether this process makes the shards, one after the other."""
    if engine.kind == "processes":
        return n_shards < 2
    return engine.kind == "local" or n_shards == 0


def n_workers_for(engine: EngineParams, n_shards: int) -> int:
    """Return how many shards are made at a time.

    Raises:
        InputError: Ray is not installed, or the cluster has a place for no worker.
        UnavailableError: there is no Ray cluster.
    """
    if is_local(engine, n_shards):
        return 1
    if engine.kind == "ray":
        return min(n_workers_of(engine, connect(engine)), n_shards)
    return min(engine.n_workers or n_own_cpus(), n_shards)


def cpus_of_worker(engine: EngineParams, n_workers: int, n_threads: int | None) -> float:
    """Return how many CPUs each worker computes with.

    Args:
        engine: one with workers.
        n_workers: that work at a time.
        n_threads: of each, as parameters set them; None: what the engine gives them.
    """
    if engine.kind == "ray":
        n_cpus = float(n_threads or 1)
        is_on_this_machine = engine.address in (None, "local")
    else:
        n_cpus = float(n_threads or n_own_cpus())
        is_on_this_machine = True
    if is_on_this_machine:
        n_cpus = min(n_cpus, n_own_cpus() / n_workers)
    return n_cpus


def _assignment(work: Work, file: Path, n_threads: int) -> Assignment:
    """Write the work to a file, and return what workers are started with.

    Raises:
        InputError: it is not known which code this process runs, so that workers may run another.
    """
    facts = dict(work.facts())
    # Where the code is not known, its fingerprint differs each time, and the log says why.
    if dict(work.facts()) != facts:
        raise InputError(
            "workers load the code from its files, and this process may run other code, such as of "
            "a module that was loaded again: restart this process, or set engine.kind to local"
        )
    content = pickle.dumps(work, protocol=pickle.HIGHEST_PROTOCOL)
    _write_for_owner(file, content)
    return Assignment(
        file=file.absolute(),
        digest=hashlib.sha256(content).hexdigest(),
        facts=facts,
        folder=os.getcwd(),
        search_path=tuple(os.path.abspath(entry) for entry in sys.path),
        log_level=logging.getLogger(PACKAGE).getEffectiveLevel(),
        n_threads=n_threads,
    )


def _write_for_owner(file: Path, content: bytes) -> None:
    """Write a file that only its owner can read: the work may hold credentials."""
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as opened:
        opened.write(content)


class _Distribution:
    """Which shard is where: to do, with which worker, or failed."""

    def __init__(self, workers: Workers, arguments: Mapping[str, Any], stall_s: float) -> None:
        self._workers = workers
        self._arguments = arguments
        self._stall_s = stall_s
        self._waiting = deque(arguments)
        self._idle: list[int] = []
        self._shard_of: dict[int, str] = {}
        self._attempts: Counter[str] = Counter()
        self._failures: dict[str, Exception] = {}
        self._n_starting = 0
        self._n_lost_starts = 0
        self._n_lost_idle = 0
        self._max_lost_idle = 0
        self._start_error: Exception | None = None

    def results(self, n_workers: int) -> Generator[tuple[str, Any]]:
        """Yield (shard, result) while there are any, and then raise the first error, if any."""
        self._max_lost_idle = n_workers + _MAX_LOST_STARTS
        for _ in range(n_workers):
            self._start()
        waited_s = 0.0
        last_check = time.monotonic()
        while self._is_unfinished():
            self._submit()
            events = self._workers.wait(_SECONDS_BETWEEN_CHECKS)
            # A run that was stopped for hours and continued has not waited for them.
            now = time.monotonic()
            waited_s += min(now - last_check, _LONGEST_CHECK_S)
            last_check = now
            for worker, event in events:
                name = self._shard_of.pop(worker, None)
                if isinstance(event, Lost):
                    self._replace(worker, name, event)
                    continue
                event.pass_on()
                waited_s = 0.0
                if name is None:
                    self._begin(worker, event)
                    continue
                self._idle.append(worker)
                self._n_lost_starts = 0
                self._n_lost_idle = 0
                error = event.error(name)
                if error is None:
                    yield name, event.value
                else:
                    self._fail(name, error)
            if not events and waited_s > self._stall_s:
                raise self._stalled()
        if self._start_error is not None:
            raise self._start_error
        if self._failures:
            raise self._first_failure()

    def _is_unfinished(self) -> bool:
        return bool(self._shard_of) or self._goes_on()

    def _goes_on(self) -> bool:
        """Return whether further shards are to be started."""
        is_hopeless = self._start_error is not None or len(self._failures) >= _MAX_FAILURES
        return bool(self._waiting) and not is_hopeless

    def _start(self) -> None:
        self._workers.start()
        self._n_starting += 1

    def _begin(self, worker: int, answer: Answer) -> None:
        """Use a worker that is ready; keep the error of one that refuses the work, or failed.

        Shards in work are finished before it is raised: they may be hours of training.
        """
        self._n_starting -= 1
        error: Exception | None = None
        if answer.is_refusal:
            error = InputError(answer.value)
        else:
            error = answer.error("a worker cannot start")
        if error is None:
            self._idle.append(worker)
        elif self._start_error is None:
            self._start_error = error

    def _submit(self) -> None:
        while self._idle and self._goes_on():
            worker = self._idle.pop()
            name = self._waiting.popleft()
            self._shard_of[worker] = name
            self._workers.submit(worker, name, self._arguments[name])

    def _replace(self, worker: int, name: str | None, lost: Lost) -> None:
        """Start a worker in the place of one that was lost, if needed, and put back its shard.

        Raises:
            UnavailableError: workers end before they begin a shard, one after the other.
        """
        if worker in self._idle:
            self._idle.remove(worker)
            self._n_lost_idle += 1
        elif name is None:
            self._n_starting -= 1
            self._n_lost_starts += 1
        else:
            self._put_back(name, lost)
        # Those that begin a shard are counted with it.
        if lost.had_begun or self._may_start():
            if len(self._waiting) > len(self._idle):
                self._start()
        elif self._waiting and not (self._shard_of or self._idle or self._n_starting):
            # Otherwise those that work, or still start, go on without further ones.
            n_lost = self._n_lost_starts + self._n_lost_idle
            raise UnavailableError(
                f"engine: {n_lost} workers in a row ended before they made a shard, the last one "
                f"because {lost.reason}"
            )

    def _may_start(self) -> bool:
        has_started_enough = self._n_lost_starts >= _MAX_LOST_STARTS
        return not has_started_enough and self._n_lost_idle < self._max_lost_idle

    def _put_back(self, name: str, lost: Lost) -> None:
        """Let another worker make a shard, unless it seems to be what ends them."""
        if lost.had_begun:
            self._attempts[name] += 1
        else:
            self._n_lost_idle += 1
        if self._attempts[name] < _MAX_ATTEMPTS:
            logger.warning(
                "%s: its worker was lost (%s), and another one makes it", name, lost.reason
            )
            self._waiting.appendleft(name)
            return
        error = UnavailableError(
            f"{name}: its worker was lost {_MAX_ATTEMPTS} times, the last one because "
            f"{lost.reason}; if memory ran out, lower engine.n_workers"
        )
        self._fail(name, error)

    def _fail(self, name: str, error: Exception) -> None:
        self._failures[name] = error
        if self._waiting or self._shard_of:
            logger.warning(
                "shard %s failed; the others are finished first: %s", name, first_line(error)
            )

    def _first_failure(self) -> Exception:
        error = next(iter(self._failures.values()))
        n_others = len(self._failures) - 1
        if n_others:
            logger.warning("%d further shards failed: see the warnings above", n_others)
        return error

    def _stalled(self) -> UnavailableError:
        names = sorted(self._shard_of.values())
        shown = ", ".join(names[:_N_NAMES_SHOWN]) or "none, because no worker is ready"
        if len(names) > _N_NAMES_SHOWN:
            shown += f" and {len(names) - _N_NAMES_SHOWN} more"
        return UnavailableError(
            f"engine: no shard was finished for {self._stall_s / 60:g} minutes; in work: {shown}. "
            "If a shard takes longer, raise engine.stall_minutes; the same command resumes"
        )
