"""Descriptors and taps: Eq. 4 by a slow reference, default taps, and untraceable networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pu_kd_pipeline.learning.features import (
    FeatureExtractor,
    default_taps,
    teacher_outputs,
    to_float16,
)
from pu_kd_pipeline.learning.networks.build import build_network


def _slow_average(maps):
    """Average (N, C, H, W) maps channel by channel."""
    averages = torch.empty(maps.shape[:2])
    for number, image in enumerate(maps):
        for channel, feature_map in enumerate(image):
            averages[number, channel] = feature_map.mean()
    return averages


def _slow_resnet_descriptor(network, images):
    """Average the output of every stage of a ResNet, without the extractor's taps."""
    maps = network.conv1(images)
    normalized = network.bn1(maps)
    maps = network.relu(normalized)

    averages = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        maps = stage(maps)
        average = _slow_average(maps)
        averages.append(average)
    return torch.cat(averages, dim=1)


@torch.no_grad()
def test_descriptor_is_the_average_of_each_stage_and_logits_are_the_networks():
    network = build_network("cifar_resnet18", 10, 3).eval()
    images = torch.rand(2, 3, 32, 32)
    extractor = FeatureExtractor(network, None, (3, 32, 32))

    descriptor, logits = extractor(images)
    expected_descriptor = _slow_resnet_descriptor(network, images)
    expected_logits = network(images)

    # The extractor may sum in another order, hence the tolerances.
    assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
    assert_close(descriptor, expected_descriptor, rtol=1e-4, atol=1e-5)
    assert descriptor.shape[1] == 64 + 128 + 256 + 512


def test_descriptor_size_is_known_before_any_image():
    network = build_network("lenet5", 10, 1)
    extractor = FeatureExtractor(network, None, (1, 32, 32))

    assert extractor.descriptor_size == 6 + 16 + 120


def test_default_taps_of_a_plain_network_are_the_last_layers_before_each_change_of_resolution():
    vgg = build_network("vgg11", 10, 3)
    taps = default_taps(vgg, (3, 64, 64))

    modules = dict(vgg.named_modules())
    names = list(modules)

    assert len(taps) == 4

    for tap in taps:
        position = names.index(tap)
        following_name = names[position + 1]
        following = modules[following_name]
        assert isinstance(following, nn.MaxPool2d)


def test_taps_may_name_nodes_of_the_graph():
    network = build_network("cifar_resnet18", 10, 3)
    taps = ["layer2.1.relu_1"]
    extractor = FeatureExtractor(network, taps, (3, 32, 32))

    assert extractor.descriptor_size == 128


@pytest.mark.parametrize("tap", ["layr2", "fc.weight.x"])
def test_a_tap_that_is_not_a_layer_is_refused_by_name(tap):
    network = build_network("cifar_resnet18", 10, 3)
    taps = ["layer1", tap]
    expected = f"not a layer of the network: '{tap}'"
    with pytest.raises(ValueError, match=expected):
        FeatureExtractor(network, taps, (3, 32, 32))


def test_the_output_layer_cannot_be_tapped():
    network = build_network("lenet5", 10, 1)
    with pytest.raises(ValueError, match="network's output"):
        FeatureExtractor(network, ["fc2"], (1, 32, 32))


class _Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, images):
        convolved = self.conv(images)
        maps = convolved.relu()
        if maps.sum() > 1e9:  # torch.fx cannot follow a branch on values
            maps = maps * 0
        averages = maps.mean(dim=(2, 3))
        return self.fc(averages)


@torch.no_grad()
def test_a_network_that_cannot_be_traced_is_tapped_by_hooks():
    network = _Untraceable().eval()
    images = torch.rand(3, 1, 8, 8)
    extractor = FeatureExtractor(network, ["conv"], (1, 8, 8))

    descriptor, logits = extractor(images)
    maps = network.conv(images)
    expected_descriptor = maps.mean(dim=(2, 3))
    expected_logits = network(images)

    assert_close(descriptor, expected_descriptor)
    assert_close(logits, expected_logits)


