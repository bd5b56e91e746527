"""Descriptors and taps: Eq. 4 by a slow reference, default taps, and untraceable networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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


@torch.no_grad()
def test_descriptor_is_the_average_of_each_stage_and_logits_are_the_networks():
    network = build_network("cifar_resnet18", 10, 3).eval()
    images = torch.rand(2, 3, 32, 32)
    descriptor, logits = FeatureExtractor(network, None, (3, 32, 32))(images)
    torch.testing.assert_close(logits, network(images), rtol=1e-4, atol=1e-5)

    maps = network.relu(network.bn1(network.conv1(images)))
    averages = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        maps = stage(maps)
        averages.append(_slow_average(maps))
    torch.testing.assert_close(descriptor, torch.cat(averages, dim=1), rtol=1e-4, atol=1e-5)
    assert descriptor.shape[1] == 64 + 128 + 256 + 512


def test_descriptor_size_is_known_before_any_image():
    extractor = FeatureExtractor(build_network("lenet5", 10, 1), None, (1, 32, 32))
    assert extractor.descriptor_size == 6 + 16 + 120


def test_default_taps_of_a_plain_network_are_the_last_layers_before_each_change_of_resolution():
    vgg = build_network("vgg11", 10, 3)
    taps = default_taps(vgg, (3, 64, 64))
    modules = dict(vgg.named_modules())
    names = list(modules)
    assert len(taps) == 4
    for tap in taps:
        following = names[names.index(tap) + 1]
        assert isinstance(modules[following], nn.MaxPool2d)


def test_taps_may_name_nodes_of_the_graph():
    network = build_network("cifar_resnet18", 10, 3)
    extractor = FeatureExtractor(network, ["layer2.1.relu_1"], (3, 32, 32))
    assert extractor.descriptor_size == 128


@pytest.mark.parametrize("tap", ["layr2", "fc.weight.x"])
def test_a_tap_that_is_not_a_layer_is_refused_by_name(tap):
    with pytest.raises(ValueError, match=f"not a layer of the network: '{tap}'"):
        FeatureExtractor(build_network("cifar_resnet18", 10, 3), ["layer1", tap], (3, 32, 32))


def test_the_output_layer_cannot_be_tapped():
    with pytest.raises(ValueError, match="network's output"):
        FeatureExtractor(build_network("lenet5", 10, 1), ["fc2"], (1, 32, 32))


class _Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, images):
        features = self.conv(images).relu()
        if features.sum() > 1e9:  # torch.fx cannot follow a branch on values
            features = features * 0
        return self.fc(features.mean(dim=(2, 3)))


def test_a_network_that_cannot_be_traced_is_tapped_by_hooks():
    network = _Untraceable().eval()
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        descriptor, logits = FeatureExtractor(network, ["conv"], (1, 8, 8))(images)
        torch.testing.assert_close(descriptor, network.conv(images).mean(dim=(2, 3)))
        torch.testing.assert_close(logits, network(images))


def test_an_extractor_shares_the_weights_of_its_network():
    network = build_network("digits_cnn", 10, 1).train()
    extractor = FeatureExtractor(network, None, (1, 8, 8))
    assert set(map(id, extractor.parameters())) == set(map(id, network.parameters()))


def test_teacher_outputs_match_their_definitions():
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
    outputs = teacher_outputs(logits)
    for row, z in zip(outputs, logits.double(), strict=True):
        probabilities = z.exp() / z.exp().sum()
        confidence = probabilities.max()
        entropy = -(probabilities * probabilities.log()).sum()
        energy = z.exp().sum().log()
        descending = z.sort(descending=True).values
        margin = descending[0] - descending[1]
        expected = torch.stack([confidence, entropy, energy, margin])
        torch.testing.assert_close(row.double(), expected, rtol=1e-5, atol=1e-6)


# Half precision ends at 65,504.
def test_huge_descriptors_stay_finite_in_float16():
    assert to_float16(torch.tensor([1e9, -1e9])).isfinite().all()


@pytest.mark.parametrize(
    "architecture", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"]
)
def test_default_taps_reach_into_blocks_that_tracing_does_not_open(architecture):
    network = build_network(architecture, 5, 3)
    extractor = FeatureExtractor(network, None, (3, 64, 64))
    images = torch.rand(2, 3, 64, 64)
    descriptor, logits = extractor(images)
    assert len(extractor.taps) == 4
    assert descriptor.shape == (2, extractor.descriptor_size)
    torch.testing.assert_close(logits, network.eval()(images), rtol=1e-4, atol=1e-5)


def test_default_taps_take_a_block_as_a_whole_and_not_one_of_its_branches():
    taps = default_taps(build_network("squeezenet1_1", 5, 3), (3, 64, 64))
    assert taps[1:3] == ("features.4", "features.7")  # Fire modules, which concatenate two branches


class _ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.last = nn.Identity()
        self.fc = nn.Linear(6, 3)

    def forward(self, images):
        channels_last = self.conv(images).permute(0, 2, 3, 1)
        return self.fc(self.last(channels_last).mean(dim=(1, 2)))


def test_maps_with_channels_last_are_averaged_over_places_not_over_channels():
    network = _ChannelsLast()
    images = torch.rand(2, 1, 8, 8)
    # Both taps see the same maps, in two orders.
    channels_first, _ = FeatureExtractor(network, ["conv"], (1, 8, 8))(images)
    channels_last, _ = FeatureExtractor(network, ["last"], (1, 8, 8))(images)
    torch.testing.assert_close(channels_first, channels_last)


def test_a_transformer_without_maps_is_tapped_at_its_tokens():
    taps = default_taps(build_network("vit_b_16", 5, 3, {"image_size": 32}), (3, 32, 32))
    assert taps == ("conv_proj", "encoder")


class _Idle(_Untraceable):  # tracing would drop the layer
    def __init__(self):
        super().__init__()
        self.idle = nn.Identity()


def test_a_layer_that_is_never_called_cannot_be_tapped():
    with pytest.raises(ValueError, match="does not call these layers: idle"):
        FeatureExtractor(_Idle(), ["idle"], (1, 8, 8))
