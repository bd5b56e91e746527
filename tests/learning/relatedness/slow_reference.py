"""Slow references of the indicators, written from the definitions, and networks to try them on."""

from __future__ import annotations

import copy
import math
import statistics

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.learning.generators import seeded_generator


def trained_looking(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorm non-trivial statistics and weights, and switch some channels off."""
    generator = seeded_generator(seed)
    for module in network.modules():
        if not isinstance(module, _BatchNorm):
            continue
        n = module.num_features
        normal = torch.randn(n, generator=generator)
        mean = normal / 2
        uniform = torch.rand(n, generator=generator)
        variance = uniform + 0.2
        module.running_mean.copy_(mean)
        module.running_var.copy_(variance)
        if module.weight is not None:
            weight = torch.randn(n, generator=generator)
            # Just below the limit of 1e-4.
            weight[1] = 9e-5
            weight[-1] = -9e-5
            bias = torch.randn(n, generator=generator)
            module.weight.data.copy_(weight)
            module.bias.data.copy_(bias)
    return network.eval()


def random_images(n: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    generator = seeded_generator(seed)
    return torch.randn(n, *shape, generator=generator)


def softmax(z: list[float], temperature: float) -> list[float]:
    largest = max(z)  # without which the powers would overflow
    powers = [math.exp((z_k - largest) / temperature) for z_k in z]
    total = sum(powers)
    return [power / total for power in powers]


def slow_logit_indicators(z: list[float]) -> list[float]:
    """Return one minus the largest probability, the entropy, and the first at T = 1000."""
    p = softmax(z, 1.0)
    entropy = 0.0  # in nats
    for p_k in p:
        # The limit of p ln p at 0 is 0.
        if p_k > 0:
            entropy -= p_k * math.log(p_k)
    hot = softmax(z, 1000.0)

    missing = 1 - max(p)
    missing_hot = 1 - max(hot)
    return [missing, entropy, missing_hot]


def dot(a: list[float], b: list[float]) -> float:
    pairs = zip(a, b, strict=True)
    return sum(x * y for x, y in pairs)


def length(a: list[float]) -> float:
    squared_length = dot(a, a)
    return math.sqrt(squared_length)


def cosine(a: list[float], b: list[float]) -> float:
    lengths = length(a) * length(b)
    if lengths == 0:
        return 0.0
    return dot(a, b) / lengths


def slow_latent_indicators(u: list[float], row: list[float]) -> list[float]:
    """Return the eight indicators of latents u and the weight row of the predicted class."""
    u_plus = []
    row_plus = []
    for x, w in zip(u, row, strict=True):
        # Both are masked where the weight is not positive.
        is_positive = w > 0
        u_plus.append(x * is_positive)
        row_plus.append(w * is_positive)

    # Higher is less related, hence the signs.
    norm = -length(u)
    act = -dot(u, row)
    proj = act / length(row)
    ang = 1 - cosine(u, row)
    norm_plus = -length(u_plus)
    act_plus = -dot(u_plus, row_plus)
    share_plus = act_plus / act
    cosine_all = 1 - ang
    ang_plus = 1 - cosine_all * share_plus
    ang_plus_plus = 1 - cosine(u_plus, row_plus)
    return [norm, act, proj, ang, norm_plus, act_plus, ang_plus, ang_plus_plus]


def normalized_channel(layer: nn.Module, maps: Tensor, channel: int) -> list[float]:
    """Return the normalized output of a channel, before the affine map."""
    mean = layer.running_mean[channel].item()
    variance = layer.running_var[channel].item()
    std = math.sqrt(variance + layer.eps)
    # Over all positions, whose order does not matter.
    channel_map = maps[channel]
    values = channel_map.flatten().tolist()
    return [(x - mean) / std for x in values]


def is_switched_off(layer: nn.Module, channel: int) -> bool:
    if layer.weight is None:
        return False
    weight = layer.weight[channel].item()
    return abs(weight) < 1e-4


def slow_channel_indicators(a: list[float]) -> dict[str, float]:
    """Return the indicators of one channel from its normalized outputs."""
    n = len(a)
    m = math.fsum(a) / n
    square_sum = math.fsum(x**2 for x in a)
    mean_of_squares = square_sum / n
    values = {"dms": m**2, "dms_aos": mean_of_squares}
    # One position has no spread.
    if n == 1:
        return values

    deviation_sum = math.fsum((x - m) ** 2 for x in a)
    variance = deviation_sum / (n - 1)
    std = math.sqrt(variance)
    values["dss"] = (std - 1) ** 2
    # Of normal outputs, n - 1 times the variance follows a chi-square distribution.
    degrees_of_freedom = n - 1
    level = stats.chi2.cdf(degrees_of_freedom * variance, degrees_of_freedom)
    is_in_range = 0.05 <= level <= 0.95
    values["dss_ext"] = not is_in_range
    return values


def slow_batchnorm_indicators(calls: list[tuple[nn.Module, Tensor]]) -> list[float]:
    """Return the means over all channels.

    Args:
        calls: every BatchNorm call of one image: the layer and its input, (C, H, W) or (C,).
    """
    values_of: dict[str, list[float]] = {}
    for layer, maps in calls:
        for channel in range(layer.num_features):
            if is_switched_off(layer, channel):
                continue
            outputs = normalized_channel(layer, maps, channel)
            indicators = slow_channel_indicators(outputs)
            for name, value in indicators.items():
                values = values_of.setdefault(name, [])
                values.append(value)

    means = []
    for name in ("dms", "dms_aos", "dss", "dss_ext"):
        if name in values_of:
            mean = statistics.fmean(values_of[name])
            means.append(mean)
    return means


class Recorder:
    """Hooks that record what the slow indicators of one image need."""

    def __init__(self, network: nn.Module, head: str | None) -> None:
        self.latents: list[Tensor] = []
        self.batchnorm_calls: list[tuple[nn.Module, Tensor]] = []
        for name, module in network.named_modules():
            if name == head:
                module.register_forward_pre_hook(self._record_latents)
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(self._record_batchnorm)

    def _record_latents(self, _layer: nn.Module, inputs: tuple[Tensor]) -> None:
        batch = inputs[0]
        self.latents.append(batch[0])

    def _record_batchnorm(self, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        batch = inputs[0]
        # A later layer may work in place.
        maps = batch[0].clone()
        self.batchnorm_calls.append((layer, maps))


def slow_indicators(network: nn.Module, images: Tensor, head: str | None) -> Tensor:
    """Return the indicators of one image at a time, in float64.

    Args:
        network: in eval mode.
        images: (N, C, H, W).
        head: name of the layer that gives the logits, None where it is not linear.
    """
    rows = []
    for image in images.double():
        # A copy per image, so that hooks and dtype do not stay with the caller's network.
        copied = copy.deepcopy(network).double()
        recorder = Recorder(copied, head)
        with torch.no_grad():
            logits = copied(image[None])

        z = logits[0].tolist()
        row = slow_logit_indicators(z)
        if head is not None:
            layer = copied.get_submodule(head)
            predicted_class = z.index(max(z))
            weight = layer.weight[predicted_class]
            weight_row = weight.tolist()
            latents = recorder.latents[0].tolist()
            row += slow_latent_indicators(latents, weight_row)

        row += slow_batchnorm_indicators(recorder.batchnorm_calls)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)
