"""The probe: all indicators against the slow reference, and which of them apply to a network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.learning.relatedness.indicators import (
    BATCHNORM_INDICATORS,
    LATENT_INDICATORS,
    LOGIT_INDICATORS,
    latent_indicators,
)
from pu_kd_pipeline.learning.relatedness.probe import RelatednessProbe
from tests.learning.relatedness.slow_reference import (
    random_images,
    slow_indicators,
    trained_looking,
)

WITHOUT_BATCHNORM = (*LOGIT_INDICATORS, *LATENT_INDICATORS)
SHAPE = (3, 6, 6)  # of the images of TinyNet


class Gate(nn.Module):
    """Scales the channels by a function of their averages; it holds a linear layer."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_channels, n_channels)

    def forward(self, maps: Tensor) -> Tensor:
        averages = maps.mean(dim=(2, 3))
        gate = self.linear(averages).sigmoid()
        return maps * gate[..., None, None]


class TinyNet(nn.Module):
    """Every kind of BatchNorm, a layer called twice, one never called, and several Linear layers.

    Its maps are 6x6, then 3x3; after the hidden linear layer there are no maps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 5, 3, padding=1, stride=2)
        self.bn2 = nn.BatchNorm2d(5, affine=False, eps=0.1)
        self.gate = Gate(5)
        self.hidden = nn.Linear(45, 8)
        self.bn3 = nn.BatchNorm1d(8)
        # Never called in a forward pass.
        self.unused = nn.BatchNorm2d(5)
        self.fc = nn.Linear(8, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images)
        x = self.bn1(x).relu()
        x = self.conv2(x)
        x = self.bn2(x)
        x = self.gate(x)
        # The second call of this layer.
        x = self.bn2(x).relu()
        x = self.hidden(x.flatten(1))
        x = self.bn3(x)
        x = self.fc(x)
        return self.dropout(x)


def tiny_net() -> nn.Module:
    with seeded(0):
        return trained_looking(TinyNet())


def assert_equals_the_slow_reference(
    probe: RelatednessProbe, images: Tensor, head: str | None
) -> None:
    expected = slow_indicators(probe.network, images, head)
    values = probe(images)
    assert values.dtype == torch.float32  # hence the tolerances
    assert_close(values.double(), expected, rtol=2e-4, atol=2e-6)


# --- values

CASES = {
    "tiny": (3, 6, 6),
    "lenet5": (1, 32, 32),
    "digits_cnn": (1, 8, 8),
    "resnet18": (3, 32, 32),
    "mobilenet_v3_small": (3, 32, 32),
    "squeezenet1_1": (3, 64, 64),
    "shufflenet_v2_x0_5": (3, 32, 32),
}
# The layers that give the logits, where it is not "fc".
HEADS = {"lenet5": "fc2", "mobilenet_v3_small": "classifier.3", "squeezenet1_1": None}


def has_batchnorm(network: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in network.modules())


@pytest.mark.parametrize("name", CASES)
def test_indicators_equal_the_slow_reference(name: str) -> None:
    shape = CASES[name]
    if name == "tiny":
        network = tiny_net()
    else:
        with seeded(0):
            network = trained_looking(build_network(name, 5, shape[0]))
    head = HEADS.get(name, "fc")
    expected_names = list(LOGIT_INDICATORS)
    if head is not None:
        expected_names += LATENT_INDICATORS
    if has_batchnorm(network):
        expected_names += BATCHNORM_INDICATORS
    probe = RelatednessProbe(network, shape)
    images = random_images(2, shape)

    assert list(probe.names) == expected_names
    assert_equals_the_slow_reference(probe, images, head)


def test_an_image_gets_the_same_indicators_in_any_batch():
    probe = RelatednessProbe(tiny_net(), SHAPE)
    images = random_images(7, SHAPE)
    values = probe(images)

    order = torch.tensor([4, 2, 0, 6, 1, 5, 3])
    of_permuted = probe(images[order])

    assert_close(of_permuted, values[order])

    # The last part has a single image.
    of_parts = torch.cat([probe(part) for part in images.split(3)])
    assert_close(of_parts, values)

    # Convolutions run other kernels in this layout, hence the tolerances.
    channels_last = images.contiguous(memory_format=torch.channels_last)
    of_channels_last = probe(channels_last)

    assert_close(of_channels_last, values, rtol=1e-4, atol=1e-6)


def test_a_network_in_double_precision_is_read_in_it():
    with seeded(0):
        network = TinyNet().double()
    trained_looking(network)
    images = random_images(2, SHAPE).double()
    expected = slow_indicators(network, images, "fc")
    probe = RelatednessProbe(network, SHAPE)
    values = probe(images)

    # Nearer than float32 could be.
    assert_close(values, expected.float(), rtol=1e-6, atol=1e-7)


# --- which indicators apply


class Transformer(nn.Module):
    """A small vision transformer, with LayerNorm and no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.mixer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.patches(images)
        tokens = maps.flatten(2).transpose(1, 2)
        mixed = self.norm(self.mixer(tokens))
        first_token = mixed[:, 0]
        return self.head(first_token)


