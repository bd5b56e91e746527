"""Workers that are actors of a Ray cluster; the only module that imports Ray, and only when used.

The pitfalls that this avoids: `ray.init` without an address joins any cluster that it finds; it
replaces the handler of SIGTERM, and what other handlers raise; usage statistics are sent by
default; a folder `ray` hides the package; actors that Ray restarts itself may wait for ever for a
place in a cluster that shrank.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from pu_kd_pipeline.engines.worker import Answer, Assignment, Lost, ShardWorker
from pu_kd_pipeline.errors import InputError, UnavailableError, first_line
from pu_kd_pipeline.params.engine import EngineParams

logger = logging.getLogger(__name__)

INSTALL = 'pip install "pu-kd-pipeline[ray]"'
# The work is in a file, and what workers return is small; Ray takes no less than 75 MB. A container
# has 64 MB of shared memory unless it is given more, and Ray then uses the disk.
_OBJECT_STORE_BYTES = 100 * 10**6
# Ray gives a machine 30 seconds to start; one that is busy may need longer.
_MAX_STARTS = 3
# Windows has no SIGHUP.
_ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_n_cpus_of_trainings = 0
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def import_ray() -> Any:
    """Return the package.

    Raises:
        InputError: it is not installed, or a folder of that name hides it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as exc:
        raise InputError(
            f"engine.kind is ray, and Ray is not installed: {INSTALL}, or choose local or processes"
        ) from exc
    if not hasattr(ray, "init"):
        places = ", ".join(map(str, ray.__path__))
        raise InputError(
            f"engine.kind is ray, and a folder hides the package of that name ({places}): rename "
            "the folder"
        )
    return ray


