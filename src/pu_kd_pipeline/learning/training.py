"""The one training loop; methods differ in the `step` they pass, and saving and tracking are the caller's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[[Any], dict[str, Tensor]]

_STEP_DECAY = 0.1  # Xu et al. 2019: a tenth every 50 of 200 epochs
_N_STEPS = 4


def learning_rate_factor(progress: float, schedule: str) -> float:
    """Return the factor on the initial learning rate after a share `progress` in [0, 1) of the training."""
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return float(_STEP_DECAY ** int(progress * _N_STEPS))
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"there is no schedule {schedule!r}; known are constant, step and cosine")


def make_optimizer(
    network: nn.Module, *, algorithm: str, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return SGD or Adam over the network's trainable parameters, with weight decay as L2 in the gradient."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if algorithm == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=True)
    if algorithm == "adam":
        betas = (momentum, 0.999)
        return torch.optim.Adam(parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
    raise ValueError(f"there is no optimiser {algorithm!r}; known are sgd and adam")


def shuffled_batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches for ever: each pass visits every index once, and a batch may straddle two passes.

    Args:
        n: number of samples, > 0.
        batch_size: size of every batch, also where n is smaller.
        generator: fixes the order.
    """
    left = torch.empty(0, dtype=torch.int64, device=generator.device)
    while True:
        while len(left) < batch_size:
            left = torch.cat([left, torch.randperm(n, generator=generator, device=generator.device)])
        yield left[:batch_size]
        left = left[batch_size:]


def random_batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches for ever, drawn with replacement."""
    while True:
        yield torch.randint(n, (batch_size,), generator=generator, device=generator.device)


def fit(
    step: Step,
    batches: Iterator[Any],
    optimizer: torch.optim.Optimizer,
    *,
    n_updates: int,
    record_every: int,
    schedule: str,
) -> Iterator[dict[str, float]]:
    """Yield one record every `record_every` updates: the means of what `step` returned, and the learning rate.

    Args:
        step: maps a batch to 0-d tensors; `loss` is backpropagated, the others are only averaged.
        batches: an endless iterator.
        optimizer: its learning rate at the start is the schedule's initial one.
        n_updates: updates in all.
        record_every: updates a record; the device is waited for only here.
        schedule: see `learning_rate_factor`.

    Raises:
        FloatingPointError: the loss is not finite at a record.
    """
    initial = [group["lr"] for group in optimizer.param_groups]
    sums: dict[str, Tensor] = {}
    since_record = 0
    for update in range(1, n_updates + 1):
        factor = learning_rate_factor((update - 1) / n_updates, schedule)
        for group, learning_rate in zip(optimizer.param_groups, initial, strict=True):
            group["lr"] = learning_rate * factor
        values = step(next(batches))
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        optimizer.step()
        for name, value in values.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach().clone()
        since_record += 1
        if since_record == record_every or update == n_updates:
            record = {name: total.item() / since_record for name, total in sums.items()}
            if not math.isfinite(record["loss"]):
                raise FloatingPointError(
                    f"the loss is {record['loss']} between update {update - since_record + 1} and {update} "
                    f"of {n_updates}: lower the learning rate, or look for constant or corrupt images"
                )
            yield {"update": float(update), "learning_rate": optimizer.param_groups[0]["lr"], **record}
            sums, since_record = {}, 0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators, which initialisation and dropout draw from, and restore them afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
