"""Indicators of how unrelated an image is, from a trained network alone (S3, a reconstruction)."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

LOGIT_INDICATORS = ("mp", "h", "t1000")
LATENT_INDICATORS = (
    "norm",
    "act",
    "proj",
    "ang",
    "norm_plus",
    "act_plus",
    "ang_plus",
    "ang_plus_plus",
)
BATCHNORM_INDICATORS = ("dms", "dms_aos", "dss", "dss_ext")
INDICATORS: tuple[str, ...] = (*LOGIT_INDICATORS, *LATENT_INDICATORS, *BATCHNORM_INDICATORS)
"""The paper's MP, H, T1000, norm, act, proj, ang, norm+, act+, ang+, ang++, DMS, DMS-AoS, DSS and DSS-ext."""


ODIN_TEMPERATURE = 1000.0  # Liang et al. 2018 (arXiv:1706.02690)
SMALLEST_BATCHNORM_WEIGHT = 1e-4
CHI_SQUARE_LEVELS = (0.05, 0.95)
_N_BISECTIONS = 64


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
    return torch.stack(
        [_mass_elsewhere(logits), entropy, _mass_elsewhere(logits / ODIN_TEMPERATURE)], dim=1
    )


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
    length, row_length, length_plus, row_length_plus = (
        v.norm(dim=1) for v in (u, rows, u_plus, rows_plus)
    )
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

    With a = (x - running_mean) / sqrt(running_var + eps) the normalized output before the affine map, m and std its
    mean and standard deviation over the n positions of a channel: dms sums m^2, dms_aos the mean of a^2 (the average
    of squares in place of the square of the average), dss (std - 1)^2, and dss_ext counts the channels whose
    (n - 1) std^2 is outside the 5 to 95 % range of the chi-square distribution with n - 1 degrees of freedom. Over
    several layers, an indicator is the sum of the sums by the sum of the numbers: the mean over all channels.

    Channels with |weight| < 1e-4 are left out. A map of one position, as behind a linear layer, has no std: its
    channels count in dms and dms_aos (where both are a^2), not in dss and dss_ext.

    Args:
        layer: with running statistics.
        inputs: x, (N, C, ...) or (N, C) any float dtype, what the layer normalizes.

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

    By bisection of its distribution function P(k/2, x/2), the regularized lower incomplete gamma function.
    """
    levels = torch.tensor(CHI_SQUARE_LEVELS, dtype=torch.float64, device="cpu")
    shape = torch.full_like(levels, degrees_of_freedom / 2.0)
    low = torch.zeros_like(levels)
    # Laurent & Massart 2000, lemma 1: P(x > k + 2 sqrt(3 k) + 6) <= exp(-3) < 0.05
    high = torch.full_like(
        levels, degrees_of_freedom + 2.0 * math.sqrt(3.0 * degrees_of_freedom) + 6.0
    )
    for _ in range(_N_BISECTIONS):
        middle = (low + high) / 2.0
        is_below = torch.special.gammainc(shape, middle / 2.0) < levels
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    lower, upper = low.tolist()
    return lower, upper


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
