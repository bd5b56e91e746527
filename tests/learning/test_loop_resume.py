"""A training that was stopped resumes to the same weights and records."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pu_kd_pipeline.learning import loop
from pu_kd_pipeline.learning.loop import (
    TrainingState,
    fit,
    make_optimizer,
    seeded,
    shuffled_batches,
)
from tests.learning.generators import seeded_generator


class MemoryCheckpointer:
    """Keeps a copy of every state, and stops the training after a given update."""

    def __init__(self):
        self.states = {}
        self.stops_after = None

    def restore(self, state):
        if self.states:
            newest = self.states[max(self.states)]
            # A copy, because the training changes what it loads.
            state.load_state_dict(copy.deepcopy(newest))

    def after_update(self, state, *, is_last):
        if self.stops_after is not None and state.update > self.stops_after:
            # Before the state is stored, as where a process dies in the middle of an update.
            raise InterruptedError
        self.states[state.update] = copy.deepcopy(state.state_dict())


class LowestLoss:
    """The lowest loss of the records: a state that only `examine` changes."""

    def __init__(self):
        self.value = float("inf")

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@dataclass(frozen=True)
class Options:
    algorithm: str
    schedule: str
    n_updates: int
    record_every: int
    momentum: float


@dataclass(frozen=True)
class Result:
    weights: dict[str, Tensor]
    records: list[dict[str, float]]
    lowest_loss: float


def _train(checkpointer, options):
    """Train a network with dropout and BatchNorm; both have a state or draw from torch's."""
    with seeded(3):
        network = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1)
        )
        network.train()
        optimizer = make_optimizer(
            network,
            algorithm=options.algorithm,
            learning_rate=0.1,
            momentum=options.momentum,
            weight_decay=0.01,
        )
        lowest_loss = LowestLoss()
        state = TrainingState(network=network, optimizer=optimizer, lowest_loss=lowest_loss)
        checkpointer.restore(state)

        samples = torch.randn(20, 4, generator=seeded_generator())
        all_batches = shuffled_batches(20, 8, seeded_generator(1))
        # A resumed training skips the batches that it has seen.
        remaining_batches = itertools.islice(all_batches, state.update, None)

        def step(rows):
            inputs = samples[rows]
            targets = inputs.sum(dim=1, keepdim=True)
            loss = (network(inputs) - targets).square().mean()
            return {"loss": loss, "twice": 2 * loss.detach()}

        def extend_record(record):
            lowest_loss.value = min(lowest_loss.value, record["loss"])
            return {**record, "lowest_loss": lowest_loss.value}

        records = fit(
            step,
            remaining_batches,
            optimizer,
            n_updates=options.n_updates,
            record_every=options.record_every,
            schedule=options.schedule,
            state=state,
            checkpointer=checkpointer,
            extend_record=extend_record,
        )
        # Inside of the block, because `fit` is lazy and dropout draws from the seeded generator.
        records = list(records)
    return Result(dict(network.state_dict()), records, lowest_loss.value)


def _assert_equal(result, expected):
    """Compare to the last bit: a resumed training is the same training."""
    assert result.records == expected.records
    assert result.lowest_loss == expected.lowest_loss
    for name, weight in expected.weights.items():
        assert torch.equal(result.weights[name], weight)


options_of_training = st.builds(
    Options,
    algorithm=st.sampled_from(["sgd", "adam"]),
    schedule=st.sampled_from(["constant", "step", "cosine"]),
    n_updates=st.integers(1, 12),
    record_every=st.integers(1, 5),
    momentum=st.sampled_from([0.0, 0.9]),
)


@given(options=options_of_training, data=st.data())
def test_a_stopped_training_resumes_to_the_same_weights_and_records(options, data):
    expected = _train(MemoryCheckpointer(), options)
    checkpointer = MemoryCheckpointer()
    updates = st.integers(0, options.n_updates - 1)
    stops = data.draw(st.sets(updates, min_size=1, max_size=3))
    for update in sorted(stops):
        checkpointer.stops_after = update
        with pytest.raises(InterruptedError):
            _train(checkpointer, options)
    checkpointer.stops_after = None

    resumed = _train(checkpointer, options)

    _assert_equal(resumed, expected)

    # Once more: there is nothing left to do, and the result is the same.
    repeated = _train(checkpointer, options)
    _assert_equal(repeated, expected)


def test_a_training_resumes_with_the_numbers_of_its_own_gpu_on_another_one(monkeypatch):
    states = [torch.tensor([index], dtype=torch.uint8) for index in range(3)]

    def set_state(state, device):
        states[torch.device(device).index] = state

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device.index])
    monkeypatch.setattr(torch.cuda, "set_rng_state", set_state)
    monkeypatch.setattr(loop.TrainingState, "device", torch.device("cuda", 1))
    saved = TrainingState().state_dict()
    # As worker 3, which reads the file of worker 1.
    monkeypatch.setattr(loop.TrainingState, "device", torch.device("cuda", 2))
    TrainingState().load_state_dict(saved)
    assert [int(state) for state in states] == [0, 1, 1]
