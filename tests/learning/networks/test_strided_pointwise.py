"""Networks with narrow, strided 1x1 convolutions train without damaging memory."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from pu_kd_pipeline.devices import channels_last
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.learning.networks.strided_pointwise import faulty_convolutions, guard

TRAINING = """
import torch
from pu_kd_pipeline.devices import channels_last
from pu_kd_pipeline.learning.networks.build import build_network

torch.set_num_threads(1)
network = build_network("cifar_resnet", 10, 3, {"depth": 8, "width": 4}).train()
network = channels_last(network, torch.device("cpu"))
for _ in range(12):
    images = torch.randn(128, 3, 32, 32).to(memory_format=torch.channels_last)
    network(images).square().mean().backward()
"""


def narrow_network() -> nn.Module:
    return build_network("cifar_resnet", 10, 3, {"depth": 8, "width": 4}).eval()


def test_a_narrow_network_trains_in_channels_last_order():
    # In a process of its own, which the fault would end.
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_narrow_strided_pointwise_convolutions_are_guarded():
    assert len(faulty_convolutions(narrow_network())) == 1
    wide = build_network("cifar_resnet", 10, 3, {"depth": 8, "width": 16})
    assert faulty_convolutions(wide) == []


def test_they_read_contiguous_tensors_and_weights():
    network = channels_last(narrow_network(), torch.device("cpu"))
    [layer] = faulty_convolutions(network)
    orders = []

    def note_order(_layer, inputs, _output):
        orders.append(inputs[0].is_contiguous())

    layer.register_forward_hook(note_order)
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    network(images)

    assert orders == [True]
    out_channels, in_channels = layer.weight.shape[:2]
    assert layer.weight.stride() == (in_channels, 1, 1, 1)
    assert out_channels == 2 * in_channels


def test_images_may_be_given_by_the_name_of_the_argument():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1, stride=2)

        def forward(self, images):
            return self.conv(input=images)

    network = Network().eval()
    images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    expected = network(images)
    orders = []

    def note_order(_layer, _inputs, named, _output):
        orders.append(named["input"].is_contiguous())

    guard(network)
    network.conv.register_forward_hook(note_order, with_kwargs=True)
    torch.testing.assert_close(network(images), expected)
    assert orders == [True]


def test_the_order_does_not_change_the_result():
    network = narrow_network()
    images = torch.randn(4, 3, 32, 32)
    expected = network(images)
    in_other_order = images.to(memory_format=torch.channels_last)

    torch.testing.assert_close(network(in_other_order), expected, rtol=1e-4, atol=1e-5)
