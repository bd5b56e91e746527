"""The workers of a data-parallel training on the machines of a Ray cluster.

An actor on each machine starts a worker as a process, as on one machine, and passes on what it
sends. So the workers are the same, and no network, thread or signal is in Ray's own processes.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pu_kd_pipeline.engines.ray_cluster import connect, ended_by, own_address
from pu_kd_pipeline.errors import InputError, UnavailableError, first_line
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.training.worker_members import (
    SECONDS_TO_END,
    EndedWorkerError,
    Member,
    Message,
    Place,
    ProcessMember,
    interface_of,
)

_SECONDS_PER_CALL = 1.0


class WorkerHost:
    """Starts one worker on the machine where this actor is."""

    def __init__(self) -> None:
        self._member: ProcessMember | None = None
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def address(self) -> tuple[str, int, str | None]:
        """Return the address of this machine, a port of it that was free, and its interface."""
        address = own_address()
        with socket.socket() as found:
            found.bind((address, 0))
            port = int(found.getsockname()[1])
        return address, port, interface_of(address)

    def start(
        self, place: Place, folder: Path, search_path: Sequence[str], working_folder: str
    ) -> str | None:
        """Start the worker, or return why it cannot work here.

        Args:
            place: which one it is.
            folder: with the task.
            search_path: where the process imports from that starts the training.
            working_folder: that relative paths start from.
        """
        if not folder.is_dir():
            return (
                f"a worker on {socket.gethostname()} cannot read {folder}: the data folder has to "
                "be on a file system that all machines share, with the same path on each"
            )
        own = [*sys.path, *(entry for entry in search_path if entry not in sys.path)]
        here = working_folder if os.path.isdir(working_folder) else None
        try:
            self._member = ProcessMember(place, folder, own, here)
        except OSError as exc:
            return f"a worker on {socket.gethostname()} cannot be started: {first_line(exc)}"
        threading.Thread(target=self._receive, args=(self._member,), daemon=True).start()
        return None

    def messages(self) -> list[Message]:
        """Return what the worker has sent since the last call; waits a moment for the first."""
        found: list[Message] = []
        with suppress(queue.Empty):
            found.append(self._messages.get(timeout=_SECONDS_PER_CALL))
            while True:
                found.append(self._messages.get_nowait())
        return found

    def end(self) -> None:
        """End the worker; the next training may then read its last checkpoint."""
        if self._member is not None:
            self._member.end()

    def _receive(self, member: ProcessMember) -> None:
        for message in member.messages():
            self._messages.put(message)


class ActorMember:
    """A worker on a machine of the cluster.

    Args:
        actor: a `WorkerHost`.
        ray: the package.
    """

    def __init__(self, actor: Any, ray: Any) -> None:
        self._actor = actor
        self._ray = ray
        self._has_ended = False

    def messages(self) -> Iterator[Message]:
        """Yield what the worker sends, and then how it, or its machine, ended."""
        # Not after `end`: a call after `ray.shutdown` would connect to a cluster again.
        while not self._has_ended:
            try:
                found = self._ray.get(self._actor.messages.remote())
            except Exception as exc:
                yield "ended", (f"was lost ({ended_by(exc)})", [])
                return
            for kind, content in found:
                yield kind, content
                if kind == "ended":
                    return

    def end(self) -> None:
        """End the worker and its actor."""
        self._has_ended = True
        # The machine may be gone.
        with suppress(Exception):
            self._ray.get(self._actor.end.remote(), timeout=SECONDS_TO_END)
        with suppress(Exception):
            self._ray.kill(self._actor)


def actor_members(
    n: int, device: str, n_threads: int | None, engine: EngineParams, folder: Path, timeout_s: float
) -> list[Member]:
    """Start the workers of a training on a Ray cluster, where possible on different machines.

    Args:
        n: number of workers.
        device: cpu or cuda; each worker reserves a GPU then.
        n_threads: CPU threads of each worker, which it reserves; None: one.
        engine: where the cluster is.
        folder: with the task; all machines share it.
        timeout_s: for the cluster to have a place for all of them.

    Raises:
        InputError: the cluster has no place for so many, or a worker cannot work on a machine.
        UnavailableError: the cluster cannot be used, or has no place for so many now.
        EndedWorkerError: a worker was lost before it had begun.
    """
    ray = connect(engine.model_copy(update={"n_workers": max(n, engine.n_workers or 0)}))
    n_cpus = n_threads or 1
    n_gpus = 1 if device == "cuda" else 0
    _check_size(ray, n, n_cpus, n_gpus)
    options = {
        "num_cpus": n_cpus,
        "num_gpus": n_gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        # One call waits for messages while another one ends the worker.
        "max_concurrency": 4,
        "scheduling_strategy": "SPREAD",
    }
    actor_type = ray.remote(**options)(WorkerHost)
    actors = [actor_type.remote() for _ in range(n)]
    members: list[Member] = [ActorMember(actor, ray) for actor in actors]
    try:
        calls = [actor.address.remote() for actor in actors]
        ready, _ = ray.wait(calls, num_returns=n, timeout=timeout_s)
        if len(ready) < n:
            raise UnavailableError(
                f"the Ray cluster had no place for {n} workers for {timeout_s:g} seconds "
                "(training_workers.timeout_s): other programs use it. The same command resumes"
            )
        addresses = ray.get(calls)
        places = _places(addresses, device, n_threads)
        search_path = [os.path.abspath(entry) for entry in sys.path]
        starts = []
        for actor, place in zip(actors, places, strict=True):
            starts.append(actor.start.remote(place, folder, search_path, os.getcwd()))
        refusals = [refusal for refusal in ray.get(starts) if refusal is not None]
    except ray.exceptions.RayTaskError as exc:
        _end(members)
        # An error of the actor's code, which another actor would meet as well.
        raise UnavailableError(
            f"a worker of the training cannot be started on the Ray cluster ({ended_by(exc)})"
        ) from exc
    except ray.exceptions.RayError as exc:
        _end(members)
        raise EndedWorkerError(f"a worker of the training was lost ({ended_by(exc)})") from exc
    except BaseException:
        _end(members)
        raise
    if refusals:
        _end(members)
        raise InputError(refusals[0])
    return members


def _places(
    addresses: Sequence[tuple[str, int, str | None]], device: str, n_threads: int | None
) -> list[Place]:
    host, port, _ = addresses[0]
    places = []
    for rank, (_, _, interface) in enumerate(addresses):
        places.append(
            Place(
                rank=rank,
                n=len(addresses),
                # Ray shows each actor its own GPU alone.
                local_rank=0,
                n_local=1,
                rendezvous=f"tcp://{host}:{port}",
                n_threads=n_threads or 1,
                interface=interface,
                is_without_gpus=device != "cuda",
            )
        )
    return places


def _check_size(ray: Any, n: int, n_cpus: int, n_gpus: int) -> None:
    """Check that the machines of the cluster have a place for each of `n` workers.

    A worker is on one machine: a cluster of many small machines may have none for it.

    Args:
        ray: the package, connected.
        n: number of workers.
        n_cpus: that each reserves, at least 1.
        n_gpus: that each reserves.

    Raises:
        InputError: they have not; to wait would be in vain.
    """
    n_places = 0
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        resources = node["Resources"]
        on_node = resources.get("CPU", 0) // n_cpus
        if n_gpus:
            on_node = min(on_node, resources.get("GPU", 0) // n_gpus)
        n_places += int(on_node)
    if n_places < n:
        needed = f"{n_cpus} CPUs (compute.n_threads)" if n_cpus > 1 else "a CPU"
        if n_gpus:
            needed += " and a GPU"
        raise InputError(
            f"training_workers.n: {n} workers need {needed} each, and the machines of the Ray "
            f"cluster have a place for {n_places}: add machines, or lower it. A training that was "
            "begun resumes from its last checkpoint, also with another number"
        )


def _end(members: Sequence[Member]) -> None:
    for member in members:
        member.end()
