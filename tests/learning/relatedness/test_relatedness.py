"""Relatedness: every indicator against slow references, its invariances, the calibrated sum, and sampling by it."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.loop import fit, make_optimizer, seeded, shuffled_batches
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.learning.networks.lenet import digits_cnn
from pu_kd_pipeline.learning.relatedness.calibration import (
    NoiseCalibration,
    calibrate_on_noise,
    one_class_sum,
    uniform_noise,
)
from pu_kd_pipeline.learning.relatedness.indicators import (
    BATCHNORM_INDICATORS,
    INDICATORS,
    LATENT_INDICATORS,
    LOGIT_INDICATORS,
    batchnorm_sums,
    chi_square_range,
    latent_indicators,
    logit_indicators,
)
from pu_kd_pipeline.learning.relatedness.probe import RelatednessProbe
from pu_kd_pipeline.learning.relatedness.sampling import (
    effective_sample_size,
    preferential_batches,
    sampling_probabilities,
)

WITHOUT_BATCHNORM = (*LOGIT_INDICATORS, *LATENT_INDICATORS)


class TinyNet(nn.Module):
    """Every kind of BatchNorm, a layer called twice, one that is never called, and Linear layers that are not the last.

    Its maps are 6x6, then 3x3; behind the hidden linear layer there are no maps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = (
            nn.Conv2d(5, 5, 3, padding=1, stride=2),
            nn.BatchNorm2d(5, affine=False, eps=0.1),
        )
        self.gate, self.hidden, self.bn3 = nn.Linear(5, 5), nn.Linear(45, 8), nn.BatchNorm1d(8)
        self.unused, self.fc, self.dropout = nn.BatchNorm2d(5), nn.Linear(8, 4), nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn1(self.conv1(images)).relu()
        x = self.bn2(self.conv2(x))
        x = self.bn2(x * self.gate(x.mean(dim=(2, 3))).sigmoid()[..., None, None]).relu()
        x = self.bn3(self.hidden(x.flatten(1)))
        return self.dropout(self.fc(x))


