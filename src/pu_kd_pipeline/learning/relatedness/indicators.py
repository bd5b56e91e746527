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
# The paper's MP, H, T1000, norm, act, proj, ang, norm+, act+, ang+, ang++, DMS, DMS-AoS, DSS and
# DSS-ext.
INDICATORS: tuple[str, ...] = (*LOGIT_INDICATORS, *LATENT_INDICATORS, *BATCHNORM_INDICATORS)

ODIN_TEMPERATURE = 1000.0  # Liang et al. 2018 (arXiv:1706.02690)
SMALLEST_BATCHNORM_WEIGHT = 1e-4
CHI_SQUARE_LEVELS = (0.05, 0.95)
_N_BISECTIONS = 64  # beyond the 53 bits of a float64


def logit_indicators(logits: Tensor) -> Tensor:
    """Return the indicators mp, h and t1000, which read the logits z.

    mp = 1 - max softmax(z) (Hendrycks & Gimpel 2017, arXiv:1610.02136), h the entropy of softmax(z)
    in nats, and t1000 = 1 - max softmax(z / 1000).

    Args:
        logits: (N, K) any float dtype, K >= 2.

    Returns:
        (N, 3) float32 (float64 for float64 logits), higher is less related: in [0, 1 - 1/K],
        [0, ln K], [0, 1 - 1/K].
    """
    # bf16 and float16 have too few digits for differences of probabilities.
    logits = _at_least_float32(logits)
    mp = _mass_outside_maximum(logits)

    log_probabilities = logits.log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    weighted_logs = probabilities * log_probabilities
    h = -weighted_logs.sum(dim=1)

    softened_logits = logits / ODIN_TEMPERATURE
    t1000 = _mass_outside_maximum(softened_logits)
    return torch.stack([mp, h, t1000], dim=1)


def _mass_outside_maximum(logits: Tensor) -> Tensor:
    """Return 1 - max softmax(z)."""
    largest, classes = logits.max(dim=1, keepdim=True)
    # As the sum of the others, which keeps the digits that 1 - 0.9999999 loses.
    powers = (logits - largest).exp()
    other_powers = powers.scatter(1, classes, 0.0)
    others = other_powers.sum(dim=1)
    return others / (1.0 + others)


