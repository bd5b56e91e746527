"""How related an image is to what a classifier was trained on, told by the classifier alone, and sampling by it.

Holds the fifteen white-box indicators of Begon & Geurts, "Sample-free white-box out-of-distribution detection for deep
learning" (CVPR Workshops 2021), their sum calibrated on uniform noise, 1C-Sum, and the probabilities and batches of
preferential sampling (Begon & Geurts 2022, arXiv:2201.06507). No image of the original data is needed. Leaves out the
distillation that follows.

The indicators are those of the code that the authors released (github.com/jm-begon/ood_samplefree), except that

* the averages over channels run over BatchNorm layers alone, where theirs count the input image as one more layer;
* a channel that its BatchNorm has all but switched off is skipped, since the network does not look at it;
* a spatial standard deviation divides by n - 1 positions (theirs by n): only so is (n - 1) std^2 a chi-square variable;
* the standardised indicators are clipped before they are summed.

Preferential sampling is a *reconstruction*: of the paper of 2022 only the abstract is public, so how the sum becomes a
probability is our choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LOGIT_INDICATORS = ("mp", "h", "t1000")
LATENT_INDICATORS = ("norm", "act", "proj", "ang", "norm_plus", "act_plus", "ang_plus", "ang_plus_plus")
BATCHNORM_INDICATORS = ("dms", "dms_aos", "dss", "dss_ext")
INDICATORS: tuple[str, ...] = (*LOGIT_INDICATORS, *LATENT_INDICATORS, *BATCHNORM_INDICATORS)
"""The paper's MP, H, T1000, norm, act, proj, ang, norm+, act+, ang+, ang++, DMS, DMS-AoS, DSS and DSS-ext."""

ODIN_TEMPERATURE = 1000.0  # Liang et al. 2018 (arXiv:1706.02690)
SMALLEST_BATCHNORM_WEIGHT = 1e-4
CHI_SQUARE_LEVELS = (0.05, 0.95)
N_NOISE_IMAGES = 10_000
DEFAULT_CLIP = 10.0
_N_BISECTIONS = 64
_RESOLUTION = 2**53  # of draws: a float64 in [0, 1] times this is an exact int64


# --- Indicators -------------------------------------------------------------------------------------------------------


def logit_indicators(logits: Tensor) -> Tensor:
    """Return mp, h and t1000: what the logits z alone say.

    mp = 1 - max softmax(z) (Hendrycks & Gimpel 2017, arXiv:1610.02136), h the entropy of softmax(z) in nats, and
    t1000 = 1 - max softmax(z / 1000).

    Args:
        logits: (N, K) any float dtype, K >= 2.

    Returns:
        (N, 3) float32 (float64 for float64 logits), higher is less related: in [0, 1 - 1/K], [0, ln K], [0, 1 - 1/K].
    """
    logits = _at_least_float32(logits)
    log_probabilities = logits.log_softmax(dim=1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1)
    return torch.stack([_mass_elsewhere(logits), entropy, _mass_elsewhere(logits / ODIN_TEMPERATURE)], dim=1)


def _mass_elsewhere(logits: Tensor) -> Tensor:
    """Return 1 - max softmax(z) as the sum of the others, which keeps the digits that 1 - 0.9999999 has not."""
    largest, classes = logits.max(dim=1, keepdim=True)
    others = (logits - largest).exp().scatter(1, classes, 0.0).sum(dim=1)
    return others / (1.0 + others)


