"""The group of processes that train together, and which worker of it this process is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import prepare_device
from pu_kd_pipeline.errors import InputError, UnavailableError, first_line
from pu_kd_pipeline.learning.workers import ALONE, Workers

if TYPE_CHECKING:
    from pu_kd_pipeline.params.compute import ComputeParams

T = TypeVar("T")

# A context variable, as that of checkpoints: trainings are called deep inside of stages.
_workers: ContextVar[Workers] = ContextVar("workers", default=ALONE)


class LostWorkerError(UnavailableError):
    """Another worker of the training has ended, or does not answer in time."""


def current_workers() -> Workers:
    """Return the workers that train together with this process; without a group, it alone."""
    return _workers.get()


def shared_batch(batch_size: int, key: str) -> Workers:
    """Return the workers that train together with this process.

    Args:
        batch_size: of the training; each worker gets an equal part.
        key: of the parameter, for the message.

    Raises:
        InputError: the batch cannot be divided among them.
    """
    workers = current_workers()
    if batch_size % workers.n:
        raise InputError(
            f"{key}: {batch_size} images cannot be divided among {workers.n} workers "
            "(training_workers.n): make it a multiple of their number"
        )
    return workers


@contextmanager
def joint_training(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    workers: Workers,
    name: str,
    sections: Sequence[int] = (),
) -> Iterator[None]:
    """Let the layers of a network act on the whole batch of all workers inside the `with` block.

    Args:
        network: on its device.
        image_shape: (C, H, W) of an image.
        workers: that train it together.
        name: of the training, for messages.
        sections: sizes of the sections of the whole batch, see `synchronized`.

    Raises:
        InputError: a layer computes with the batch in a way that workers cannot share.
    """
    if workers.n == 1:
        yield
        return
    from pu_kd_pipeline.learning.synchronized import (
        NotShareableError,
        check_shareable,
        synchronized,
    )

    try:
        check_shareable(network, image_shape)
        with synchronized(network, workers, sections):
            yield
    except NotShareableError as exc:
        raise InputError(
            f"{name}: the network cannot be trained by {workers.n} workers: {exc}. Set "
            "training_workers.n to 1"
        ) from exc


@contextmanager
def worker_group(compute: ComputeParams, timeout_s: float, init_method: str) -> Iterator[Workers]:
    """Join a group of processes; trainings inside the `with` block share batches.

    Rank and number of workers are those that `torchrun` sets: the environment variables RANK,
    LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE. GPUs exchange tensors by NCCL, and each worker has
    its own; CPUs exchange them by gloo.

    Args:
        compute: the device of the training.
        timeout_s: a worker that waits longer for another one raises an error.
        init_method: as for `torch.distributed.init_process_group`: `env://` under torchrun.

    Raises:
        InputError: the device cannot be used by several workers.
        LostWorkerError: the workers do not find each other.
    """
    from torch import distributed

    rank = int(os.environ["RANK"])
    n = int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    n_here = int(os.environ.get("LOCAL_WORLD_SIZE", n))
    check_device(compute, n, n_here)
    backend = _backend(compute, local_rank)
    timeout = timedelta(seconds=timeout_s)
    where: dict[str, Any] = {"init_method": init_method}
    url = urlsplit(init_method)
    try:
        if url.scheme == "file":
            # Torch would read the path as it is in the URL, where a space is %20.
            store = distributed.FileStore(url2pathname(url.path), n)  # type: ignore[attr-defined]
            store.set_timeout(timeout)
            where = {"store": store}
        distributed.init_process_group(backend, rank=rank, world_size=n, timeout=timeout, **where)
    # Such as a port that another program has taken, or a worker that ended before it came here.
    except RuntimeError as exc:
        raise LostWorkerError(
            f"the workers did not find each other at {init_method} ({first_line(exc)})"
        ) from exc
    try:
        with existing_group() as workers:
            yield workers
    finally:
        distributed.destroy_process_group()


@contextmanager
def existing_group() -> Iterator[Workers]:
    """Use the process group that somebody else has made, such as Ray Train."""
    from torch import distributed

    device = torch.device("cpu")
    if distributed.get_backend() == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    n = distributed.get_world_size()
    workers = Workers(distributed.get_rank(), n, TorchExchange(n, device))
    token = _workers.set(workers)
    try:
        yield workers
    finally:
        _workers.reset(token)


def check_device(compute: ComputeParams, n: int, n_here: int) -> None:
    """Check that several workers can use a device.

    Args:
        compute: the device of the training.
        n: number of workers.
        n_here: those that share the GPUs which this process sees; 0: none does.

    Raises:
        InputError: they cannot.
    """
    if n == 1:
        return
    device = prepare_device(compute)
    if device.type == "mps" or ":" in compute.device:
        raise InputError(
            f"compute.device: {n} workers (training_workers.n) need a CPU or a GPU each, and "
            f"{compute.device} is one device: set it to auto, cuda or cpu, or training_workers.n "
            "to 1"
        )
    if device.type == "cuda" and n_here > torch.cuda.device_count():
        raise InputError(
            f"training_workers.n: {n_here} workers need a GPU each, and there are "
            f"{torch.cuda.device_count()}: lower it, or set compute.device to cpu"
        )


def _backend(compute: ComputeParams, local_rank: int) -> str:
    if prepare_device(compute).type == "cpu":
        return "gloo"
    # From here on, `cuda` without a number is this one.
    torch.cuda.set_device(local_rank)
    return "nccl"


class TorchExchange:
    """Exchanges tensors by torch's process group.

    Args:
        n: number of workers.
        device: that the group sends tensors from; others are moved there and back.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self._n = n
        self._device = device

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensor of every worker, in the order of their ranks; all have one shape."""
        from torch import distributed

        sent = tensor.to(self._device)
        if tensor.dtype == torch.bool:  # which not every group sends
            sent = sent.to(torch.uint8)
        found = [torch.empty_like(sent) for _ in range(self._n)]
        _exchanged(lambda: distributed.all_gather(found, sent))
        return [each.to(tensor.device, tensor.dtype) for each in found]

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the workers' tensors, with the same bits for each of them."""
        from torch import distributed

        total = tensor.to(self._device, copy=True)
        _exchanged(lambda: distributed.all_reduce(total))
        return total.to(tensor.device)


def _exchanged(exchange: Callable[[], object]) -> None:
    """Exchange tensors.

    Raises:
        LostWorkerError: another worker has ended, or does not answer in time.
    """
    try:
        exchange()
    except RuntimeError as exc:
        raise LostWorkerError(f"another worker does not answer ({exc})") from exc
