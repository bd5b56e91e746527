"""Slow references of the indicators, written from the definitions, and networks to try them on."""

from __future__ import annotations

import copy
import math

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
        module.running_mean.copy_(torch.randn(n, generator=generator) / 2)
        module.running_var.copy_(torch.rand(n, generator=generator) + 0.2)
        if module.weight is not None:
            module.weight.data.copy_(torch.randn(n, generator=generator))
            # Just below the limit of 1e-4.
            module.weight.data[1] = 9e-5
            module.weight.data[-1] = -9e-5
            module.bias.data.copy_(torch.randn(n, generator=generator))
    return network.eval()


def random_images(n: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    generator = seeded_generator(seed)
    return torch.randn(n, *shape, generator=generator)


def softmax(z: list[float], temperature: float) -> list[float]:
    powers = [math.exp((z_k - max(z)) / temperature) for z_k in z]
    return [power / sum(powers) for power in powers]


def slow_logit_indicators(z: list[float]) -> list[float]:
    p = softmax(z, 1.0)
    entropy = 0.0  # in nats
    for p_k in p:
        if p_k > 0:
            entropy -= p_k * math.log(p_k)
    return [1 - max(p), entropy, 1 - max(softmax(z, 1000.0))]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def length(a: list[float]) -> float:
    return math.sqrt(dot(a, a))


def cosine(a: list[float], b: list[float]) -> float:
    lengths = length(a) * length(b)
    if lengths == 0:
        return 0.0
    return dot(a, b) / lengths


def slow_latent_indicators(u: list[float], row: list[float]) -> list[float]:
    u_plus = []
    row_plus = []
    for x, w in zip(u, row, strict=True):
        is_positive = w > 0
        u_plus.append(x * is_positive)
        row_plus.append(w * is_positive)
    # Higher is less related, hence the signs.
    act = -dot(u, row)
    act_plus = -dot(u_plus, row_plus)
    ang = 1 - cosine(u, row)
    return [
        -length(u),
        act,
        act / length(row),
        ang,
        -length(u_plus),
        act_plus,
        1 - (1 - ang) * act_plus / act,
        1 - cosine(u_plus, row_plus),
    ]


def slow_batchnorm_indicators(calls: list[tuple[nn.Module, Tensor]]) -> list[float]:
    """Return the means over all channels.

    Args:
        calls: every BatchNorm call of one image: the layer and its input, (C, H, W) or (C,).
    """
    dms: list[float] = []
    dms_aos: list[float] = []
    dss: list[float] = []
    dss_ext: list[float] = []
    for layer, maps in calls:
        for channel in range(layer.num_features):
            if layer.weight is not None and abs(layer.weight[channel].item()) < 1e-4:
                continue
            mean = layer.running_mean[channel].item()
            std = math.sqrt(layer.running_var[channel].item() + layer.eps)
            # The normalized output before the affine map.
            a = [(x - mean) / std for x in maps[channel].flatten().tolist()]
            n = len(a)
            m = math.fsum(a) / n
            dms.append(m**2)
            dms_aos.append(math.fsum(x**2 for x in a) / n)
            if n > 1:  # one position has no spread
                variance = math.fsum((x - m) ** 2 for x in a) / (n - 1)
                level = stats.chi2.cdf((n - 1) * variance, n - 1)
                dss.append((math.sqrt(variance) - 1) ** 2)
                dss_ext.append(not 0.05 <= level <= 0.95)
    means = []
    for values in (dms, dms_aos, dss, dss_ext):
        if values:
            means.append(sum(values) / len(values))
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
        self.latents.append(inputs[0][0])

    def _record_batchnorm(self, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        self.batchnorm_calls.append((layer, inputs[0][0].clone()))


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
            z = copied(image[None])[0].tolist()
        row = slow_logit_indicators(z)
        if head is not None:
            predicted_class = z.index(max(z))
            weight = copied.get_submodule(head).weight[predicted_class]
            row += slow_latent_indicators(recorder.latents[0].tolist(), weight.tolist())
        row += slow_batchnorm_indicators(recorder.batchnorm_calls)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)
