"""The workers of a data-parallel training on this machine, and the team that workers are.

Whatever happens to a worker ends its team with one sentence: the others are ended, and the same
command resumes from the last checkpoint.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pu_kd_pipeline import progress
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.training.worker_files import RENDEZVOUS_FILE
from pu_kd_pipeline.training.worker_group import LostWorkerError
from pu_kd_pipeline.training.worker_members import (
    EndedWorkerError,
    Member,
    Message,
    Place,
    ProcessMember,
)

# Between the first failure and the end of the others: the cause may be that of another worker.
SECONDS_FOR_CAUSES = 2.0
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}


def process_members(n: int, compute: ComputeParams, folder: Path) -> list[Member]:
    """Start the workers of a training on this machine.

    Args:
        n: number of workers.
        compute: device of the training.
        folder: with the task.
    """
    n_threads = None
    if compute.n_threads is None:
        n_threads = max(1, (os.cpu_count() or 1) // n)
    members: list[Member] = []
    try:
        for rank in range(n):
            place = Place(
                rank=rank,
                n=n,
                local_rank=rank,
                n_local=n,
                rendezvous=(folder / RENDEZVOUS_FILE).as_uri(),
                n_threads=n_threads,
                # All are on this machine, whose own name need not lead to an address.
                interface=_LOOPBACK.get(sys.platform),
            )
            search_path = [str(entry) for entry in sys.path]
            members.append(ProcessMember(place, folder, search_path))
    except BaseException:
        for member in members:
            member.end()
        raise
    return members


class Team:
    """The workers of one training; none of them outlives the `with` block.

    Args:
        members: in the order of their ranks.
        name: of the training, for messages.
    """

    def __init__(self, members: Sequence[Member], name: str) -> None:
        self._members = members
        self._n = len(members)
        self._name = name
        self._messages: queue.SimpleQueue[tuple[int, Message]] = queue.SimpleQueue()

    def __enter__(self) -> Team:
        for rank, member in enumerate(self._members):
            threading.Thread(target=self._receive, args=(rank, member), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.end()

    def result(self) -> bytes:
        """Wait for all workers, and return what the first one has sent.

        Raises:
            InputError: a worker has refused the training.
            EndedWorkerError: one has ended.
            LostWorkerError: one does not answer the others.
            RuntimeError: one has failed by an error of ours; with its traceback.
        """
        results: dict[int, bytes] = {}
        failures: dict[int, BaseException] = {}
        deadline = None
        while len(results) < self._n:
            rest_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                rank, (kind, content) = self._messages.get(timeout=rest_s)
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
            error_type, text = content
            if issubclass(error_type, LostWorkerError):
                text = f"{self._name}: {self._worker(rank)}: {text}"
            error: BaseException = error_type(text)
            return error
        if kind == "failed":
            return RuntimeError(f"{self._name}: {self._worker(rank)} failed:\n{content[0]}")
        reason, lines = content
        return EndedWorkerError(f"{self._name}: {self._worker(rank)} {reason}", lines)

    def _worker(self, rank: int) -> str:
        return f"worker {rank + 1} of {self._n}"

    def _receive(self, rank: int, member: Member) -> None:
        for message in member.messages():
            self._messages.put((rank, message))


def _cause(failures: Mapping[int, BaseException]) -> BaseException:
    """Return the failure that the others follow from: a worker that ended, or an error of one."""
    # A worker that waits for one that has ended reports no cause.
    # Of equal failures, the first worker's names the last good checkpoint.
    by_rank = [failures[rank] for rank in sorted(failures)]
    ranked = sorted(by_rank, key=lambda error: isinstance(error, LostWorkerError))
    ended = [error for error in ranked if isinstance(error, EndedWorkerError)]
    return [*ended, *ranked][0]