class RayWorkers:
    """Starts actors and calls them.

    Ray restarts and retries nothing: whoever distributes the shards does, and waits for no actor
    that has no place in the cluster.

    Args:
        assignment: what each is started with.
        engine: where the cluster is, and what an actor reserves.
        ray: the package, connected by `connect`.
    """

    def __init__(self, assignment: Assignment, engine: EngineParams, ray: Any) -> None:
        self._ray = ray
        self._assignment = assignment
        options = {
            "num_cpus": 1,
            "num_gpus": engine.gpus_per_worker,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        self._actor_type = ray.remote(**options)(ShardWorker)
        self._actors: dict[int, Any] = {}
        # The answer that is to come -> who gives it.
        self._calls: dict[Any, int] = {}
        # Worker -> the shard that it has not begun yet.
        self._sent: dict[int, tuple[str, Any]] = {}
        # Those that work on a shard.
        self._begun: set[int] = set()
        self._n_started = 0

    def start(self) -> int:
        """Start a worker and return its number; its first event says that it is ready."""
        worker = self._n_started
        self._n_started += 1
        actor = self._actor_type.remote(self._assignment)
        self._actors[worker] = actor
        self._calls[actor.prepare.remote()] = worker
        return worker

    def submit(self, worker: int, name: str, argument: Any) -> None:
        """Send a shard to a worker; if it has ended, the next `wait` says so."""
        # Nothing tells of an actor that ends while it has nothing to do. It is asked first, so that
        # the shard is not what seems to have ended it.
        self._sent[worker] = (name, argument)
        self._calls[self._actors[worker].begin.remote()] = worker

    def wait(self, timeout_s: float) -> list[tuple[int, Answer | Lost]]:
        """Return (worker, its answer) for those that answered, or (worker, how it ended).

        Raises:
            UnavailableError: the cluster is gone.
        """
        ray = self._ray
        calls = list(self._calls)
        events: list[tuple[int, Answer | Lost]] = []
        try:
            finished, _ = ray.wait(calls, num_returns=1, timeout=timeout_s)
        except ray.exceptions.RayError as exc:
            raise _lost_cluster(exc) from exc
        for call in finished:
            worker = self._calls.pop(call)
            sent = self._sent.pop(worker, None)
            try:
                answer: Answer = ray.get(call)
            except ray.exceptions.RayError as exc:
                self._kill(worker)
                events.append((worker, Lost(ended_by(exc), worker in self._begun)))
                continue
            if sent is None:
                self._begun.discard(worker)
                events.append((worker, answer))
            else:
                self._begun.add(worker)
                self._calls[self._actors[worker].make.remote(*sent)] = worker
        return events

    def stop(self) -> None:
        """End all workers at once, whatever they are doing."""
        for worker in list(self._actors):
            self._kill(worker)

    def _kill(self, worker: int) -> None:
        actor = self._actors.pop(worker)
        # It is gone already, or the cluster is.
        with suppress(Exception):
            self._ray.kill(actor)


def set_cpus_of_trainings(n: int) -> None:
    """Set how many CPUs the trainings of the run reserve at once, at most.

    A cluster that `connect` starts has them, whichever node of the pipeline needs it first.
    """
    global _n_cpus_of_trainings
    _n_cpus_of_trainings = n


def connect(engine: EngineParams) -> Any:
    """Connect this process to the cluster, once, and return the package.

    A cluster that is started here ends with this process.

    Raises:
        InputError: Ray is not installed.
        UnavailableError: there is no cluster at the address.
    """
    ray = import_ray()
    if ray.is_initialized():
        return ray
    address = engine.address or "local"
    options: dict[str, Any] = {}
    if address == "local":
        # Also where there is one CPU: an actor needs one, and the cluster keeps one free.
        n_cpus = max(2, n_own_cpus(), (engine.n_workers or 0) + 1, _n_cpus_of_trainings)
        options = {
            "num_cpus": n_cpus,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    with _kept_signal_handlers():
        for n_failed in range(_MAX_STARTS):
            try:
                ray.init(address=address, configure_logging=False, log_to_driver=False, **options)
                break
            except Exception as exc:  # of many kinds, such as RuntimeError for a wrong token
                if "timed out during startup" in str(exc) and n_failed < _MAX_STARTS - 1:
                    logger.warning("Ray did not start in time on this busy machine: once more")
                    ray.shutdown()
                    continue
                raise UnavailableError(
                    f"engine.address: the Ray cluster at {address!r} cannot be used "
                    f"({first_line(exc)}): see docs/scale.md"
                ) from exc
    return ray


def n_workers_of(engine: EngineParams, ray: Any) -> int:
    """Return how many workers the cluster has a place for, or as many as were asked for.

    Raises:
        InputError: it has a place for none.
    """
    resources = ray.cluster_resources()
    n_gpus = resources.get("GPU", 0)
    if engine.gpus_per_worker > n_gpus:
        raise InputError(
            f"engine.gpus_per_worker is {engine.gpus_per_worker:g}, and the Ray cluster has "
            f"{n_gpus:g} GPUs: start it on machines with GPUs, or set it to 0"
        )
    if engine.n_workers is not None:
        return engine.n_workers
    # One stays free for all else that runs there.
    n_workers = max(1, int(resources.get("CPU", 1)) - 1)
    if engine.gpus_per_worker > 0:
        n_workers = min(n_workers, int(n_gpus / engine.gpus_per_worker))
    return n_workers


def own_address() -> str:
    """Return the address of the machine that an actor is on; called by the actor."""
    return str(import_ray().util.get_node_ip_address())


def ended_by(error: Exception) -> str:
    """Return how an actor ended, in one line: Ray states the cause at the end of several."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[0].rstrip(".:")
    return reason if len(lines) == 1 else f"{reason}: {lines[-1].strip()}"


def n_own_cpus() -> int:
    """Return how many CPUs this process may use; a container's quota counts, too."""
    n_cpus = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        n_cpus = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        # "max" in the place of the quota, which is no number, where there is none.
        quota, period = _CPU_QUOTA.read_text(encoding="ascii").split()
        n_cpus = min(n_cpus, max(1, -(-int(quota) // int(period))))
    return n_cpus


@contextmanager
def kept_exit_codes() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the process with their exit code, also in a call of Ray.

    Ray turns a SystemExit that a signal handler raises there into an error of its own, which may be
    taken for that of a worker that is being ended.
    """
    exits: list[SystemExit] = []
    replaced: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def end(number: int, frame: FrameType | None) -> None:
        try:
            replaced[number](number, frame)
        except SystemExit as exc:
            exits.append(exc)
            raise

    # Python allows signal handlers in the main thread alone.
    if threading.current_thread() is threading.main_thread():
        for number in _ENDING_SIGNALS:
            handler = signal.getsignal(number)
            # A function; otherwise the signal is ignored, or ends the process at once.
            if callable(handler):
                replaced[number] = handler
                signal.signal(number, end)
    try:
        yield
    except BaseException:
        if not exits:
            raise
    finally:
        for number, handler in replaced.items():
            # Whoever was called may have set another one.
            if signal.getsignal(number) is end:
                signal.signal(number, handler)
    # Also if the block has ended without an error.
    if exits:
        raise SystemExit(exits[0].code)


@contextmanager
def _kept_signal_handlers() -> Iterator[None]:
    """Restore the handler of SIGTERM, which `ray.init` replaces."""
    # Python allows signal handlers in the main thread alone.
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if is_main and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _lost_cluster(error: Exception) -> UnavailableError:
    return UnavailableError(
        f"the connection to the Ray cluster was lost ({first_line(error)}): the same command "
        "resumes; finished shards are kept"
    )
