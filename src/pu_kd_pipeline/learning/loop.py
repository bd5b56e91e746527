"""The one training loop; methods differ in the `step` they pass. Callers save and track.

A stopped training resumes from a `TrainingState` to the same result: the state holds everything
that changes, and the batches continue after those that were drawn before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pu_kd_pipeline.learning.workers import ALONE, Workers

Record = dict[str, float]
Step = Callable[[Any], dict[str, Tensor]]
ExtendRecord = Callable[[Record], Record]

# Xu et al. 2019: a tenth every 50 of 200 epochs
_STEP_DECAY = 0.1
_N_STEPS = 4
_ADAM_BETA2 = 0.999  # Kingma and Ba 2015, Algorithm 1


def learning_rate_factor(progress: float, schedule: str) -> float:
    """Return the factor on the initial learning rate.

    Args:
        progress: share of the training that is done, in [0, 1).
        schedule: `constant`, `step` or `cosine`.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        n_steps_done = int(progress * _N_STEPS)
        return float(_STEP_DECAY**n_steps_done)
    if schedule == "cosine":
        angle = math.pi * progress
        return 0.5 * (1.0 + math.cos(angle))
    raise ValueError(f"there is no schedule {schedule!r}; known are constant, step and cosine")


def make_optimizer(
    network: nn.Module,
    *,
    algorithm: str,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Return SGD or Adam over the network's trainable parameters.

    Args:
        network: module with the parameters.
        algorithm: `sgd` or `adam`.
        learning_rate: initial learning rate.
        momentum: momentum of SGD, or Adam's beta1.
        weight_decay: factor of the L2 penalty in the gradient.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # Fused: one kernel for all parameters instead of several per parameter.
    if algorithm == "sgd":
        return torch.optim.SGD(
            parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=True
        )
    if algorithm == "adam":
        betas = (momentum, _ADAM_BETA2)
        return torch.optim.Adam(
            parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True
        )
    raise ValueError(f"there is no optimizer {algorithm!r}; known are sgd and adam")


def shuffled_batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches forever; each pass visits every index once.

    A batch may contain the end of one pass and the start of the next.

    Args:
        n: number of samples, > 0.
        batch_size: size of every batch, also where n is smaller.
        generator: fixes the order.
    """
    device = generator.device
    remaining = torch.empty(0, dtype=torch.int64, device=device)
    while True:
        # More than one pass where the batch is larger than the data
        while len(remaining) < batch_size:
            next_pass = torch.randperm(n, generator=generator, device=device)
            remaining = torch.cat([remaining, next_pass])
        yield remaining[:batch_size]
        remaining = remaining[batch_size:]


def random_batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches forever, drawn with replacement."""
    size = (batch_size,)
    device = generator.device
    while True:
        yield torch.randint(n, size, generator=generator, device=device)


class Stateful(Protocol):
    """Has a state of tensors, numbers, strings and containers of these that can be loaded again."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class TrainingState:
    """Everything that changes while `fit` runs, except the batches.

    The batches of a seed are always the same, so the number of updates tells which were used.

    Args:
        parts: networks, optimizers and everything else with a state, by name.

    Attributes:
        parts: see above.
        update: number of updates done.
        records: the records that `fit` has yielded, oldest first.
        sums: sums of the step's values over the updates since the last record.
    """

    def __init__(self, **parts: Stateful) -> None:
        self.parts = parts
        self.update = 0
        self.records: list[Record] = []
        self.sums: dict[str, Tensor] = {}

    @property
    def since_record(self) -> int:
        """Updates since the last record."""
        if not self.records:
            return self.update
        last_record = self.records[-1]
        return self.update - int(last_record["update"])

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        parameter = next(self._parameters(), None)
        if parameter is None:
            return torch.device("cpu")
        return parameter.device

    def networks(self) -> Iterator[nn.Module]:
        """Yield the parts that are modules."""
        for part in self.parts.values():
            if isinstance(part, nn.Module):
                yield part

    def tensors(self) -> dict[str, Tensor]:
        """Return what is the same for all workers of a training, by part and name.

        That are the tensors of all parts but the optimizers, whose faults show in the networks, and
        the states of torch's generators.
        """
        found: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            if not isinstance(part, torch.optim.Optimizer):
                _collect_tensors(part.state_dict(), name, found)
        for kind, state in _random_states(self.device).items():
            found[f"the state of the random generator ({kind})"] = state
        return found

    def is_finite(self) -> bool:
        """Return whether the loss since the last record and all parameters are finite.

        Waits for the device.
        """
        values = [parameter.detach() for parameter in self._parameters()]
        if self.sums:
            values.append(self.sums["loss"])
        return all(bool(value.isfinite().all()) for value in values)

    def state_dict(self) -> dict[str, Any]:
        """Return the state.

        Its tensors are shared with the parts, so it has to be written before the next update.
        """
        return {
            "update": self.update,
            "records": self.records,
            "sums": self.sums,
            "random": _random_states(self.device),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the parts and torch's global generators; call it before making the batches."""
        for name, part in self.parts.items():
            part_state = state["parts"][name]
            part.load_state_dict(part_state)
        self.update = state["update"]
        self.records = state["records"]

        # Sums grow on the device of the losses, and a saved state may come from another one.
        sums = state["sums"]
        self.sums = {name: total.to(self.device) for name, total in sums.items()}
        _restore_random_states(state["random"], self.device)

    def _parameters(self) -> Iterator[nn.Parameter]:
        for network in self.networks():
            yield from network.parameters()


def _collect_tensors(value: Any, name: str, found: dict[str, Tensor]) -> None:
    """Add the tensors of a state to those found, by their names in it."""
    if isinstance(value, Tensor):
        found[name] = value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _collect_tensors(part, f"{name}.{key}", found)
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            _collect_tensors(part, f"{name}.{place}", found)


class Checkpointer(Protocol):
    """Saves the state of a training where another process can load it."""

    def restore(self, state: TrainingState) -> None:
        """Load the last saved state into `state`; leave it unchanged where none was saved."""

    def after_update(self, state: TrainingState, *, is_last: bool) -> None:
        """Save the state or not; called after every update, so it must be cheap where it does not.

        Args:
            state: the state after the update.
            is_last: whether the training is done.
        """


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's global generators, which dropout draws from, by kind of device.

    Args:
        device: of the networks. Of several GPUs only this one counts, and not its number: each
            worker of a training resumes on a GPU of its own.
    """
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def _restore_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    # A training may resume on another kind of device.
    if device.type not in states:
        return
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


def fit(
    step: Step,
    batches: Iterator[Any],
    optimizer: torch.optim.Optimizer,
    *,
    n_updates: int,
    record_every: int,
    schedule: str,
    state: TrainingState | None = None,
    checkpointer: Checkpointer | None = None,
    extend_record: ExtendRecord | None = None,
    after_update: Callable[[], None] | None = None,
    workers: Workers = ALONE,
) -> Iterator[Record]:
    """Yield one record every `record_every` updates: the step's mean values and the learning rate.

    Args:
        step: maps a batch to 0-d tensors; `loss` is backpropagated, the others are only averaged.
        batches: an endless iterator; its first batch belongs to the first update after
            `state.update`.
        optimizer: its learning rate at the start is the schedule's initial one.
        n_updates: updates in all.
        record_every: updates per record; the loop waits for the device only at a record.
        schedule: see `learning_rate_factor`.
        state: a state to resume from; the records that it has are yielded first. None: from the
            beginning. Its parts must be everything that the steps change.
        checkpointer: called after every update.
        extend_record: maps each new record to the record with further values, such as an accuracy
            on held-out images. It may only change what belongs to the state.
        after_update: called after every step of the optimizer, before the record.
        workers: that train together; the step's values are those of the whole batch, the same for
            each of them.

    Raises:
        FloatingPointError: the loss is not finite at a record.
        WorkersDifferError: the networks of two workers differ, at the start or at a record.
    """
    state = state or TrainingState()
    for group in optimizer.param_groups:
        # torch's own name; it is saved with the optimizer's state, which a resumed training needs
        group.setdefault("initial_lr", group["lr"])
    _check_same(state, workers)
    yield from tuple(state.records)
    for update in range(state.update + 1, n_updates + 1):
        progress = (update - 1) / n_updates
        _set_learning_rate(optimizer, progress, schedule)
        values = step(next(batches))
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        workers.average_gradients(_parameters_of(optimizer))
        optimizer.step()
        if after_update is not None:
            after_update()

        _add(values, state.sums)
        state.update = update
        is_last = update == n_updates
        is_recorded = is_last or state.since_record == record_every
        if is_recorded:
            _check_same(state, workers)
            record = _record(state, optimizer, n_updates)
            if extend_record is not None:
                record = extend_record(record)
            state.records.append(record)
            state.sums = {}
        # Before the record is yielded: a caller that stops there finds the update saved.
        if checkpointer is not None:
            checkpointer.after_update(state, is_last=is_last)
        if is_recorded:
            yield state.records[-1]


def _check_same(state: TrainingState, workers: Workers) -> None:
    """Check that all workers have the same networks, and would draw the same numbers.

    Raises:
        WorkersDifferError: they have not.
    """
    if workers.n > 1:
        workers.check_same(state.tensors(), state.update)


def _parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _set_learning_rate(optimizer: torch.optim.Optimizer, progress: float, schedule: str) -> None:
    factor = learning_rate_factor(progress, schedule)
    for group in optimizer.param_groups:
        initial = group["initial_lr"]
        group["lr"] = initial * factor


def _add(values: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
    """Add the values to the sums, on the device: reading a number would make the CPU wait."""
    for name, value in values.items():
        addend = value.detach()
        if name in sums:
            sums[name] = sums[name] + addend
        else:
            # A copy, because the step may reuse its tensor.
            sums[name] = addend.clone()


def _record(state: TrainingState, optimizer: torch.optim.Optimizer, n_updates: int) -> Record:
    """Return the means since the last record.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    n_summed = state.since_record
    means = {name: total.item() / n_summed for name, total in state.sums.items()}
    if not math.isfinite(means["loss"]):
        first = state.update - n_summed + 1
        raise FloatingPointError(
            f"the loss is {means['loss']} between update {first} and {state.update} of "
            f"{n_updates}: lower the learning rate, or look for constant or corrupt images"
        )
    return {
        "update": float(state.update),
        "learning_rate": optimizer.param_groups[0]["lr"],
        **means,
    }


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators for a block, and restore their states afterwards.

    Initialization and dropout draw from them.
    """
    # fork_rng restores the generators of the CPU and of all CUDA devices
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
