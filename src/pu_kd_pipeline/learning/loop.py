"""The one training loop; methods differ in the `step` they pass, and saving and tracking are the caller's.

A training that was stopped goes on from a `TrainingState` to the same result: what learns and what counts is in the
state, and the batches are those that follow the ones that were drawn before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Record = dict[str, float]
Step = Callable[[Any], dict[str, Tensor]]
Examine = Callable[[Record], Record]

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
    network: nn.Module,
    *,
    algorithm: str,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Return SGD or Adam over the network's trainable parameters, with weight decay as L2 in the gradient."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if algorithm == "sgd":
        return torch.optim.SGD(
            parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=True
        )
    if algorithm == "adam":
        betas = (momentum, 0.999)
        return torch.optim.Adam(
            parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True
        )
    raise ValueError(f"there is no optimizer {algorithm!r}; known are sgd and adam")


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
            left = torch.cat(
                [left, torch.randperm(n, generator=generator, device=generator.device)]
            )
        yield left[:batch_size]
        left = left[batch_size:]


def random_batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches for ever, drawn with replacement."""
    while True:
        yield torch.randint(n, (batch_size,), generator=generator, device=generator.device)


class Stateful(Protocol):
    """What gives its state as tensors, numbers, strings and containers of these, and takes it back."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class TrainingState:
    """Where a training stands: all that changes while `fit` runs, but for the batches.

    The batches of a seed are always the same, so of these it is enough to know how many were used.

    Args:
        parts: by name, all that learns or counts: networks, optimizers, and what else has a state of its own.

    Attributes:
        parts: see above.
        update: updates done.
        records: what `fit` yielded of them, oldest first.
        sums: of the values of the updates since the last record.
    """

    def __init__(self, **parts: Stateful) -> None:
        self.parts = parts
        self.update = 0
        self.records: list[Record] = []
        self.sums: dict[str, Tensor] = {}

    @property
    def since_record(self) -> int:
        """Updates since the last record."""
        return self.update - (int(self.records[-1]["update"]) if self.records else 0)

    def networks(self) -> Iterator[nn.Module]:
        """Yield the parts that are modules."""
        yield from (part for part in self.parts.values() if isinstance(part, nn.Module))

    def is_finite(self) -> bool:
        """Return whether the loss since the last record and all parameters are finite; the device is waited for."""
        values = [
            parameter.detach() for network in self.networks() for parameter in network.parameters()
        ]
        values += [self.sums["loss"]] if self.sums else []
        return all(bool(value.isfinite().all()) for value in values)

    def state_dict(self) -> dict[str, Any]:
        """Return the state; tensors are shared with what learns, so it is to be written before the next update."""
        return {
            "update": self.update,
            "records": self.records,
            "sums": self.sums,
            "random": _random_states(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring the parts, and torch's global generators, where they were; to be called before the batches are made."""
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        parameters = (
            parameter for network in self.networks() for parameter in network.parameters()
        )
        device = next((parameter.device for parameter in parameters), torch.device("cpu"))
        self.update, self.records = state["update"], state["records"]
        self.sums = {name: total.to(device) for name, total in state["sums"].items()}
        _restore_random_states(state["random"])


class Keeper(Protocol):
    """Keeps the state of a training where another process finds it."""

    def restore(self, state: TrainingState) -> None:
        """Bring a training where it was when it was kept last; leave it as it is where it never was."""

    def after_update(self, state: TrainingState, *, is_last: bool) -> None:
        """Keep the state or not; called after every update, so it has to cost nothing where it does not."""


def _random_states() -> dict[str, Tensor]:
    """Return the states of torch's global generators, which dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states |= {
            f"cuda:{index}": torch.cuda.get_rng_state(index)
            for index in range(torch.cuda.device_count())
        }
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _restore_random_states(states: dict[str, Tensor]) -> None:
    for name in _random_states():  # those that are here now
        if name in states and name == "cpu":
            torch.set_rng_state(states[name])
        elif name in states and name == "mps":
            torch.mps.set_rng_state(states[name])
        elif name in states:
            torch.cuda.set_rng_state(states[name], torch.device(name))


def fit(
    step: Step,
    batches: Iterator[Any],
    optimizer: torch.optim.Optimizer,
    *,
    n_updates: int,
    record_every: int,
    schedule: str,
    state: TrainingState | None = None,
    keeper: Keeper | None = None,
    examine: Examine | None = None,
) -> Iterator[Record]:
    """Yield one record every `record_every` updates: the means of what `step` returned, and the learning rate.

    Args:
        step: maps a batch to 0-d tensors; `loss` is backpropagated, the others are only averaged.
        batches: an endless iterator; those after the first `state.update`.
        optimizer: its learning rate at the start is the schedule's initial one.
        n_updates: updates in all.
        record_every: updates a record; the device is waited for only here.
        schedule: see `learning_rate_factor`.
        state: to go on from: the records that it has are yielded first; None: from the beginning. Its parts must be
            all that the steps change.
        keeper: told after every update.
        examine: given each new record, returns it with what else is to be known at that update, such as an accuracy on
            held-out images. What it changes must be of the state.

    Raises:
        FloatingPointError: the loss is not finite at a record.
    """
    state = state or TrainingState()
    for group in optimizer.param_groups:
        group.setdefault(
            "initial_lr", group["lr"]
        )  # torch's own name, and a part of the optimizer's state
    yield from tuple(state.records)
    for update in range(state.update + 1, n_updates + 1):
        factor = learning_rate_factor((update - 1) / n_updates, schedule)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        values = step(next(batches))
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        optimizer.step()
        sums = state.sums
        for name, value in values.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach().clone()
        state.update = update
        is_recorded = state.since_record == record_every or update == n_updates
        if is_recorded:
            record = _record(state, optimizer, n_updates)
            state.records.append(record if examine is None else examine(record))
            state.sums = {}
        if keeper is not None:
            keeper.after_update(state, is_last=update == n_updates)
        if is_recorded:
            yield state.records[-1]


def _record(state: TrainingState, optimizer: torch.optim.Optimizer, n_updates: int) -> Record:
    """Return the means since the last record.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    means = {name: total.item() / state.since_record for name, total in state.sums.items()}
    if not math.isfinite(means["loss"]):
        raise FloatingPointError(
            f"the loss is {means['loss']} between update {state.update - state.since_record + 1} and {state.update} "
            f"of {n_updates}: lower the learning rate, or look for constant or corrupt images"
        )
    return {
        "update": float(state.update),
        "learning_rate": optimizer.param_groups[0]["lr"],
        **means,
    }


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators, which initialization and dropout draw from, and restore them afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