def trained_looking(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorm statistics and weights that are not those of a fresh network, and switch some channels off."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 2)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.2)
            if module.weight is not None:
                module.weight.data.copy_(torch.randn(module.num_features, generator=generator))
                module.weight.data[1] = 9e-5
                module.weight.data[-1] = -9e-5
                module.bias.data.copy_(torch.randn(module.num_features, generator=generator))
    return network.eval()


def random_images(n: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


# --- the slow references, written from the definitions ----------------------------------------------------------------


def slow_logit_indicators(z: list[float]) -> list[float]:
    def softmax(temperature: float) -> list[float]:
        powers = [math.exp((value - max(z)) / temperature) for value in z]
        return [power / sum(powers) for power in powers]

    p = softmax(1.0)
    entropy = -sum(p_k * math.log(p_k) for p_k in p if p_k > 0)
    return [1 - max(p), entropy, 1 - max(softmax(1000.0))]


def slow_latent_indicators(u: list[float], row: list[float]) -> list[float]:
    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    def length(a: list[float]) -> float:
        return math.sqrt(dot(a, a))

    def cosine(a: list[float], b: list[float]) -> float:
        return dot(a, b) / (length(a) * length(b)) if length(a) * length(b) > 0 else 0.0

    u_plus = [x if w > 0 else 0.0 for x, w in zip(u, row, strict=True)]
    row_plus = [max(w, 0.0) for w in row]
    act, act_plus = -dot(u, row), -dot(u_plus, row_plus)
    ang = 1 - cosine(u, row)
    ang_plus = 1 - (1 - ang) * act_plus / act
    ang_plus_plus = 1 - cosine(u_plus, row_plus)
    return [
        -length(u),
        act,
        act / length(row),
        ang,
        -length(u_plus),
        act_plus,
        ang_plus,
        ang_plus_plus,
    ]


def slow_batchnorm_indicators(layers: list[tuple[nn.Module, Tensor]]) -> list[float]:
    """From the inputs of one image to every BatchNorm call, (C, H, W) or (C,)."""
    per_channel: dict[str, list[float]] = {name: [] for name in BATCHNORM_INDICATORS}
    for layer, maps in layers:
        for channel in range(layer.num_features):
            if layer.weight is not None and abs(layer.weight[channel].item()) < 1e-4:
                continue
            mean, var = layer.running_mean[channel].item(), layer.running_var[channel].item()
            a = [(x - mean) / math.sqrt(var + layer.eps) for x in maps[channel].flatten().tolist()]
            n, m = len(a), math.fsum(a) / len(a)
            per_channel["dms"].append(m**2)
            per_channel["dms_aos"].append(math.fsum(x**2 for x in a) / n)
            if n > 1:
                variance = math.fsum((x - m) ** 2 for x in a) / (n - 1)
                per_channel["dss"].append((math.sqrt(variance) - 1) ** 2)
                per_channel["dss_ext"].append(
                    not 0.05 <= stats.chi2.cdf((n - 1) * variance, n - 1) <= 0.95
                )
    return [sum(values) / len(values) for values in per_channel.values() if values]


def slow_indicators(network: nn.Module, images: Tensor, head: str | None) -> Tensor:
    """One image at a time, in float64."""
    network, rows = copy.deepcopy(network).double(), []
    for image in images.double():
        layers: list[tuple[nn.Module, Tensor]] = []
        latents: list[Tensor] = []
        for name, module in network.named_modules():
            if name == head:
                module.register_forward_pre_hook(
                    lambda _m, x, latents=latents: latents.append(x[0][0])
                )
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(
                    lambda m, x, layers=layers: layers.append((m, x[0][0].clone()))
                )
        with torch.no_grad():
            z = network(image[None])[0].tolist()
        row = slow_logit_indicators(z)
        if head is not None:
            weight = dict(network.named_modules())[head].weight
            row += slow_latent_indicators(latents[0].tolist(), weight[z.index(max(z))].tolist())
        rows.append(row + slow_batchnorm_indicators(layers))
    return torch.tensor(rows, dtype=torch.float64)


# --- indicators -------------------------------------------------------------------------------------------------------


def test_there_are_fifteen_indicators():
    assert INDICATORS == (
        "mp", "h", "t1000", "norm", "act", "proj", "ang", "norm_plus", "act_plus", "ang_plus", "ang_plus_plus",
        "dms", "dms_aos", "dss", "dss_ext",
    )  # fmt: skip


CASES = {
    "tiny": (3, 6, 6),
    "lenet5": (1, 32, 32),
    "digits_cnn": (1, 8, 8),
    "resnet18": (3, 32, 32),
    "mobilenet_v3_small": (3, 32, 32),
    "squeezenet1_1": (3, 64, 64),
    "shufflenet_v2_x0_5": (3, 32, 32),
}
HEADS = {"lenet5": "fc2", "mobilenet_v3_small": "classifier.3", "squeezenet1_1": None}


@pytest.mark.parametrize("name", CASES)
def test_indicators_equal_the_slow_reference(name: str) -> None:
    shape = CASES[name]
    with seeded(0):
        network = trained_looking(TinyNet() if name == "tiny" else build_network(name, 5, shape[0]))
    images = random_images(2, shape)
    probe, expected = (
        RelatednessProbe(network, shape),
        slow_indicators(network, images, HEADS.get(name, "fc")),
    )
    has_batchnorm = any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()
    )
    known = LOGIT_INDICATORS if HEADS.get(name, "fc") is None else WITHOUT_BATCHNORM
    assert probe.names == (*known, *(BATCHNORM_INDICATORS if has_batchnorm else ()))
    torch.testing.assert_close(probe(images).double(), expected, rtol=2e-4, atol=2e-6)
    assert probe(images).dtype == torch.float32


def test_a_network_with_layernorm_has_the_indicators_of_its_logits_and_last_layer():
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.mixer = (
                nn.Conv2d(3, 8, 4, 4),
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            )
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(
                self.norm(self.mixer(self.patches(images).flatten(2).transpose(1, 2)))[:, 0]
            )

    with seeded(0):
        network = Transformer().eval()
    images = random_images(4, (3, 8, 8))
    probe = RelatednessProbe(network, (3, 8, 8))
    assert probe.names == WITHOUT_BATCHNORM
    torch.testing.assert_close(
        probe(images).double(), slow_indicators(network, images, "head"), rtol=2e-4, atol=2e-6
    )


def test_a_linear_layer_that_does_not_give_the_logits_is_not_the_last_layer():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Linear(6, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.tokens(images.flatten(1, 2)).mean(dim=1)

    assert RelatednessProbe(Pooled().eval(), (3, 6, 6)).names == LOGIT_INDICATORS


def test_batchnorm_behind_linear_layers_alone_has_no_spread():
    network = trained_looking(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    )
    images = random_images(4, (3, 2, 2))
    probe = RelatednessProbe(network, (3, 2, 2))
    assert probe.names == (*WITHOUT_BATCHNORM, "dms", "dms_aos")
    torch.testing.assert_close(
        probe(images).double(), slow_indicators(network, images, "3"), rtol=2e-4, atol=2e-6
    )


def test_a_batchnorm_without_statistics_of_its_own_is_left_out():
    follower = nn.BatchNorm2d(3, track_running_stats=False)
    network = nn.Sequential(follower, nn.Flatten(), nn.Linear(12, 3)).eval()
    assert RelatednessProbe(network, (3, 2, 2)).names == WITHOUT_BATCHNORM


def test_of_a_last_layer_that_is_called_twice_the_call_that_gives_the_logits_counts():
    class Supervised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late, self.fc = nn.Linear(12, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, images: Tensor) -> Tensor:
            early = self.early(images.flatten(1))
            self.auxiliary = self.fc(early)
            return self.fc(self.late(early))

    with seeded(0):
        network = Supervised().eval()
    images = random_images(4, (3, 2, 2))
    latents = network.late(network.early(images.flatten(1)))
    expected = latent_indicators(latents, network.fc.weight, network(images).argmax(dim=1))
    torch.testing.assert_close(
        RelatednessProbe(network, (3, 2, 2))(images)[:, 3:], expected.detach()
    )


def test_a_batchnorm_that_sees_tokens_as_images_is_left_out():
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.fc = nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.bn(images.reshape(-1, 6)).view(len(images), -1, 6).mean(dim=1))

    assert RelatednessProbe(Folded().eval(), (3, 2, 6)).names == WITHOUT_BATCHNORM


def test_channels_that_are_switched_off_do_not_count_however_wild():
    layer, maps = trained_looking(nn.BatchNorm2d(6)), random_images(4, (6, 5, 5))
    sums, n_channels = batchnorm_sums(layer, maps)
    maps[:, [1, 5]] = math.nan
    wild_sums, _ = batchnorm_sums(layer, maps)
    torch.testing.assert_close(wild_sums, sums, rtol=0, atol=0)
    assert n_channels.tolist() == [4] * 4
    layer.weight.data.zero_()
    assert batchnorm_sums(layer, maps)[1].tolist() == [0] * 4
    network = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    assert RelatednessProbe(network, (6, 5, 5)).names == WITHOUT_BATCHNORM


def test_maps_that_match_the_statistics_are_related_and_others_are_not():
    layer, generator = nn.BatchNorm2d(50).eval(), torch.Generator().manual_seed(0)
    normal = torch.randn(20, 50, 16, 16, generator=generator)
    matching, shifted, spread, flat = (
        (sums / n_channels[:, None]).mean(dim=1)
        for sums, n_channels in (
            batchnorm_sums(layer, x) for x in (normal, normal + 3, normal * 2, normal * 0)
        )
    )
    assert matching[[0, 2]].max() < 0.01
    assert matching[1].item() == pytest.approx(1, abs=0.01)
    assert matching[3].item() == pytest.approx(
        0.1, abs=0.03
    )  # 5 % on either side of the chi-square range
    assert shifted[[0, 1]].tolist() == pytest.approx([9, 10], rel=0.02)
    torch.testing.assert_close(shifted[[2, 3]], matching[[2, 3]], rtol=0.01, atol=1e-5)
    assert spread[[2, 3]].tolist() == pytest.approx([1, 1], rel=0.02)
    assert flat[[2, 3]].tolist() == pytest.approx([1, 1], rel=1e-4)


@pytest.mark.parametrize("maps_dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_in_float32(maps_dtype: torch.dtype) -> None:
    layer, maps = trained_looking(nn.BatchNorm2d(6)), random_images(4, (6, 5, 5)).to(maps_dtype)
    halves, singles = batchnorm_sums(layer, maps)[0], batchnorm_sums(layer, maps.float())[0]
    torch.testing.assert_close(halves, singles, rtol=0, atol=0)
    assert logit_indicators(maps[0, 0]).dtype == torch.float32


def test_far_from_zero_the_spread_keeps_its_digits():
    layer, maps = nn.BatchNorm2d(3).eval(), 2 * random_images(2, (3, 9, 9))
    near, far = (batchnorm_sums(layer, maps + shift)[0][2] for shift in (0, 1000))
    torch.testing.assert_close(far, near, rtol=1e-3, atol=0)


@pytest.mark.parametrize("degrees_of_freedom", [1, 2, 3, 15, 255, 1023, 12_543, 50_175])
def test_chi_square_range_is_scipys(degrees_of_freedom: int) -> None:
    expected = stats.chi2.ppf([0.05, 0.95], degrees_of_freedom)
    assert chi_square_range(degrees_of_freedom) == pytest.approx(expected.tolist(), rel=1e-6)


logit_rows = st.lists(st.lists(st.floats(-60, 60), min_size=4, max_size=4), min_size=1, max_size=4)


@given(rows=logit_rows, shift=st.floats(-50, 50))
def test_logit_indicators_are_bounded_and_do_not_see_a_constant(
    rows: list[list[float]], shift: float
) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    values = logit_indicators(logits)
    torch.testing.assert_close(
        values, torch.tensor([slow_logit_indicators(row) for row in rows]).double()
    )
    torch.testing.assert_close(logit_indicators(logits + shift), values)
    assert (values >= 0).all()
    assert (values <= torch.tensor([0.75, math.log(4), 0.75]) + 1e-6).all()


def test_confident_logits_are_told_apart_where_one_minus_the_maximum_is_zero():
    logits = torch.tensor([[20.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
    assert (1 - logits.softmax(dim=1).amax(dim=1)).tolist() == [0, 0]
    assert logit_indicators(logits)[:, 0].tolist() == pytest.approx(
        [2 * math.exp(-20), 2 * math.exp(-40)], rel=1e-5
    )


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
def test_lengths_scale_with_the_latents_and_angles_do_not(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    latents, weight = (torch.randn(n, 7, generator=generator, dtype=torch.float64) for n in (6, 4))
    classes = (latents @ weight.T).argmax(dim=1)
    values, scaled = (latent_indicators(u, weight, classes) for u in (latents, scale * latents))
    is_angle = torch.tensor([name.startswith("ang") for name in LATENT_INDICATORS])
    torch.testing.assert_close(scaled[:, ~is_angle], scale * values[:, ~is_angle])
    torch.testing.assert_close(scaled[:, is_angle], values[:, is_angle])
    torch.testing.assert_close(
        latent_indicators(latents, scale * weight, classes)[:, is_angle], values[:, is_angle]
    )
    assert (values[:, is_angle] >= 0).all()
    assert (values[:, is_angle] <= 2).all()
    for u, c, row in zip(latents, classes, values, strict=True):
        expected = slow_latent_indicators(u.tolist(), weight[c].tolist())
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64))


def test_latents_along_their_row_have_no_angle_and_zero_has_a_right_one():
    weight = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])
    values = dict(
        zip(
            LATENT_INDICATORS, latent_indicators(2 * weight, weight, torch.arange(3)).T, strict=True
        )
    )
    assert values["norm"].tolist() == pytest.approx([-10, 0, -math.sqrt(12)])
    assert values["act"].tolist() == pytest.approx([-50, 0, -6])
    assert values["proj"].tolist() == pytest.approx([-10, 0, -math.sqrt(12)])
    assert values["ang"].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert values["norm_plus"].tolist() == [*values["proj"].tolist()[:2], 0]
    assert values["ang_plus"].tolist() == pytest.approx([0, 1, 1], abs=1e-6)
    assert values["ang_plus_plus"].tolist() == pytest.approx([0, 1, 1], abs=1e-6)


def test_latents_whose_weight_is_zero_or_negative_are_masked():
    weight, latents = torch.tensor([[3.0, 0.0, -2.0]]), torch.tensor([[4.0, 50.0, 60.0]])
    values = latent_indicators(latents, weight, torch.tensor([0]))
    assert values[0, 4:6].tolist() == [-4, -12]


def test_an_image_is_told_the_same_in_any_batch():
    with seeded(0):
        network = trained_looking(TinyNet())
    probe, images = RelatednessProbe(network, (3, 6, 6)), random_images(7, (3, 6, 6))
    values, order = probe(images), torch.tensor([4, 2, 0, 6, 1, 5, 3])
    torch.testing.assert_close(probe(images[order]), values[order])
    torch.testing.assert_close(torch.cat([probe(part) for part in images.split(3)]), values)
    channels_last = probe(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, values, rtol=1e-4, atol=1e-6)


def test_the_network_is_left_as_it_was():
    with seeded(0):
        network = trained_looking(TinyNet())
    before, images = copy.deepcopy(network.state_dict()), random_images(2, (3, 6, 6))
    logits = network(images)
    values = RelatednessProbe(network, (3, 6, 6))(images)
    assert not values.requires_grad
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.modules()
    )
    torch.testing.assert_close(network(images), logits, rtol=0, atol=0)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_a_network_in_double_precision_is_read_in_it():
    with seeded(0):
        network = trained_looking(TinyNet().double())
    images = random_images(2, (3, 6, 6)).double()
    expected = slow_indicators(network, images, "fc")
    torch.testing.assert_close(
        RelatednessProbe(network, (3, 6, 6))(images), expected.float(), rtol=1e-6, atol=1e-7
    )


def test_hooks_are_removed_where_the_network_fails():
    network = trained_looking(TinyNet())
    probe = RelatednessProbe(network, (3, 6, 6))
    network.fc.weight.data = network.fc.weight.data[:, :2]
    with pytest.raises(RuntimeError):
        probe(random_images(2, (3, 6, 6)))
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.modules()
    )


