"""The workers of a data-parallel training: each computes its part of every batch.

A worker passes its part through the networks. What the networks return is gathered before the loss
is computed, so that every worker computes the loss of the whole batch, and the same one: the branch
of nnPU, the worst class weights, ranks and counts are those of the whole batch by construction.
Gradients are averaged.

A training of one process is that of one worker, for which nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_VALUES_PER_MESSAGE = 2**23  # of gradients: 32 MB


class WorkersDifferError(RuntimeError):
    """Workers that must hold the same numbers do not."""


class Exchange(Protocol):
    """How tensors get from one worker to the others. Every worker makes the same calls."""

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensor of every worker, in the order of their ranks; all have one shape."""

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the workers' tensors, with the same bits for each of them."""


@dataclass(frozen=True, eq=False)
class Workers:
    """The workers of a training, seen from one of them.

    Attributes:
        rank: of this worker, in 0..n-1.
        n: number of workers.
        exchange: None: there is one worker.
    """

    rank: int = 0
    n: int = 1
    exchange: Exchange | None = None

    @property
    def is_first(self) -> bool:
        """Whether this worker writes and reports for all."""
        return self.rank == 0

    def part(self, n_items: int) -> slice:
        """Return which of some items, such as the rows of a batch, are this worker's."""
        start = self.rank * n_items // self.n
        end = (self.rank + 1) * n_items // self.n
        return slice(start, end)

    def own(self, items: Tensor) -> Tensor:
        """Return this worker's part of (N, ...) items, which all workers hold."""
        if self.n == 1:
            return items
        return items[self.part(len(items))]

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the (n * B, ...) parts of all workers, in the order of the whole batch.

        Gradients flow back to every worker's part.

        Args:
            tensor: (B, ...), of one shape for all workers.
        """
        if self.exchange is None:
            return tensor
        gathered: Tensor = _Gather.apply(tensor, self.exchange, self.rank)  # type: ignore[no-untyped-call]
        return gathered

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the workers' tensors; without gradients."""
        if self.exchange is None:
            return tensor
        return self.exchange.all_sum(tensor)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a () value over the workers; gradients flow back to all of them."""
        if self.n == 1:
            return value
        return self.gather(value.unsqueeze(0)).mean()

    def gather_uneven(self, tensor: Tensor, n_items: int) -> Tensor:
        """Return the (N, ...) parts of all workers where N is no multiple of their number.

        Args:
            tensor: this worker's part of N items, see `part`.
            n_items: N.
        """
        if self.n == 1:
            return tensor
        longest = -(-n_items // self.n)
        n_missing = longest - len(tensor)
        padded = torch.cat([tensor, tensor.new_zeros(n_missing, *tensor.shape[1:])])
        gathered = self.gather(padded).unflatten(0, (self.n, longest))
        parts = []
        for rank in range(self.n):
            part = Workers(rank, self.n).part(n_items)
            parts.append(gathered[rank, : part.stop - part.start])
        return torch.cat(parts)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their mean over the workers.

        Each worker has the gradient of its part times the number of workers, see `gather`: the mean
        is the gradient of the whole batch. That of a parameter which is used after the gathering is
        the same for all workers, and so is the mean.

        Args:
            parameters: in the same order for all workers.
        """
        if self.exchange is None:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_dtype.values():
            for bucket in _buckets(gradients):
                flat = torch.cat([gradient.flatten() for gradient in bucket])
                mean = self.exchange.all_sum(flat) / self.n
                sizes = [gradient.numel() for gradient in bucket]
                for gradient, values in zip(bucket, mean.split(sizes), strict=True):
                    gradient.copy_(values.view(gradient.shape))

    def check_same(self, tensors: Mapping[str, Tensor], number: int) -> None:
        """Check that all workers hold the same bits; waits for the device.

        Args:
            tensors: such as the state of a network, by name.
            number: such as that of the update.

        Raises:
            WorkersDifferError: they do not; names the first tensor that differs.
        """
        if self.exchange is None:
            return
        sums = [torch.tensor(number)]
        sums += [_sum_of_bits(tensor).cpu() for tensor in tensors.values()]
        own = torch.stack(sums)
        is_different = torch.zeros(len(sums), dtype=torch.bool)
        for others in self.exchange.all_gather(own):
            is_different |= others != own
        if is_different.any():
            place = int(is_different.int().argmax())
            name = ["the number of updates", *tensors][place]
            raise WorkersDifferError(
                f"{name} differs between the {self.n} workers of this training after update "
                f"{number}: they read different checkpoints or images, or a machine is faulty"
            )


# The one worker of a training in one process.
ALONE = Workers()


class _Gather(torch.autograd.Function):
    """Concatenates the parts of all workers.

    As in torch.distributed.nn, each worker's part gets the sum over the workers of its gradients:
    where all compute the same loss, n times the gradient of the loss.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, exchange: Exchange, rank: int) -> Tensor:
        ctx.exchange = exchange
        ctx.rank = rank
        ctx.n_own = len(tensor)
        return torch.cat(exchange.all_gather(tensor.contiguous()))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        [gradient] = gradients
        total = ctx.exchange.all_sum(gradient.contiguous())
        n_own = ctx.n_own
        start = ctx.rank * n_own
        return total[start : start + n_own], None, None


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients that are sent together, in the given order.

    Each message has a latency, and most gradients are small; but all of them in one would be as
    large as the network, three times.
    """
    bucket: list[Tensor] = []
    n_values = 0
    for gradient in gradients:
        if bucket and n_values + gradient.numel() > _VALUES_PER_MESSAGE:
            yield bucket
            bucket = []
            n_values = 0
        bucket.append(gradient)
        n_values += gradient.numel()
    if bucket:
        yield bucket


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Return the () int64 sum of what is stored in a tensor, read as whole numbers."""
    # A sum of floats would depend on its order, which differs between machines.
    values = tensor.detach().contiguous().flatten()
    if values.dtype == torch.float32:
        return values.view(torch.int32).sum(dtype=torch.int64)
    # Each byte by its place: the state of a generator has two counters, whose sum is constant.
    numbers = values.view(torch.uint8).to(torch.int64)
    places = torch.arange(1, len(numbers) + 1, device=numbers.device)
    return (numbers * places).sum()
