"""Taps and descriptors: Eq. 4 against a slow reference, default layers, and networks that cannot be traced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pu_kd_pipeline.learning.features import FeatureExtractor, default_taps, teacher_outputs, to_float16
from pu_kd_pipeline.learning.networks import build_network


def test_descriptor_is_the_average_of_each_stage_and_logits_are_the_networks():
    network = build_network("cifar_resnet18", 10, 3).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        descriptor, logits = FeatureExtractor(network, None, (3, 32, 32))(images)
        x = network.relu(network.bn1(network.conv1(images)))
        stages = []
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            x = stage(x)
            stages.append(torch.stack([torch.stack([channel.mean() for channel in image]) for image in x]))
        torch.testing.assert_close(descriptor, torch.cat(stages, dim=1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, network(images), rtol=1e-4, atol=1e-5)
    assert descriptor.shape[1] == 64 + 128 + 256 + 512


def test_descriptor_size_is_known_before_any_image():
    assert FeatureExtractor(build_network("lenet5", 10, 1), None, (1, 32, 32)).descriptor_size == 6 + 16 + 120


def test_default_taps_of_a_plain_network_are_the_last_layers_before_each_change_of_resolution():
    vgg = build_network("vgg11", 10, 3)
    taps = default_taps(vgg, (3, 64, 64))
    modules = dict(vgg.named_modules())
    order = [name for name, _ in vgg.named_modules()]
    assert len(taps) == 4
    assert all(isinstance(modules[order[order.index(tap) + 1]], nn.MaxPool2d) for tap in taps)


def test_taps_may_name_nodes_of_the_graph():
    extractor = FeatureExtractor(build_network("cifar_resnet18", 10, 3), ["layer2.1.relu_1"], (3, 32, 32))
    assert extractor.descriptor_size == 128


@pytest.mark.parametrize("tap", ["layr2", "fc.weight.x"])
def test_a_tap_that_is_no_layer_is_refused_by_name(tap):
    with pytest.raises(ValueError, match=f"not a layer of the network: '{tap}'"):
        FeatureExtractor(build_network("cifar_resnet18", 10, 3), ["layer1", tap], (3, 32, 32))


def test_the_output_layer_is_no_tap():
    with pytest.raises(ValueError, match="network's output"):
        FeatureExtractor(build_network("lenet5", 10, 1), ["fc2"], (1, 32, 32))


class _Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, images):
        features = self.conv(images).relu()
        if features.sum() > 1e9:  # torch.fx cannot follow a branch on values
            features = features * 0
        return self.fc(features.mean(dim=(2, 3)))


def test_a_network_that_cannot_be_traced_is_watched_instead():
    network = _Untraceable().eval()
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        descriptor, logits = FeatureExtractor(network, ["conv"], (1, 8, 8))(images)
        torch.testing.assert_close(descriptor, network.conv(images).mean(dim=(2, 3)))
        torch.testing.assert_close(logits, network(images))


def test_extraction_leaves_training_mode_and_shares_weights():
    network = build_network("digits_cnn", 10, 1).train()
    extractor = FeatureExtractor(network, None, (1, 8, 8))
    assert {id(p) for p in extractor.parameters()} == {id(p) for p in network.parameters()}


def test_teacher_outputs_match_their_definitions():
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
    outputs = teacher_outputs(logits)
    for row, z in zip(outputs, logits.double(), strict=True):
        p = z.exp() / z.exp().sum()
        top = z.sort(descending=True).values
        expected = torch.stack([p.max(), -(p * p.log()).sum(), z.exp().sum().log(), top[0] - top[1]])
        torch.testing.assert_close(row.double(), expected, rtol=1e-5, atol=1e-6)


def test_huge_descriptors_stay_finite_in_float16():
    assert to_float16(torch.tensor([1e9, -1e9])).isfinite().all()