def test_what_a_probe_cannot_read_is_refused():
    network = trained_looking(TinyNet())
    probe = RelatednessProbe(network, (3, 6, 6))
    with pytest.raises(ValueError, match=r"images must be \(N, 3, 6, 6\), got \(2, 3, 8, 8\)"):
        probe(random_images(2, (3, 8, 8)))
    network.train()
    for refused in (
        lambda: probe(random_images(2, (3, 6, 6))),
        lambda: RelatednessProbe(network, (3, 6, 6)),
    ):
        with pytest.raises(
            ValueError, match=r"in training mode, where BatchNorm follows the batch: call .eval"
        ):
            refused()
    with pytest.raises(
        ValueError, match=r"returns \(2, 5, 6, 6\) for 2 images; expected \(N, K\) logits"
    ):
        RelatednessProbe(nn.Conv2d(3, 5, 1).eval(), (3, 6, 6))


# --- 1C-Sum -----------------------------------------------------------------------------------------------------------


def some_values(n: int = 50, seed: int = 0) -> Tensor:
    return 3 * torch.randn(n, len(INDICATORS), generator=torch.Generator().manual_seed(seed)) + 7


def test_the_sum_is_the_slow_one():
    noise, values = some_values(), some_values(8, seed=1) * 2
    calibration = NoiseCalibration.of(INDICATORS, noise)
    expected = []
    for row in values.tolist():
        total = 0.0
        for column, x in enumerate(row):
            reference = noise[:, column].tolist()
            mean = sum(reference) / len(reference)
            std = math.sqrt(sum((y - mean) ** 2 for y in reference) / len(reference))
            total += min(max((x - mean) / std, -1.5), 1.5)
        expected.append(total)
    sums = one_class_sum(values, calibration, clip=1.5)
    torch.testing.assert_close(
        sums, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )
    assert (sums.abs() <= 1.5 * len(INDICATORS)).all()