def test_a_network_with_layernorm_has_the_indicators_of_its_logits_and_last_layer():
    with seeded(0):
        network = Transformer().eval()
    shape = (3, 8, 8)
    probe = RelatednessProbe(network, shape)
    images = random_images(4, shape)

    assert probe.names == WITHOUT_BATCHNORM
    assert_equals_the_slow_reference(probe, images, "head")


class Pooled(nn.Module):
    """A linear layer whose outputs are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.tokens(images.flatten(1, 2))
        # The logits are averages of the layer's outputs.
        return outputs.mean(dim=1)


def test_a_linear_layer_that_does_not_give_the_logits_is_not_the_last_layer():
    probe = RelatednessProbe(Pooled().eval(), SHAPE)
    assert probe.names == LOGIT_INDICATORS


def test_batchnorm_after_linear_layers_only_has_no_spread():
    layers = (nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    network = trained_looking(nn.Sequential(*layers))
    shape = (3, 2, 2)
    probe = RelatednessProbe(network, shape)
    images = random_images(4, shape)

    # One value per channel and image has a mean but no variance.
    assert probe.names == (*WITHOUT_BATCHNORM, "dms", "dms_aos")
    assert_equals_the_slow_reference(probe, images, "3")


def test_a_batchnorm_without_running_statistics_is_left_out():
    batchnorm = nn.BatchNorm2d(3, track_running_stats=False)
    network = nn.Sequential(batchnorm, nn.Flatten(), nn.Linear(12, 3)).eval()
    probe = RelatednessProbe(network, (3, 2, 2))

    assert probe.names == WITHOUT_BATCHNORM


def test_a_batchnorm_whose_channels_are_all_switched_off_is_left_out():
    batchnorm = trained_looking(nn.BatchNorm2d(6))
    batchnorm.weight.data.zero_()
    network = nn.Sequential(batchnorm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    probe = RelatednessProbe(network.eval(), (6, 5, 5))

    assert probe.names == WITHOUT_BATCHNORM


class Folded(nn.Module):
    """A BatchNorm over tokens that are folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        # BatchNorm gets one row per token and not one per image.
        rows = self.bn(images.reshape(-1, 6))
        tokens = rows.view(len(images), -1, 6)
        averages = tokens.mean(dim=1)
        return self.fc(averages)


def test_a_batchnorm_that_sees_tokens_as_images_is_left_out():
    probe = RelatednessProbe(Folded().eval(), (3, 2, 6))
    assert probe.names == WITHOUT_BATCHNORM


class DeeplySupervised(nn.Module):
    """One last layer for two depths, as in deep supervision."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Linear(12, 5)
        self.late = nn.Linear(5, 5)
        self.fc = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        early = self.early(images.flatten(1))
        self.auxiliary = self.fc(early)  # other inputs and outputs than those of the logits
        late = self.late(early)
        return self.fc(late)


def test_of_a_last_layer_that_is_called_twice_the_call_that_gives_the_logits_counts():
    with seeded(0):
        network = DeeplySupervised().eval()
    shape = (3, 2, 2)
    images = random_images(4, shape)
    early = network.early(images.flatten(1))
    latents = network.late(early)
    classes = network(images).argmax(dim=1)

    expected = latent_indicators(latents, network.fc.weight, classes)
    probe = RelatednessProbe(network, shape)
    values = probe(images)
    found = values[:, len(LOGIT_INDICATORS) :]

    assert_close(found, expected.detach())


# --- side effects and errors


def assert_no_hooks(network: nn.Module) -> None:
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_network_is_left_as_it_was():
    network = tiny_net()
    before = copy.deepcopy(network.state_dict())
    images = random_images(2, SHAPE)
    logits = network(images)
    probe = RelatednessProbe(network, SHAPE)
    values = probe(images)
    logits_afterwards = network(images)

    assert not values.requires_grad
    assert_no_hooks(network)
    assert_close(logits_afterwards, logits, rtol=0, atol=0)
    assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_hooks_are_removed_where_the_network_fails():
    network = tiny_net()
    probe = RelatednessProbe(network, SHAPE)
    images = random_images(2, SHAPE)
    weight = network.fc.weight
    # The forward pass fails in the last layer, after all hooks have run.
    weight.data = weight.data[:, :2]

    with pytest.raises(RuntimeError):
        probe(images)
    assert_no_hooks(network)


def test_images_of_another_shape_are_refused():
    probe = RelatednessProbe(tiny_net(), SHAPE)
    images = random_images(2, (3, 8, 8))

    with pytest.raises(ValueError, match=r"images must be \(N, 3, 6, 6\), got \(2, 3, 8, 8\)"):
        probe(images)


def test_a_network_in_training_mode_is_refused():
    network = tiny_net()
    probe = RelatednessProbe(network, SHAPE)
    images = random_images(2, SHAPE)
    network.train()
    message = "in training mode, where BatchNorm follows the batch: call .eval"

    with pytest.raises(ValueError, match=message):
        probe(images)
    with pytest.raises(ValueError, match=message):
        RelatednessProbe(network, SHAPE)


def test_a_network_that_returns_maps_is_refused():
    convolution = nn.Conv2d(3, 5, 1).eval()
    message = r"returns \(2, 5, 6, 6\) for 2 images; expected \(N, K\) logits"

    with pytest.raises(ValueError, match=message):
        RelatednessProbe(convolution, SHAPE)
