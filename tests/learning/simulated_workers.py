"""Workers as threads of one process, so that what they compute can be compared with one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from pu_kd_pipeline.learning.workers import Workers

T = TypeVar("T")
LIMIT_S = 60.0  # for all workers to reach the same exchange


class SimulatedExchange:
    """Exchanges tensors between threads.

    Args:
        rank: of the worker.
        tensors: one place for each worker.
        barrier: that all of them wait at.
    """

    def __init__(self, rank: int, tensors: list[Tensor], barrier: threading.Barrier) -> None:
        self._rank = rank
        self._tensors = tensors
        self._barrier = barrier

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        self._tensors[self._rank] = tensor.detach().clone()
        self._barrier.wait(LIMIT_S)
        found = [each.clone() for each in self._tensors]
        assert len({each.shape for each in found}) == 1
        # Nobody writes the next tensors before all have read these.
        self._barrier.wait(LIMIT_S)
        return found

    def all_sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.all_gather(tensor)).sum(dim=0)


def run_workers(n: int, function: Callable[[Workers], T]) -> list[T]:
    """Return what a function returns for each of n workers that run at the same time."""
    tensors = [torch.empty(0)] * n
    barrier = threading.Barrier(n)
    results: list[T | None] = [None] * n
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        exchange = SimulatedExchange(rank, tensors, barrier) if n > 1 else None
        try:
            results[rank] = function(Workers(rank, n, exchange))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LIMIT_S)
    # The first error: those that follow are of barriers that it has broken.
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads)
    return results  # type: ignore[return-value]