def test_the_sum_does_not_see_the_units_of_an_indicator():
    noise, values = some_values(), some_values(8, seed=1)
    scale, shift = torch.linspace(0.1, 10, len(INDICATORS)), torch.linspace(-5, 5, len(INDICATORS))
    sums = one_class_sum(values, NoiseCalibration.of(INDICATORS, noise))
    changed = one_class_sum(
        values * scale + shift, NoiseCalibration.of(INDICATORS, noise * scale + shift)
    )
    torch.testing.assert_close(changed, sums, rtol=1e-4, atol=1e-4)


def test_noise_sums_to_zero_on_average():
    noise = some_values()
    sums = one_class_sum(noise, NoiseCalibration.of(INDICATORS, noise), clip=math.inf)
    assert sums.mean().item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, -3e5])
def test_an_indicator_without_spread_on_noise_counts_nothing_there_and_the_clip_elsewhere(
    constant: float,
) -> None:
    calibration = NoiseCalibration.of(("dss_ext",), torch.full((1000, 1), constant))
    values = torch.tensor([[constant], [constant * 0.9 - 0.1], [constant * 1.1 + 1.0]])
    expected = [0.0, -10.0, 10.0] if constant >= 0 else [0.0, 10.0, -10.0]
    assert one_class_sum(values, calibration).tolist() == pytest.approx(expected, abs=1.0)
    assert one_class_sum(values[:1], calibration).item() == 0


