"""Averages of weights against sums over all updates, and BatchNorm's statistics against torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.testing import assert_close

from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.weight_average import WeightAverage, reestimate_batch_norm
from tests.learning.generators import seeded_generator


def _network() -> nn.Module:
    with seeded(0):
        return nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(3, 1, 1)
        )


def _change(network: nn.Module, number: int) -> None:
    """Give the network other parameters, as an update does."""
    generator = seeded_generator(number)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def _averaged(network: nn.Module, average: WeightAverage) -> list[torch.Tensor]:
    kept = copy.deepcopy(network.state_dict())
    average.apply()
    values = [parameter.detach().clone() for parameter in network.parameters()]
    network.load_state_dict(kept)
    return values


@pytest.mark.parametrize("decay", [0.5, 0.9, 1.0])
def test_the_average_is_the_weighted_sum_over_the_updates(decay):
    network = _network()
    average = WeightAverage(network, decay=decay, n_skipped=2)
    history = []
    for number in range(7):
        assert average.has_started == (number > 2)
        _change(network, number)
        history.append([parameter.detach().clone() for parameter in network.parameters()])
        average.after_update()

    counted = history[2:]
    weights = [decay**age for age in reversed(range(len(counted)))]
    for position, found in enumerate(_averaged(network, average)):
        expected = sum(
            weight * values[position] for weight, values in zip(weights, counted, strict=True)
        )
        assert_close(found, expected / sum(weights))


def test_without_decay_the_average_is_that_of_torch():
    network = _network()
    average = WeightAverage(network, decay=1.0)
    expected = AveragedModel(network)
    for number in range(5):
        _change(network, number)
        average.after_update()
        expected.update_parameters(network)
    for found, value in zip(_averaged(network, average), expected.parameters(), strict=True):
        assert_close(found, value)


def test_an_average_that_is_loaded_again_continues_as_if_it_had_not_been_stopped():
    network = _network()
    expected = WeightAverage(network, decay=0.9, n_skipped=1)
    found = WeightAverage(network, decay=0.9, n_skipped=1)
    for number in range(6):
        _change(network, number)
        expected.after_update()
        # A new one each time, as in a new process.
        state = copy.deepcopy(found.state_dict())
        found = WeightAverage(network, decay=0.9, n_skipped=1)
        found.load_state_dict(state)
        found.after_update()
    for one, other in zip(_averaged(network, found), _averaged(network, expected), strict=True):
        assert torch.equal(one, other)


def test_a_decay_that_is_none_is_refused():
    with pytest.raises(ValueError, match="decay must be above 0 and at most 1, got 0"):
        WeightAverage(_network(), decay=0)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_statistics_of_batch_norm_are_those_of_the_batches(is_training):
    generator = seeded_generator()
    batches = [torch.randn(8, 2, 6, 6, generator=generator) + 1 for _ in range(5)]
    network = _network().train(is_training)
    network[1].momentum = 0.3
    # Statistics of another network, which must not count.
    network[1].running_mean.fill_(17.0)
    expected = copy.deepcopy(network)
    # Without dropout after it, BatchNorm reads the same in torch's function, which is in training
    # mode as a whole.
    update_bn(batches, expected)

    before = torch.get_rng_state()
    reestimate_batch_norm(network, batches)
    assert torch.equal(torch.get_rng_state(), before)
    assert_close(network[1].running_mean, expected[1].running_mean)
    assert_close(network[1].running_var, expected[1].running_var)
    assert network[1].momentum == 0.3
    assert {module.training for module in network.modules()} == {is_training}
