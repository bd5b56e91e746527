"""The features that the PU critic reads: averages of every tap, and the adapter of widths."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pu_kd_pipeline.learning.critic import FeatureAdapter, critic_features
from tests.learning.generators import seeded_generator


def maps(seed: int = 0) -> list[Tensor]:
    """Maps of three taps and three images; the last tap has vectors."""
    generator = seeded_generator(seed)
    shapes = ((3, 4, 5, 2), (3, 6, 2, 2), (3, 3))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def slow_features_of_image(i: int) -> Tensor:
    """Channel averages of every tap, divided by their length, for one image."""
    entries: list[Tensor] = []
    for feature_map in maps():
        channels = feature_map[i]
        averages = torch.stack([channel.sum() / channel.numel() for channel in channels])
        length = averages.square().sum().sqrt()
        entries.append(averages / length)
    return torch.cat(entries)


def test_features_equal_the_slow_ones_and_every_tap_has_norm_one() -> None:
    features = critic_features(maps())
    expected = torch.stack([slow_features_of_image(i) for i in range(3)])

    assert_close(features, expected)

    # Three orthogonal parts of norm one each.
    norm_of_three_taps = torch.full((3,), math.sqrt(3), dtype=torch.float64)
    assert_close(features.norm(dim=1), norm_of_three_taps)


def test_the_scale_of_a_tap_changes_nothing() -> None:
    # The critic must not recognize a network by the size of its activations.
    first, second, third = maps()
    scaled = [0.01 * first, 7.0 * second, 1e3 * third]

    features = critic_features(scaled)
    expected = critic_features([first, second, third])

    assert_close(features, expected)


def test_bf16_maps_are_averaged_in_float32() -> None:
    rounded = maps()[0].bfloat16()
    features = critic_features([rounded])
    expected = critic_features([rounded.float()])

    assert_close(features, expected, rtol=1e-6, atol=1e-6)


def test_gradcheck_of_the_features() -> None:
    first, second, third = maps()
    first.requires_grad_()

    def features(feature_map: Tensor) -> Tensor:
        return critic_features([feature_map, second, third])

    assert torch.autograd.gradcheck(features, first)


def test_the_adapter_acts_on_vectors_as_a_pointwise_convolution_on_maps() -> None:
    adapter = FeatureAdapter([4, 6, 3], [4, 5, 2]).double()
    linear = adapter.layers[1]

    assert isinstance(linear, nn.Linear)

    # The same weights: averaging and a pointwise convolution commute.
    convolution = nn.Conv2d(6, 5, 1).double()
    convolution.weight.data.copy_(linear.weight.data[..., None, None])
    convolution.bias.data.copy_(linear.bias.data)  # type: ignore[union-attr]
    first, second, third = maps()
    adapted_second = convolution(second)
    adapted_third = adapter.layers[2](third)
    features = critic_features([first, second, third], adapter)
    expected = critic_features([first, adapted_second, adapted_third])

    assert_close(features, expected)


def test_tokens_and_maps_with_channels_last_are_averaged_over_their_positions() -> None:
    square = maps()[0][:, :, :2]  # (N, 4, 2, 2)
    tokens = square.flatten(2).transpose(1, 2)
    channels_last = square.permute(0, 2, 3, 1)

    features = critic_features([tokens, channels_last])
    expected = critic_features([square, square])

    assert_close(features, expected)


def test_the_adapter_leaves_equal_widths_alone() -> None:
    adapter = FeatureAdapter([4, 6, 3], [4, 6, 3])
    parameters = list(adapter.parameters())

    adapted = critic_features(maps(), adapter)
    expected = critic_features(maps())

    assert not parameters
    assert_close(adapted, expected)


def test_unusable_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one tap"):
        critic_features([])

    vectors = torch.zeros(3, 4)
    scalars = torch.zeros(3)
    shapes = r"expected \(N, C, H, W\), \(N, T, C\) or \(N, C\)"

    with pytest.raises(ValueError, match=rf"the tap '1' gives \(3,\); {shapes}"):
        critic_features([vectors, scalars])


def test_adapters_of_other_taps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got widths \[4, 6\] and \[4\]"):
        FeatureAdapter([4, 6], [4])

    two_taps = FeatureAdapter([4, 6], [4, 6]).double()
    with pytest.raises(ValueError, match="made for 2 taps, got 3"):
        critic_features(maps(), two_taps)