def test_rounding_is_no_spread():
    constant = torch.full((100, 1), 0.1)
    above = torch.nextafter(constant[:1], torch.tensor(1.0))
    sums = one_class_sum(torch.cat([constant[:1], above]), NoiseCalibration.of(("dss",), constant))
    assert sums[0] == 0
    assert 0 < sums[1] <= 1


def test_a_calibration_survives_json_in_any_order():
    calibration = NoiseCalibration.of(INDICATORS, some_values())
    content = json.loads(json.dumps(calibration.to_dict(), sort_keys=True))
    assert list(content) != list(INDICATORS)
    assert NoiseCalibration.from_dict(content) == calibration
    with pytest.raises(
        ValueError, match="the calibration holds mpp; the indicators are mp, h, t1000"
    ):
        NoiseCalibration.from_dict({"mpp": {"mean": 0.0, "std": 1.0}})


def test_values_that_do_not_fit_are_refused():
    calibration = NoiseCalibration.of(("mp", "h"), torch.rand(5, 2))
    with pytest.raises(
        ValueError, match=r"values must be \(N, 2\), one column for each indicator, got \(3, 4\)"
    ):
        one_class_sum(torch.rand(3, 4), calibration)
    with pytest.raises(ValueError, match="h of 2 of 3 images are not finite"):
        one_class_sum(torch.tensor([[0.0, math.nan], [1.0, math.inf], [0.0, 0.0]]), calibration)
    with pytest.raises(ValueError, match="clip must be positive, got 0"):
        one_class_sum(torch.rand(3, 2), calibration, clip=0)
    with pytest.raises(ValueError, match="at least one noise image"):
        NoiseCalibration.of(("mp", "h"), torch.rand(0, 2))