def latent_indicators(latents: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """Return the indicators that compare the input u of the last linear layer with its row W_c.

    c is the predicted class. norm = -||u||, act = -<u, W_c>, proj = -<u, W_c> / ||W_c||,
    ang = 1 - cos(u, W_c). With u+ = u where W_c > 0 and 0 elsewhere, and W+ = max(W_c, 0):
    norm_plus = -||u+||, act_plus = -<u+, W+>, ang_plus_plus = 1 - cos(u+, W+), and
    ang_plus = 1 - (1 - ang) act_plus / act, which is 1 - <u+, W+> / (||u|| ||W_c||) and computed
    so. A vector of length 0 has cosine 0 with every other.

    Args:
        latents: u, (N, D) any float dtype.
        weight: W, (K, D).
        classes: c, (N,) int64 in 0..K-1.

    Returns:
        (N, 8) float32 (float64 for float64 latents) in the order of `LATENT_INDICATORS`, higher is
        less related; the three angles are in [0, 2].
    """
    # Both (N, D): for each image its latents, and the row of its predicted class
    u = _at_least_float32(latents)
    w = weight.to(u.dtype)[classes]
    u_plus = u * (w > 0)
    w_plus = w.clamp(min=0.0)

    # All (N,)
    u_norm = u.norm(dim=1)
    w_norm = w.norm(dim=1)
    u_plus_norm = u_plus.norm(dim=1)
    w_plus_norm = w_plus.norm(dim=1)
    activation = (u * w).sum(dim=1)
    activation_plus = (u_plus * w_plus).sum(dim=1)

    # Every sign is flipped, or the cosine taken from 1, so that higher always is less related.
    columns = {
        "norm": -u_norm,
        "act": -activation,
        "proj": -_ratio(activation, w_norm),
        "ang": _one_minus_cosine(activation, u_norm * w_norm),
        "norm_plus": -u_plus_norm,
        "act_plus": -activation_plus,
        "ang_plus": _one_minus_cosine(activation_plus, u_norm * w_norm),
        "ang_plus_plus": _one_minus_cosine(activation_plus, u_plus_norm * w_plus_norm),
    }
    return torch.stack([columns[name] for name in LATENT_INDICATORS], dim=1)


def _one_minus_cosine(product: Tensor, norms: Tensor) -> Tensor:
    cosine = _ratio(product, norms)
    # Rounding can put a cosine slightly outside [-1, 1].
    cosine = cosine.clamp(-1.0, 1.0)
    return 1.0 - cosine


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient, and 0 for 0 / 0."""
    tiny = torch.finfo(denominator.dtype).tiny
    # Where a length is 0, the product is 0 as well, and so is the quotient.
    divisor = denominator.clamp(min=tiny)
    return numerator / divisor


def batchnorm_sums(layer: _BatchNorm, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four BatchNorm indicators summed over a layer's channels, and the channel counts.

    With a = (x - running_mean) / sqrt(running_var + eps) the normalized output before the affine
    map, m and std its mean and standard deviation over the n positions of a channel: dms sums m^2,
    dms_aos the mean of a^2 (the average of squares in place of the square of the average), dss
    (std - 1)^2, and dss_ext counts the channels whose (n - 1) std^2 is outside the 5 to 95 % range
    of the chi-square distribution with n - 1 degrees of freedom. Over several layers, an indicator
    is the sum of the sums divided by the sum of the counts: the mean over all channels.

    Channels with |weight| < 1e-4 are left out. A map of one position, as after a linear layer, has
    no std: its channels count in dms and dms_aos (where both are a^2), not in dss and dss_ext.

    Args:
        layer: a BatchNorm with running statistics.
        inputs: x, (N, C, ...) or (N, C) any float dtype, the layer's input.

    Returns:
        (4, N) float32 (float64 for float64 inputs) sums and (4,) int64 channel counts, in the order
        of `BATCHNORM_INDICATORS`.
    """
    assert layer.running_mean is not None
    assert layer.running_var is not None
    # (N, C, positions); (N, C) inputs have one position.
    x = _at_least_float32(inputs)
    x = x.unsqueeze(2).flatten(2)
    n = x.shape[2]
    freedom = max(n - 1, 1)  # one position has none, and is not counted below
    running_mean = layer.running_mean.to(x.dtype)
    variance = layer.running_var.to(x.dtype) + layer.eps

    # m and the scatter of a, n times its variance over the positions: (N, C). In two passes, since
    # E[x^2] - E[x]^2 cancels; torch.var_mean needs one pass, but takes 25 times as long on a CPU.
    average = x.mean(dim=2)
    scatter = (x - average.unsqueeze(2)).square_().sum(dim=2)
    scatter = scatter / variance
    shift = average - running_mean
    m_squared = shift.square() / variance
    std = (scatter / freedom).sqrt()

    low, high = chi_square_range(freedom)
    is_below = scatter < low
    is_above = scatter > high
    is_outside_range = is_below | is_above

    dms = m_squared
    dms_aos = m_squared + scatter / n
    dss = (std - 1.0).square()
    dss_ext = is_outside_range.to(x.dtype)

    # (C,): with a weight near 0 the layer ignores the channel, whose statistics then mean nothing.
    is_counted = torch.ones_like(average[0], dtype=torch.bool)
    if layer.weight is not None:
        is_counted = layer.weight.abs() >= SMALLEST_BATCHNORM_WEIGHT
    has_std = is_counted & (n > 1)

    # (4, C) and (4, N, C)
    masks = torch.stack([is_counted, is_counted, has_std, has_std])
    terms = torch.stack([dms, dms_aos, dss, dss_ext])
    is_left_out = ~masks.unsqueeze(1)
    counted_terms = terms.masked_fill(is_left_out, 0.0)
    sums = counted_terms.sum(dim=2)
    n_channels = masks.sum(dim=1)
    return sums, n_channels


@cache
def chi_square_range(degrees_of_freedom: int) -> tuple[float, float]:
    """Return the 5 % and 95 % quantiles of the chi-square distribution with k degrees of freedom.

    Args:
        degrees_of_freedom: k >= 1.
    """
    # Bisection of the distribution function P(k/2, x/2), the regularized lower incomplete gamma
    # function.
    levels = torch.tensor(CHI_SQUARE_LEVELS, dtype=torch.float64, device="cpu")
    shape = torch.full_like(levels, degrees_of_freedom / 2.0)

    # Laurent & Massart 2000, lemma 1: P(x > k + 2 sqrt(3 k) + 6) <= exp(-3) < 0.05
    root = math.sqrt(3.0 * degrees_of_freedom)
    upper_bound = degrees_of_freedom + 2.0 * root + 6.0
    low = torch.zeros_like(levels)
    high = torch.full_like(levels, upper_bound)
    # Both quantiles at the same time
    for _ in range(_N_BISECTIONS):
        middle = (low + high) / 2.0
        probability = torch.special.gammainc(shape, middle / 2.0)
        is_below = probability < levels
        # The quantile lies above the middle where the probability up to there is too small.
        low = torch.where(is_below, middle, low)
        high = torch.where(is_below, high, middle)

    lower, upper = low.tolist()
    return lower, upper


def _at_least_float32(values: Tensor) -> Tensor:
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.to(dtype)