def test_an_extractor_shares_the_weights_of_its_network():
    network = build_network("digits_cnn", 10, 1).train()
    extractor = FeatureExtractor(network, None, (1, 8, 8))
    # By identity: equal values in other tensors would not be trained along.
    shared_parameters = extractor.parameters()
    network_parameters = network.parameters()
    shared_ids = set(map(id, shared_parameters))
    network_ids = set(map(id, network_parameters))

    assert shared_ids == network_ids


def _slow_teacher_outputs(z):
    """Return confidence, entropy, energy and margin of one row of logits, by their definitions."""
    powers = z.exp()
    total = powers.sum()
    probabilities = powers / total
    confidence = probabilities.max()
    log_probabilities = probabilities.log()
    products = probabilities * log_probabilities
    entropy = -products.sum()
    energy = total.log()
    descending = z.sort(descending=True).values
    largest, second, *_ = descending
    margin = largest - second
    return torch.stack([confidence, entropy, energy, margin])


def test_teacher_outputs_match_their_definitions():
    # The second row is a tie between all classes.
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
    outputs = teacher_outputs(logits)
    rows = logits.double()
    expected_rows = [_slow_teacher_outputs(z) for z in rows]
    expected = torch.stack(expected_rows)

    assert_close(outputs.double(), expected, rtol=1e-5, atol=1e-6)


# Half precision ends at 65,504.
def test_huge_descriptors_stay_finite_in_float16():
    huge = torch.tensor([1e9, -1e9])
    stored = to_float16(huge)

    assert stored.isfinite().all()


@pytest.mark.parametrize(
    "architecture", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"]
)
def test_default_taps_reach_into_blocks_that_tracing_does_not_open(architecture):
    network = build_network(architecture, 5, 3)
    extractor = FeatureExtractor(network, None, (3, 64, 64))
    images = torch.rand(2, 3, 64, 64)

    descriptor, logits = extractor(images)
    network.eval()
    expected_logits = network(images)

    assert len(extractor.taps) == 4
    assert descriptor.shape == (2, extractor.descriptor_size)
    assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)


def test_default_taps_take_a_block_as_a_whole_and_not_one_of_its_branches():
    network = build_network("squeezenet1_1", 5, 3)
    taps = default_taps(network, (3, 64, 64))

    assert taps[1:3] == ("features.4", "features.7")  # Fire modules, which concatenate two branches


class _ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.last = nn.Identity()
        self.fc = nn.Linear(6, 3)

    def forward(self, images):
        maps = self.conv(images)
        channels_last = maps.permute(0, 2, 3, 1)
        maps_last = self.last(channels_last)
        averages = maps_last.mean(dim=(1, 2))
        return self.fc(averages)


def test_maps_with_channels_last_are_averaged_over_places_not_over_channels():
    network = _ChannelsLast()
    images = torch.rand(2, 1, 8, 8)
    # Both taps see the same maps, in two orders.
    of_conv = FeatureExtractor(network, ["conv"], (1, 8, 8))
    of_last = FeatureExtractor(network, ["last"], (1, 8, 8))

    channels_first, _ = of_conv(images)
    channels_last, _ = of_last(images)

    assert_close(channels_first, channels_last)


def test_a_transformer_without_maps_is_tapped_at_its_tokens():
    network = build_network("vit_b_16", 5, 3, {"image_size": 32})
    taps = default_taps(network, (3, 32, 32))

    assert taps == ("conv_proj", "encoder")


class _Idle(_Untraceable):  # tracing would drop the layer
    def __init__(self):
        super().__init__()
        self.idle = nn.Identity()


def test_a_layer_that_is_never_called_cannot_be_tapped():
    network = _Idle()
    with pytest.raises(ValueError, match="does not call these layers: idle"):
        FeatureExtractor(network, ["idle"], (1, 8, 8))