def test_noise_is_uniform_over_all_gray_levels_and_repeats_with_the_generator():
    first, second = (
        uniform_noise(40, (3, 16, 16), torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert first.dtype == torch.uint8
    assert first.shape == (40, 3, 16, 16)
    assert torch.equal(first, second)
    counts = first.flatten().bincount(minlength=256)
    assert stats.chisquare(counts.tolist()).pvalue > 1e-3


def test_calibration_is_over_all_batches_of_noise():
    network = trained_looking(digits_cnn(5, width=4))
    probe, seen = RelatednessProbe(network, (1, 8, 8)), []

    def normalize(images: Tensor) -> Tensor:
        seen.append(images)
        return images / 255

    calibration = calibrate_on_noise(
        probe, normalize, generator=torch.Generator().manual_seed(0), n_images=25, batch_size=10
    )
    assert [len(images) for images in seen] == [10, 10, 5]
    expected = NoiseCalibration.of(probe.names, probe(torch.cat(seen) / 255))
    assert calibration.names == expected.names
    assert calibration.means == pytest.approx(expected.means, rel=1e-5)
    assert calibration.stds == pytest.approx(expected.stds, rel=1e-3, abs=1e-7)
    with pytest.raises(
        ValueError, match="n_images and batch_size must be at least 1, got 0 and 10"
    ):
        calibrate_on_noise(probe, normalize, generator=torch.Generator(), n_images=0, batch_size=10)


# --- preferential sampling --------------------------------------------------------------------------------------------

pools = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40).map(
    lambda x: torch.tensor(x, dtype=torch.float64)
)


@given(sums=pools, temperature=st.floats(1e-3, 1e3), floor=st.floats(0, 1))
def test_probabilities_sum_to_one_keep_the_floor_and_fall_with_the_sum(
    sums: Tensor, temperature: float, floor: float
) -> None:
    probabilities = sampling_probabilities(sums, temperature=temperature, floor=floor)
    assert probabilities.dtype == torch.float64
    assert probabilities.sum().item() == pytest.approx(1)
    assert (probabilities >= floor / len(sums)).all()
    assert (probabilities[sums.argsort()].diff() <= 0).all()
    assert 1 - 1e-9 <= effective_sample_size(probabilities) <= len(sums) * (1 + 1e-9)


@given(sums=pools, scale=st.floats(0.1, 10), shift=st.floats(-100, 100), seed=st.integers(0, 99))
def test_probabilities_follow_the_order_of_the_pool_and_not_the_units_of_the_sum(
    sums: Tensor, scale: float, shift: float, seed: int
) -> None:
    sums = sums.round()  # so that the change of units cannot turn equal sums into different ones
    order = torch.randperm(len(sums), generator=torch.Generator().manual_seed(seed))
    probabilities = sampling_probabilities(sums, temperature=0.5, floor=0.1)
    changed = (scale * sums + shift, sums[order])
    moved, permuted = (sampling_probabilities(x, temperature=0.5, floor=0.1) for x in changed)
    torch.testing.assert_close(moved, probabilities, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(permuted, probabilities[order], rtol=1e-9, atol=1e-12)


def test_probabilities_are_the_slow_ones():
    sums = [-3.0, 1.0, 4.0, -60.0, 12.0]
    mean = sum(sums) / 5
    std = math.sqrt(sum((s - mean) ** 2 for s in sums) / 5)
    powers = [math.exp(-(s - mean) / std / 0.5) for s in sums]
    expected = [0.9 * power / sum(powers) + 0.1 / 5 for power in powers]
    assert sampling_probabilities(
        torch.tensor(sums), temperature=0.5, floor=0.1
    ).tolist() == pytest.approx(expected)


def test_limits_of_temperature_and_floor():
    sums = torch.tensor([5.0, -2.0, 3.0, 4.0])
    for even in (
        sampling_probabilities(sums, temperature=1e9, floor=0.0),
        sampling_probabilities(sums, temperature=0.5, floor=1.0),
        sampling_probabilities(torch.full((4,), 0.3), temperature=0.5, floor=0.0),
    ):
        assert even.tolist() == pytest.approx([0.25] * 4, rel=1e-6)
        assert effective_sample_size(even) == pytest.approx(4)
    coldest = sampling_probabilities(sums, temperature=1e-320, floor=0.2)
    assert coldest.tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05])


