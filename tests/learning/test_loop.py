"""The training loop: records, schedules, batches, and loss that is no longer finite."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pu_kd_pipeline.learning.loop import (
    TrainingState,
    fit,
    learning_rate_factor,
    make_optimizer,
    random_batches,
    seeded,
    shuffled_batches,
)


def _problem():
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 4.0)
    optimizer = make_optimizer(
        network, algorithm="sgd", learning_rate=0.1, momentum=0.0, weight_decay=0.0
    )
    return network, optimizer


def test_records_hold_the_means_since_the_last_record():
    network, optimizer = _problem()
    losses = []

    def step(batch):
        loss = (network.weight**2).sum()
        losses.append(loss.item())
        return {"loss": loss, "batch": torch.tensor(float(batch))}

    records = list(
        fit(step, itertools.count(), optimizer, n_updates=7, record_every=3, schedule="constant")
    )
    assert [record["update"] for record in records] == [3, 6, 7]
    assert [record["batch"] for record in records] == pytest.approx([1, 4, 6])
    assert records[0]["loss"] == pytest.approx(sum(losses[:3]) / 3)


def test_updates_follow_gradient_descent():
    network, optimizer = _problem()
    list(fit(lambda _: {"loss": (network.weight**2).sum()}, itertools.count(), optimizer, n_updates=5, record_every=5,
             schedule="constant"))  # fmt: skip
    assert network.weight.item() == pytest.approx(4.0 * 0.8**5)


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_schedules_start_at_one_and_never_rise(schedule):
    factors = [learning_rate_factor(i / 100, schedule) for i in range(100)]
    assert factors[0] == 1
    assert all(a >= b for a, b in itertools.pairwise(factors))


def test_step_schedule_divides_by_ten_at_each_quarter():
    factors = [learning_rate_factor(p, "step") for p in (0, 0.2499, 0.25, 0.5, 0.75, 0.999)]
    assert factors == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.001])


def test_weight_decay_is_in_the_gradient():
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 2.0)
    optimizer = make_optimizer(
        network, algorithm="sgd", learning_rate=0.5, momentum=0.0, weight_decay=0.1
    )
    (network.weight * 0).sum().backward()
    optimizer.step()
    assert network.weight.item() == pytest.approx(2.0 - 0.5 * 0.1 * 2.0)


def test_loss_that_is_not_finite_stops_and_says_where():
    network, optimizer = _problem()
    records = fit(
        lambda _: {"loss": network.weight.sum() / 0}, itertools.count(), optimizer, n_updates=4, record_every=2,
        schedule="constant",
    )  # fmt: skip
    with pytest.raises(
        FloatingPointError, match="between update 1 and 2 of 4: lower the learning rate"
    ):
        list(records)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (3, 10), (5, 5)])
def test_every_pass_visits_every_sample_once(n, batch_size):
    batches = shuffled_batches(n, batch_size, torch.Generator().manual_seed(0))
    drawn = torch.cat(list(itertools.islice(batches, 3 * n)))
    assert all(len(batch) == batch_size for batch in itertools.islice(batches, 3))
    for start in range(0, len(drawn) - n + 1, n):
        assert sorted(drawn[start : start + n].tolist()) == list(range(n))


def test_random_batches_are_drawn_with_replacement():
    batch = next(random_batches(2, 100, torch.Generator().manual_seed(0)))
    assert len(batch) == 100
    assert set(batch.tolist()) == {0, 1}


def test_seeding_is_repeatable_and_leaves_no_trace():
    torch.manual_seed(5)
    with seeded(1):
        first = torch.rand(3)
    after = torch.rand(1)
    torch.manual_seed(5)
    with seeded(1):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("bad", ["linear", ""])
def test_unknown_names_are_refused(bad):
    with pytest.raises(ValueError, match="known are"):
        learning_rate_factor(0.1, bad)
    with pytest.raises(ValueError, match="known are sgd and adam"):
        make_optimizer(nn.Linear(1, 1), algorithm=bad, learning_rate=1, momentum=0, weight_decay=0)


# --- trainings that go on ---------------------------------------------------------------------------------------------


class Diary:
    """Keeps a copy of every state, and none of those after the last one that it may see."""

    def __init__(self, last=None):
        self.states, self._last = {}, last

    def restore(self, state):
        if self.states:
            state.load_state_dict(copy.deepcopy(self.states[max(self.states)]))

    def after_update(self, state, *, is_last):
        if self._last is not None and state.update > self._last:
            raise InterruptedError
        self.states[state.update] = copy.deepcopy(state.state_dict())


class Extremes:
    """What `examine` counts on."""

    def __init__(self):
        self.least = float("inf")

    def state_dict(self):
        return {"least": self.least}

    def load_state_dict(self, state):
        self.least = state["least"]


def _train(diary, *, algorithm, schedule, n_updates, record_every, is_averaged):
    """Return the weights, the records, and what is said of the records, of a network with dropout and BatchNorm."""
    with seeded(3):
        network = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1)
        ).train()
        optimizer = make_optimizer(
            network,
            algorithm=algorithm,
            learning_rate=0.1,
            momentum=0.9 if is_averaged else 0.0,
            weight_decay=0.01,
        )
        extremes = Extremes()
        state = TrainingState(network=network, optimizer=optimizer, extremes=extremes)
        diary.restore(state)
        samples = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
        batches = itertools.islice(
            shuffled_batches(20, 8, torch.Generator().manual_seed(1)), state.update, None
        )

        def step(rows):
            loss = (network(samples[rows]) - samples[rows].sum(dim=1, keepdim=True)).square().mean()
            return {"loss": loss, "twice": 2 * loss.detach()}

        def examine(record):
            extremes.least = min(extremes.least, record["loss"])
            return {**record, "least": extremes.least}

        records = list(fit(step, batches, optimizer, n_updates=n_updates, record_every=record_every, schedule=schedule,
                           state=state, keeper=diary, examine=examine))  # fmt: skip
    return dict(network.state_dict()), records, extremes.least


@given(
    algorithm=st.sampled_from(["sgd", "adam"]),
    schedule=st.sampled_from(["constant", "step", "cosine"]),
    n_updates=st.integers(1, 12),
    record_every=st.integers(1, 5),
    is_averaged=st.booleans(),
    data=st.data(),
)
def test_a_training_that_was_stopped_goes_on_to_the_same_weights_and_records(
    algorithm, schedule, n_updates, record_every, is_averaged, data
):
    settings = {
        "algorithm": algorithm,
        "schedule": schedule,
        "n_updates": n_updates,
        "record_every": record_every,
    }
    weights, records, least = _train(Diary(), **settings, is_averaged=is_averaged)
    diary = Diary()
    for last in sorted(data.draw(st.sets(st.integers(0, n_updates - 1), min_size=1, max_size=3))):
        diary._last = last
        with pytest.raises(InterruptedError):
            _train(diary, **settings, is_averaged=is_averaged)
    diary._last = None
    found = _train(diary, **settings, is_averaged=is_averaged)
    assert found[1:] == (records, least)
    assert all(torch.equal(found[0][name], weights[name]) for name in weights)
    assert _train(diary, **settings, is_averaged=is_averaged)[1:] == (
        records,
        least,
    )  # nothing is left to do


def test_a_state_is_finite_as_long_as_its_loss_and_its_parameters_are():
    network = nn.Linear(2, 1)
    network.register_buffer("mask", torch.tensor([-torch.inf]))
    state = TrainingState(network=network)
    state.sums = {"loss": torch.tensor(1.0), "ratio": torch.tensor(torch.nan)}
    assert state.is_finite()
    state.sums["loss"] += torch.inf
    assert not state.is_finite()
    state.sums = {}
    assert state.is_finite()
    nn.init.constant_(network.bias, torch.nan)
    assert not state.is_finite()
