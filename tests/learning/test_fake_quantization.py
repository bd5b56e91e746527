"""The rounding of int8 in the forward pass, and that training with it loses less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pu_kd_pipeline.learning.fake_quantization import (
    input_ranges,
    round_activations,
    with_rounding,
)


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    ).eval()


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20),
    lowest=st.floats(-50, 0, width=32),
    highest=st.floats(0, 50, width=32),
)
def test_activations_are_rounded_to_256_levels_as_a_slow_loop_does(values, lowest, highest):
    found = round_activations(torch.tensor(values), lowest, highest).tolist()
    scale = (highest - lowest) / 255
    if scale < torch.finfo(torch.float32).tiny:
        assert found == values
        return
    zero = round(-lowest / scale)
    for value, rounded in zip(values, found, strict=True):
        # Between two levels, float32 may round to either.
        level = (np.clip(round(value / scale), -zero, 255 - zero)) * scale
        assert abs(rounded - level) <= scale * 1.001
        inside = -zero * scale <= value <= (255 - zero) * scale
        if inside:
            assert abs(rounded - value) <= scale / 2 * 1.01 + 1e-6
    assert round_activations(torch.zeros(1), lowest, highest).item() == 0


def test_ranges_hold_every_input_and_zero():
    network = small_network()
    images = torch.rand(8, 1, 6, 6) + 1
    ranges = input_ranges(network, images.split(3))
    assert set(ranges) == {"0", "4"}
    assert ranges["0"] == (0.0, images.max().item())
    hidden = network[:4](images)
    assert ranges["4"] == pytest.approx((0.0, hidden.max().item()))


def test_weights_have_a_scale_per_channel_and_are_as_before_afterwards():
    network = small_network()
    images = torch.rand(8, 1, 6, 6)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    logits = network(images)
    with with_rounding(network, input_ranges(network, [images])):
        for layer in (network[0], network[4]):
            name = "0.weight" if layer is network[0] else "4.weight"
            exact = before[name]
            largest = exact.abs().flatten(1).amax(1)
            levels = layer.weight.flatten(1) / largest[:, None] * 64
            torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
            assert levels.abs().amax(1).tolist() == pytest.approx([64] * len(levels))
        rounded = network(images)
        assert not torch.equal(rounded, logits)
        rounded.sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
    assert network.state_dict().keys() == before.keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(network(images), logits)


def test_a_layer_of_zeros_and_one_without_a_range_are_left_alone():
    network = small_network()
    with torch.no_grad():
        network[0].weight.zero_()
    images = torch.rand(2, 1, 6, 6)
    with with_rounding(network, {"0": (0.0, 1.0)}):
        assert torch.isfinite(network(images)).all()
        assert network[0].weight.abs().max() == 0
        assert not hasattr(network[4], "parametrizations")


@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.weight_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_a_weight_that_is_computed_from_others_is_not_rounded_and_kept(norm):
    network = nn.Sequential(norm(nn.Linear(4, 3)), nn.Linear(3, 2)).eval()
    inputs = torch.rand(5, 4)
    logits = network(inputs)
    names = set(network.state_dict())
    with with_rounding(network, input_ranges(network, [inputs])):
        network(inputs).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
    assert set(network.state_dict()) == names
    torch.testing.assert_close(network(inputs), logits)