def test_one_image_far_from_a_large_pool_neither_overflows_nor_excludes_the_others():
    sums = torch.zeros(1_000_000)
    sums[7] = -1e30
    probabilities = sampling_probabilities(sums, temperature=0.5, floor=0.1)
    assert probabilities[7].item() == pytest.approx(0.9, abs=1e-6)
    assert probabilities.min().item() == pytest.approx(1e-7)
    assert effective_sample_size(probabilities) == pytest.approx(1 / 0.81, rel=1e-3)


@pytest.mark.parametrize(
    ("sums", "options", "message"),
    [
        ([], {}, r"non-empty vector of finite values, got shape \(0,\)"),
        ([[1.0]], {}, r"non-empty vector of finite values, got shape \(1, 1\)"),
        ([1.0, math.nan], {}, "non-empty vector of finite values"),
        ([1.0], {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ([1.0], {"temperature": math.nan}, "temperature must be positive, got nan"),
        ([1.0], {"floor": -0.1}, r"floor must lie in \[0, 1\], got -0.1"),
        ([1.0], {"floor": 1.5}, r"floor must lie in \[0, 1\], got 1.5"),
    ],
)
def test_what_is_no_pool_temperature_or_floor_is_refused(
    sums: list[float], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sampling_probabilities(torch.tensor(sums), **{"temperature": 0.5, "floor": 0.1, **options})


@settings(max_examples=30)
@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any),
    seed=st.integers(0, 10_000),
)
def test_batches_hold_each_image_as_often_as_its_probability(weights: list[int], seed: int) -> None:
    probabilities = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    batches = preferential_batches(probabilities, 4_000, torch.Generator().manual_seed(seed))
    drawn = torch.cat(list(itertools.islice(batches, 2)))
    assert drawn.dtype == torch.int64
    shares = drawn.bincount(minlength=len(weights)) / len(drawn)
    assert len(shares) == len(weights)
    assert (shares[probabilities == 0] == 0).all()
    bound = 6 * (probabilities * (1 - probabilities) / len(drawn)).sqrt()  # six standard errors
    assert ((shares - probabilities).abs() <= bound + 1e-12).all()


def test_batches_repeat_with_the_generator():
    probabilities = torch.rand(20, generator=torch.Generator().manual_seed(0))
    first, second = (
        preferential_batches(probabilities, 6, torch.Generator().manual_seed(1)) for _ in range(2)
    )
    for _ in range(3):
        assert torch.equal(next(first), next(second))
    assert next(first).shape == (6,)
    assert not torch.equal(next(first), next(first))


def test_batches_reach_both_ends_of_a_pool_too_large_for_multinomial():
    n = 2**24 + 5
    probabilities = torch.full((n,), 1.0 / (4 * n))
    probabilities[0], probabilities[-1] = 0.25, 0.5
    drawn = next(preferential_batches(probabilities, 2_000, torch.Generator().manual_seed(1)))
    assert (drawn == 0).double().mean().item() == pytest.approx(0.25, abs=0.05)
    assert (drawn == n - 1).double().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "values", [[], [0.0, 0.0], [0.5, -0.5], [math.nan, 1.0], [math.inf, 1.0], [[0.5, 0.5]]]
)
def test_probabilities_that_cannot_be_are_refused_at_once(values: list[float]) -> None:
    with pytest.raises(
        ValueError, match="non-empty vector of finite values, none negative and not all 0"
    ):
        preferential_batches(torch.tensor(values), 4, torch.Generator())


