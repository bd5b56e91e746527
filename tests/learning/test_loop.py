"""The training loop: records, schedules, batches, and a loss that is not finite.

How a stopped training resumes is tested in `test_loop_resume`.
"""

from __future__ import annotations

import itertools

import pytest
import torch
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
from tests.learning.generators import seeded_generator


def _weight_of_one(value):
    """Return a network that multiplies by one weight of the given value."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return network


def _problem():
    network = _weight_of_one(4.0)
    optimizer = make_optimizer(
        network, algorithm="sgd", learning_rate=0.1, momentum=0.0, weight_decay=0.0
    )
    return network, optimizer


def _fit(step, optimizer, n_updates, record_every):
    return fit(
        step,
        itertools.count(),
        optimizer,
        n_updates=n_updates,
        record_every=record_every,
        schedule="constant",
    )


def test_records_hold_the_means_since_the_last_record():
    network, optimizer = _problem()
    losses = []

    def step(batch):
        loss = (network.weight**2).sum()
        losses.append(loss.item())
        return {"loss": loss, "batch": torch.tensor(float(batch))}

    records = list(_fit(step, optimizer, n_updates=7, record_every=3))
    updates = [record["update"] for record in records]
    batches = [record["batch"] for record in records]
    mean_loss = sum(losses[:3]) / 3

    # The last record is of the one update that remains.
    assert updates == [3, 6, 7]
    assert batches == pytest.approx([1, 4, 6])
    assert records[0]["loss"] == pytest.approx(mean_loss)


def test_updates_follow_gradient_descent():
    network, optimizer = _problem()

    def step(batch):
        return {"loss": (network.weight**2).sum()}

    list(_fit(step, optimizer, n_updates=5, record_every=5))
    # The gradient of w**2 is 2 w, so each update with rate 0.1 multiplies w by 0.8.
    expected = 4.0 * 0.8**5

    assert network.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_schedules_start_at_one_and_never_rise(schedule):
    factors = [learning_rate_factor(percent / 100, schedule) for percent in range(100)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)


STEPS = [(0, 1), (0.2499, 1), (0.25, 0.1), (0.5, 0.01), (0.75, 0.001), (0.999, 0.001)]


@pytest.mark.parametrize(("progress", "expected"), STEPS)
def test_step_schedule_divides_by_ten_at_each_quarter(progress, expected):
    factor = learning_rate_factor(progress, "step")
    assert factor == pytest.approx(expected)


def test_weight_decay_is_in_the_gradient():
    network = _weight_of_one(2.0)
    optimizer = make_optimizer(
        network, algorithm="sgd", learning_rate=0.5, momentum=0.0, weight_decay=0.1
    )
    # The loss has no gradient, so only the decay moves the weight.
    loss = (network.weight * 0).sum()
    loss.backward()
    optimizer.step()
    expected = 2.0 - 0.5 * 0.1 * 2.0

    assert network.weight.item() == pytest.approx(expected)


def test_a_loss_that_is_not_finite_stops_the_training_and_the_error_names_the_updates():
    network, optimizer = _problem()

    def step(batch):
        return {"loss": network.weight.sum() / 0}

    records = _fit(step, optimizer, n_updates=4, record_every=2)
    message = "between update 1 and 2 of 4: lower the learning rate"

    with pytest.raises(FloatingPointError, match=message):
        list(records)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (3, 10), (5, 5)])
def test_every_pass_visits_every_sample_once(n, batch_size):
    endless = shuffled_batches(n, batch_size, seeded_generator())
    batches = list(itertools.islice(endless, 3 * n))

    for batch in batches:
        assert len(batch) == batch_size

    # n samples per pass, wherever a batch starts or ends
    every_sample = list(range(n))
    for one_pass in torch.cat(batches).split(n):
        # The last pass may be cut off.
        if len(one_pass) == n:
            assert sorted(one_pass.tolist()) == every_sample


def test_random_batches_are_drawn_with_replacement():
    batches = random_batches(2, 100, seeded_generator())
    batch = next(batches)

    # 100 of two samples: without replacement there would be two.
    assert len(batch) == 100
    assert set(batch.tolist()) == {0, 1}


def test_seeding_is_repeatable_and_leaves_no_trace():
    torch.manual_seed(5)
    with seeded(1):
        first = torch.rand(3)
    after_first = torch.rand(1)

    torch.manual_seed(5)
    with seeded(1):
        second = torch.rand(3)
    after_second = torch.rand(1)

    assert torch.equal(first, second)
    assert torch.equal(after_first, after_second)


@pytest.mark.parametrize("bad", ["linear", ""])
def test_unknown_names_are_refused(bad):
    network = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="known are"):
        learning_rate_factor(0.1, bad)
    with pytest.raises(ValueError, match="known are sgd and adam"):
        make_optimizer(network, algorithm=bad, learning_rate=1, momentum=0, weight_decay=0)


def test_a_state_is_finite_as_long_as_its_loss_and_its_parameters_are():
    network = nn.Linear(2, 1)
    # Buffers may hold infinity by design, as masks do, and a ratio may be undefined.
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