def latent_indicators(latents: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """Return the indicators of the last linear layer's input u beside its row W_c of the predicted class c.

    norm = -||u||, act = -<u, W_c>, proj = -<u, W_c> / ||W_c||, ang = 1 - cos(u, W_c). With u+ = u where W_c > 0 and 0
    elsewhere, and W+ = max(W_c, 0): norm_plus = -||u+||, act_plus = -<u+, W+>, ang_plus_plus = 1 - cos(u+, W+), and
    ang_plus = 1 - (1 - ang) act_plus / act, which is 1 - <u+, W+> / (||u|| ||W_c||) and computed so.
    A vector of length 0 has cosine 0 with every other.

    Args:
        latents: u, (N, D) any float dtype.
        weight: W, (K, D).
        classes: c, (N,) int64 in 0..K-1.

    Returns:
        (N, 8) float32 (float64 for float64 latents) in the order of `LATENT_INDICATORS`, higher is less related; the
        three angles are in [0, 2].
    """
    u = _at_least_float32(latents)
    rows = weight.to(u.dtype)[classes]
    u_plus, rows_plus = u * (rows > 0), rows.clamp(min=0.0)
    length, row_length, length_plus, row_length_plus = (v.norm(dim=1) for v in (u, rows, u_plus, rows_plus))
    activation, activation_plus = (u * rows).sum(dim=1), (u_plus * rows_plus).sum(dim=1)
    columns = (
        -length,
        -activation,
        -_ratio(activation, row_length),
        1.0 - _ratio(activation, length * row_length).clamp(-1.0, 1.0),
        -length_plus,
        -activation_plus,
        1.0 - _ratio(activation_plus, length * row_length).clamp(-1.0, 1.0),
        1.0 - _ratio(activation_plus, length_plus * row_length_plus).clamp(-1.0, 1.0),
    )
    return torch.stack(columns, dim=1)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient, and 0 for 0 / 0."""
    return numerator / denominator.clamp(min=torch.finfo(denominator.dtype).tiny)


def batchnorm_sums(layer: _BatchNorm, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four BatchNorm indicators of a layer, summed over its channels, and how many channels that are.

    With a = (x - running_mean) / sqrt(running_var + eps) the normalised output before the affine map, m and std its
    mean and standard deviation over the n positions of a channel: dms sums m^2, dms_aos the mean of a^2 (the average
    of squares in place of the square of the average), dss (std - 1)^2, and dss_ext counts the channels whose
    (n - 1) std^2 is outside the 5 to 95 % range of the chi-square distribution with n - 1 degrees of freedom. Over
    several layers, an indicator is the sum of the sums by the sum of the numbers: the mean over all channels.

    Channels with |weight| < 1e-4 are left out. A map of one position, as behind a linear layer, has no std: its
    channels count in dms and dms_aos (where both are a^2), not in dss and dss_ext.

    Args:
        layer: with running statistics.
        inputs: x, (N, C, ...) or (N, C) any float dtype, what the layer normalises.

    Returns:
        (4, N) float32 (float64 for float64 inputs) sums and (4,) int64 numbers of channels, in the order of
        `BATCHNORM_INDICATORS`.
    """
    assert layer.running_mean is not None
    assert layer.running_var is not None
    x = _at_least_float32(inputs)
    x = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
    n = x.shape[2]
    freedom = max(n - 1, 1)  # one position has none, and is not counted
    average = x.mean(dim=2)
    # Two passes, since E[x^2] - E[x]^2 cancels; torch.var_mean needs one, but 25 times as long on a CPU.
    scatter = (x - average.unsqueeze(2)).square_().sum(dim=2)
    variance = layer.running_var.to(x.dtype) + layer.eps
    m_squared = (average - layer.running_mean.to(x.dtype)).square() / variance
    scatter = scatter / variance
    low, high = chi_square_range(freedom)
    terms = (
        m_squared,
        m_squared + scatter / n,
        ((scatter / freedom).sqrt() - 1.0).square(),
        ((scatter < low) | (scatter > high)).to(x.dtype),
    )
    kept = torch.ones_like(average[0], dtype=torch.bool)
    if layer.weight is not None:
        kept = layer.weight.abs() >= SMALLEST_BATCHNORM_WEIGHT
    counted = torch.stack([kept, kept, kept & (n > 1), kept & (n > 1)])
    return torch.stack(terms).masked_fill(~counted.unsqueeze(1), 0.0).sum(dim=2), counted.sum(dim=1)


@cache
def chi_square_range(degrees_of_freedom: int) -> tuple[float, float]:
    """Return the 5 % and 95 % quantiles of the chi-square distribution with k >= 1 degrees of freedom.

    By bisection of its distribution function P(k/2, x/2), the regularised lower incomplete gamma function.
    """
    levels = torch.tensor(CHI_SQUARE_LEVELS, dtype=torch.float64, device="cpu")
    shape = torch.full_like(levels, degrees_of_freedom / 2.0)
    low = torch.zeros_like(levels)
    # Laurent & Massart 2000, lemma 1: P(x > k + 2 sqrt(3 k) + 6) <= exp(-3) < 0.05
    high = torch.full_like(levels, degrees_of_freedom + 2.0 * math.sqrt(3.0 * degrees_of_freedom) + 6.0)
    for _ in range(_N_BISECTIONS):
        middle = (low + high) / 2.0
        is_below = torch.special.gammainc(shape, middle / 2.0) < levels
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    lower, upper = low.tolist()
    return lower, upper


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class RelatednessProbe:
    """A classifier that tells of a batch of images, in one forward pass, every indicator that applies to it.

    Those of the logits always apply. Those of the last linear layer do where its output is the logits (SqueezeNet ends
    in a convolution). Those of BatchNorm read every call of a layer that has running statistics and sees one map an
    image (not one a token). `names` says which apply, in the order of `INDICATORS`.

    Args:
        network: maps (N, C, H, W) images to (N, K) logits, in eval mode; shared, and hooked only during a call.
        image_shape: (C, H, W), needed to see which indicators apply.

    Raises:
        ValueError: the network is in training mode, or returns no (N, K) logits with K >= 2.
    """

    names: tuple[str, ...]

    def __init__(self, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
        self.network, self.image_shape = network, image_shape
        self._check_mode()
        modules = list(network.modules())
        self._batchnorms = [m for m in modules if isinstance(m, _BatchNorm) and m.running_mean is not None]
        images = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(next(network.parameters()))
        self._head = _last_linear(network, images)
        _, _, _, n_channels = self._forward(images)
        self._n_batchnorm = int((n_channels > 0).sum())  # of the indicators: none, the first two, or all
        latent = LATENT_INDICATORS if self._head is not None else ()
        self.names = (*LOGIT_INDICATORS, *latent, *BATCHNORM_INDICATORS[: self._n_batchnorm])

    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) float32 normalised images to (N, len(names)) float32 indicators, higher is less related.

        Raises:
            ValueError: the images have another shape than the probe was made for, or the network is in training mode.
        """
        self._check_mode()
        if images.ndim != 4 or tuple(images.shape[1:]) != tuple(self.image_shape):
            raise ValueError(f"images must be (N, {', '.join(map(str, self.image_shape))}), got {tuple(images.shape)}")
        logits, latents, sums, n_channels = self._forward(images)
        parts = [logit_indicators(logits)]
        if self._head is not None:
            parts.append(latent_indicators(latents[-1], self._head.weight.detach(), logits.argmax(dim=1)))
        parts.append((sums / n_channels.unsqueeze(1))[: self._n_batchnorm].T)
        return torch.cat([part.float() for part in parts], dim=1)

    def _forward(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Return the logits, the last linear layer's inputs, and of all BatchNorms what `batchnorm_sums` returns."""
        latents: list[Tensor] = []
        sums = torch.zeros(len(BATCHNORM_INDICATORS), len(images), device=images.device)
        n_channels = torch.zeros(len(BATCHNORM_INDICATORS), dtype=torch.int64, device=images.device)

        def read(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal sums, n_channels
            assert isinstance(layer, _BatchNorm)
            if len(inputs[0]) == len(images):
                layer_sums, layer_channels = batchnorm_sums(layer, inputs[0])
                sums, n_channels = sums + layer_sums, n_channels + layer_channels

        with ExitStack() as hooks, torch.no_grad():
            for layer in self._batchnorms:
                hooks.enter_context(layer.register_forward_pre_hook(read))
            if self._head is not None:
                hook = self._head.register_forward_pre_hook(lambda _layer, inputs: latents.append(inputs[0]))
                hooks.enter_context(hook)
            logits = self.network(images)
        return logits, latents, sums, n_channels

    def _check_mode(self) -> None:
        if self.network.training:
            raise ValueError("the network is in training mode, where BatchNorm follows the batch: call .eval() first")


def _last_linear(network: nn.Module, images: Tensor) -> nn.Linear | None:
    """Return the linear layer whose output is the logits, or None where another kind of layer makes them."""
    calls: list[tuple[nn.Linear, Tensor]] = []
    with ExitStack() as hooks, torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                hook = module.register_forward_hook(lambda layer, _inputs, output: calls.append((layer, output)))
                hooks.enter_context(hook)
        logits = network(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the network returns {found} for {len(images)} images; expected (N, K) logits with K >= 2")
    makers = [layer for layer, output in calls if torch.equal(output, logits)]
    return makers[-1] if makers else None


# --- 1C-Sum -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseCalibration:
    """Mean and standard deviation of each indicator over images of uniform noise."""

    names: tuple[str, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    @classmethod
    def of(cls, names: tuple[str, ...], values: Tensor) -> NoiseCalibration:
        """Return the calibration from what a probe says of noise.

        Args:
            names: of the indicators.
            values: (n, len(names)) finite, n > 0.

        Raises:
            ValueError: values of another shape or that are not finite.
        """
        values = _checked_values(values, names)
        if len(values) == 0:
            raise ValueError("the calibration needs the indicators of at least one noise image, got none")
        means, stds = values.mean(dim=0), values.std(dim=0, correction=0)
        return cls(names, tuple(means.tolist()), tuple(stds.tolist()))

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return {name: {"mean": ..., "std": ...}}, plain floats in the order of the names."""
        rows = zip(self.names, self.means, self.stds, strict=True)
        return {name: {"mean": mean, "std": std} for name, mean, std in rows}

    @classmethod
    def from_dict(cls, content: Mapping[str, Mapping[str, float]]) -> NoiseCalibration:
        """Return the calibration that `to_dict` wrote, whatever order its names have come back in.

        Raises:
            ValueError: a name that is no indicator.
        """
        if unknown := sorted(set(content) - set(INDICATORS)):
            raise ValueError(f"the calibration holds {', '.join(unknown)}; the indicators are {', '.join(INDICATORS)}")
        names = tuple(name for name in INDICATORS if name in content)
        return cls(names, *(tuple(float(content[name][key]) for name in names) for key in ("mean", "std")))


def uniform_noise(n: int, image_shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Return (n, C, H, W) uint8 images of independent, uniform pixels, on the generator's device."""
    shape = (n, *image_shape)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator, device=generator.device)


def calibrate_on_noise(
    probe: RelatednessProbe,
    normalise: Callable[[Tensor], Tensor],
    *,
    generator: torch.Generator,
    n_images: int = N_NOISE_IMAGES,
    batch_size: int = 256,
) -> NoiseCalibration:
    """Return the calibration of a probe on uniform noise, which is made batch by batch.

    Args:
        probe: what is calibrated.
        normalise: maps (n, C, H, W) uint8 images on the generator's device to the network's float32 input.
        generator: fixes the noise.
        n_images: how many, at least 1; 10,000 in the paper.
        batch_size: at least 1.

    Raises:
        ValueError: a number below 1, or an indicator that is not finite.
    """
    if n_images < 1 or batch_size < 1:
        raise ValueError(f"n_images and batch_size must be at least 1, got {n_images!r} and {batch_size!r}")
    sizes = [min(batch_size, n_images - start) for start in range(0, n_images, batch_size)]
    values = [probe(normalise(uniform_noise(size, probe.image_shape, generator))) for size in sizes]
    return NoiseCalibration.of(probe.names, torch.cat(values))


def one_class_sum(values: Tensor, calibration: NoiseCalibration, *, clip: float = DEFAULT_CLIP) -> Tensor:
    """Return 1C-Sum, the sum of the indicators in standard deviations of noise from its mean, each clipped to +-clip.

    Noise sums to about 0. Relatedness is in the order within a pool, not in the sign: a network may be sure of noise
    and less so of its own images. Where noise has no spread (a saturated dss_ext), an indicator counts 0 at the noise's
    value and, by the limit, +-clip elsewhere: the spread is never less than float32 can resolve at the mean. The
    released code does not clip, which is `clip=math.inf`: one that hardly varies over noise then decides alone.

    Args:
        values: (N, n) finite indicators, columns as in `calibration.names`.
        calibration: of the same probe.
        clip: > 0; what is at the clip is not told apart.

    Returns:
        (N,) float64 on the CPU, in [-n clip, n clip], higher is less related.

    Raises:
        ValueError: values of another shape or that are not finite, or clip is not positive.
    """
    if not clip > 0.0:
        raise ValueError(f"clip must be positive, got {clip!r}")
    values = _checked_values(values, calibration.names)
    means, stds = (torch.tensor(part, dtype=torch.float64) for part in (calibration.means, calibration.stds))
    resolution = torch.finfo(torch.float32).eps * means.abs()
    spread = torch.maximum(stds, resolution.clamp(min=torch.finfo(torch.float32).tiny))
    return ((values - means) / spread).clamp(-clip, clip).sum(dim=1)


def _checked_values(values: Tensor, names: tuple[str, ...]) -> Tensor:
    """Return the values as float64 on the CPU."""
    if values.ndim != 2 or values.shape[1] != len(names):
        raise ValueError(f"values must be (N, {len(names)}), one column for each indicator, got {tuple(values.shape)}")
    values = values.detach().cpu().double()
    is_bad = ~values.isfinite()
    if is_bad.any():
        columns = ", ".join(name for name, bad in zip(names, is_bad.any(dim=0).tolist(), strict=True) if bad)
        raise ValueError(
            f"{columns} of {int(is_bad.any(dim=1).sum())} of {len(values)} images are not finite: "
            "the network diverged, or these images are corrupt"
        )
    return values


# --- Preferential sampling --------------------------------------------------------------------------------------------


def sampling_probabilities(sums: Tensor, *, temperature: float, floor: float) -> Tensor:
    """Return the probability of each pool image, p = (1 - floor) softmax(-z / temperature) + floor / n.

    z is the z-score of its 1C-Sum over the pool. A pool of equal sums is sampled evenly. Our reconstruction.

    Args:
        sums: (n,) finite, from `one_class_sum`, n > 0.
        temperature: > 0; small prefers strongly, large samples evenly.
        floor: the share of the draws that is even, in [0, 1], so that no image has less than floor / n.

    Returns:
        (n,) float64 on the CPU, summing to one, falling with the sum.

    Raises:
        ValueError: no sums or some that are not finite, or a number out of its range.
    """
    if sums.ndim != 1 or len(sums) == 0 or not sums.isfinite().all():
        raise ValueError(f"sums must be a non-empty vector of finite values, got shape {tuple(sums.shape)}")
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"floor must lie in [0, 1], got {floor!r}")
    sums = sums.detach().cpu().double()
    above_best = sums - sums.min()  # at least 0, so that no exponential overflows, however small the temperature
    std = above_best.std(correction=0)
    z = above_best / std if std > 0.0 else torch.zeros_like(sums)
    return (1.0 - floor) * torch.softmax(-z / temperature, dim=0) + floor / len(sums)


def effective_sample_size(probabilities: Tensor) -> float:
    """Return 1 / sum p^2 (Kish 1965): a pool of so many equally likely images is as wide. From 1 to n.

    To be watched: the exponential can put most of the draws on few images, whatever the floor.

    Args:
        probabilities: (n,) non-negative, summing to one.
    """
    return 1.0 / float(probabilities.double().square().sum())


def preferential_batches(probabilities: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Return an endless iterator of index batches, drawn with replacement.

    By the inverse of the distribution function, in integers: torch.multinomial takes 2^24 images at most, and not
    every device has float64.

    Args:
        probabilities: (n,) finite, non-negative, with a positive sum; n > 0. They need not sum to one.
        batch_size: at least 1.
        generator: fixes the draws; batches are (batch_size,) int64 on its device.

    Raises:
        ValueError: probabilities or a batch size that cannot be.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size!r}")
    cumulative = probabilities.detach().cpu().double().cumsum(dim=0)
    is_usable = probabilities.ndim == 1 and len(probabilities) > 0 and bool((probabilities >= 0).all())
    if not is_usable or not 0.0 < float(cumulative[-1]) < math.inf:
        raise ValueError(
            "probabilities must be a non-empty vector of finite values, none negative and not all 0, "
            f"got shape {tuple(probabilities.shape)}"
        )
    ends = (cumulative / cumulative[-1] * _RESOLUTION).long().to(generator.device)

    def batches() -> Iterator[Tensor]:
        while True:
            draws = torch.randint(_RESOLUTION, (batch_size,), generator=generator, device=generator.device)
            yield torch.searchsorted(ends, draws, right=True)

    return batches()