def test_an_empty_batch_is_refused_at_once():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        preferential_batches(torch.ones(3), 0, torch.Generator())


# --- on a classifier that has learned something ------------------------------------------------------------------------


class Digits(NamedTuple):
    """A probe of a small trained network, and what it says of held-out digits and of their pixels in another order."""

    probe: RelatednessProbe
    normalize: Callable[[Tensor], Tensor]
    related: Tensor
    shuffled: Tensor


@pytest.fixture(scope="module")
def digits() -> Digits:
    from sklearn.datasets import load_digits

    data, normalize = load_digits(), Normalize([0.3], [0.38])
    images = torch.tensor(data.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels, n_train = torch.tensor(data.target), 1200
    with seeded(0):
        network = digits_cnn(10, width=8)
    optimizer = make_optimizer(
        network, algorithm="adam", learning_rate=0.01, momentum=0.9, weight_decay=1e-4
    )

    def step(rows: Tensor) -> dict[str, Tensor]:
        return {"loss": functional.cross_entropy(network(normalize(images[rows])), labels[rows])}

    generator = torch.Generator().manual_seed(0)
    batches = shuffled_batches(n_train, 64, generator)
    list(fit(step, batches, optimizer, n_updates=150, record_every=150, schedule="cosine"))
    held_out = images[n_train:]
    shuffled = held_out.flatten(1)[:, torch.randperm(64, generator=generator)].view_as(held_out)
    probe = RelatednessProbe(network.eval(), (1, 8, 8))
    return Digits(probe, normalize, probe(normalize(held_out)), probe(normalize(shuffled)))


def share_in_order(lower: Tensor, higher: Tensor) -> float:
    """The area under the ROC curve: how often a value of the first is below one of the second."""
    return (lower[:, None] < higher[None]).double().mean().item()


def test_digits_rank_before_noise_and_before_their_own_pixels_in_disorder(digits: Digits) -> None:
    probe, normalize = digits.probe, digits.normalize
    calibration = calibrate_on_noise(
        probe, normalize, generator=torch.Generator().manual_seed(0), n_images=2_000
    )
    noise = probe(normalize(uniform_noise(500, (1, 8, 8), torch.Generator().manual_seed(1))))
    related, shuffled, noise = (
        one_class_sum(x, calibration) for x in (digits.related, digits.shuffled, noise)
    )
    assert noise.mean().item() == pytest.approx(0, abs=1)
    assert share_in_order(related, noise) > 0.75
    assert share_in_order(related, shuffled) > 0.95


def test_preferential_sampling_draws_digits_rather_than_their_pixels_in_disorder(
    digits: Digits,
) -> None:
    generator = torch.Generator().manual_seed(0)
    calibration = calibrate_on_noise(
        digits.probe, digits.normalize, generator=generator, n_images=2_000
    )
    pool = torch.cat([one_class_sum(x, calibration) for x in (digits.related, digits.shuffled)])
    probabilities = sampling_probabilities(pool, temperature=0.5, floor=0.1)
    drawn = next(preferential_batches(probabilities, 2_000, generator))
    assert (drawn < len(pool) // 2).double().mean().item() > 0.85
    assert effective_sample_size(probabilities) > 0.2 * len(pool)


def test_every_indicator_alone_ranks_digits_before_their_pixels_in_disorder(digits: Digits) -> None:
    columns = zip(digits.related.T, digits.shuffled.T, strict=True)
    areas = dict(zip(digits.probe.names, (share_in_order(*pair) for pair in columns), strict=True))
    assert min(areas.values()) > 0.5, areas
    assert all(
        areas[name] > 0.9 for name in ("mp", "h", "t1000", "act", "proj", "ang", "ang_plus")
    ), areas
