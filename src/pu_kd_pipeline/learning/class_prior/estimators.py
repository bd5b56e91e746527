"""Estimators of the class prior from scores: BBE, DEDPUL, and KM2 from features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
BBE_DELTA = 0.1  # Garg et al. 2021, sec. 6: one minus the confidence of the bound
BBE_GAMMA = 0.01  # Garg et al. 2021, sec. 6: slack on the bound
DEDPUL_STEP = 0.001  # Ivanov 2020, Algorithm 2: the grid of class priors
DEDPUL_LARGEST_GAP = (
    0.05  # Ivanov 2020: the bend is sought where the mean posterior is this near to the class prior
)
_DENSITY_GRID = 1024
_LEAST_SPREAD = 0.25  # in logits of ranks: positives that all rank alike still have a density


def best_bin_estimate(
    positive_scores: Scores,
    unlabeled_scores: Scores,
    *,
    delta: float = BBE_DELTA,
    gamma: float = BBE_GAMMA,
) -> tuple[float, float]:
    """Return the best bin estimate (BBE) of the class prior and the threshold of that bin.

    With q_S(c) the share of S that scores at least c (Garg et al. 2021, arXiv:2111.00980):

        c* = argmin_c  q_U(c)/q_P(c) + (1+gamma)/q_P(c) * (sqrt(ln(4/delta) / 2n_U) + sqrt(ln(4/delta) / 2n_P))
        class prior = q_U(c*) / q_P(c*)

    The second term grows as the bin empties and keeps the estimate away from bins of a few samples. The estimate is
    right when some top bin is nearly pure; negatives that look positive bias it upward. Only the order of the scores
    matters.

    Args:
        positive_scores: (n_P,) finite scores of positives the classifier was not trained on; n_P > 0.
        unlabeled_scores: (n_U,) finite scores of held-out unlabeled samples; n_U > 0.
        delta: one minus the confidence of the bound, in (0, 1).
        gamma: slack on the bound, >= 0.

    Returns:
        The class prior, clipped to [0, 1], and the threshold c*.

    Raises:
        ValueError: no scores on one side, a score that is not finite, or delta or gamma out of range.
    """
    if not 0.0 < delta < 1.0 or gamma < 0.0:
        raise ValueError(
            f"delta must lie in (0, 1) and gamma be at least 0, got delta={delta!r}, gamma={gamma!r}"
        )
    positive_scores = checked_scores(positive_scores, "positive_scores")
    unlabeled_scores = checked_scores(unlabeled_scores, "unlabeled_scores")
    # The distinct positive scores are all thresholds worth trying: raising any other threshold to the next positive
    # score keeps q_P and cannot raise q_U. It also keeps q_P above zero.
    thresholds = np.unique(positive_scores)
    q_positive = share_at_least(thresholds, positive_scores)
    q_unlabeled = share_at_least(thresholds, unlabeled_scores)
    deviation = sum(
        np.sqrt(np.log(4.0 / delta) / (2.0 * len(scores)))
        for scores in (positive_scores, unlabeled_scores)
    )
    best = int(np.argmin((q_unlabeled + (1.0 + gamma) * deviation) / q_positive))
    return float(min(q_unlabeled[best] / q_positive[best], 1.0)), float(thresholds[best])


def density_ratio_estimate(positive_scores: Scores, unlabeled_scores: Scores) -> tuple[float, None]:
    """Return the class prior by DEDPUL: a monotone ratio of score densities, then expectation maximization.

    With r(s) = f_P(s) / f_U(s) the posterior of a score is min(class_prior * r, 1), and EM repeats
    class_prior <- mean_U min(class_prior * r, 1) from 1 (Ivanov 2020, arXiv:1902.06965, Algorithm 2). That map is
    concave, so EM ends at its largest fixed point, which is read off a grid instead. As in the paper, the sharpest bend
    of the gap mean_U min(class_prior * r, 1) - class_prior takes over where it lies above: noise in r makes the mean
    of r less than 1, and EM then sinks to zero.

    Departures: densities are kernel estimates on the logits of ranks among the unlabeled, with one bandwidth (Scott's
    rule on the positives) for both so that its blur cancels in the ratio, and isotonic regression replaces the paper's
    rolling median and partial monotony. Only the order of the scores matters.

    Args:
        positive_scores: (n_P,) finite scores of positives the classifier was not trained on; n_P > 0.
        unlabeled_scores: (n_U,) finite scores of held-out unlabeled samples; n_U > 0.

    Returns:
        The class prior in (0, 1], and None: no single score decides.

    Raises:
        ValueError: no scores on one side, or a score that is not finite.
    """
    positive_scores = checked_scores(positive_scores, "positive_scores")
    unlabeled_scores = checked_scores(unlabeled_scores, "unlabeled_scores")
    ratio, weight = _monotone_density_ratio(positive_scores, unlabeled_scores)
    class_priors = np.arange(DEDPUL_STEP, 1.0 + DEDPUL_STEP / 2, DEDPUL_STEP)
    gap = _mean_posterior(class_priors, ratio, weight) - class_priors
    fixed_points = class_priors[gap >= 0.0]
    bend = -np.diff(gap, 2)
    bend[gap[1:-1] < -DEDPUL_LARGEST_GAP] = -np.inf
    at_bend = class_priors[1 + int(np.argmax(bend))]
    return float(min(max(fixed_points[-1] if len(fixed_points) else 0.0, at_bend), 1.0)), None


def _monotone_density_ratio(
    positive_scores: Scores, unlabeled_scores: Scores
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (G,) f_P / f_U on a grid of scores, ascending, and the (G,) shares of the unlabeled there."""
    ordered = np.sort(unlabeled_scores)
    positive, unlabeled = (_rank_logits(scores, ordered) for scores in (positive_scores, ordered))
    bandwidth = len(positive) ** -0.2 * max(float(positive.std()), _LEAST_SPREAD)
    reach = np.log(2.0 * len(ordered) + 1.0) + 4.0 * bandwidth
    step = 2.0 * reach / (_DENSITY_GRID - 1)
    shares = [_binned((values + reach) / step) / len(values) for values in (positive, unlabeled)]
    distances = (
        np.arange(-np.ceil(4.0 * bandwidth / step), np.ceil(4.0 * bandwidth / step) + 1.0) * step
    )
    kernel = np.exp(-0.5 * (distances / bandwidth) ** 2)
    positive_density, unlabeled_density = (
        np.convolve(share, kernel, mode="same") for share in shares
    )
    is_seen = shares[1] > 0.0
    weight = shares[1][is_seen]
    return isotonic(positive_density[is_seen] / unlabeled_density[is_seen], weight), weight


def _rank_logits(scores: Scores, ordered: Scores) -> NDArray[np.float64]:
    """Return the logit of each score's mid-rank among the ordered scores: finite also beyond their ends."""
    below = (
        np.searchsorted(ordered, scores, side="left")
        + np.searchsorted(ordered, scores, side="right")
    ) / 2.0
    return np.log((below + 0.5) / (len(ordered) + 0.5 - below))


def _binned(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (G,) counts, each place in [0, G - 1) shared between its two neighbors on the grid."""
    left = places.astype(np.int64)
    part = places - left
    neighbors, shares = np.concatenate([left, left + 1]), np.concatenate([1.0 - part, part])
    return np.bincount(neighbors, shares, _DENSITY_GRID).astype(np.float64)


def isotonic(values: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (n,) ascending values next to `values` in weighted squares: pool adjacent violators."""
    blocks: list[tuple[float, float, int]] = []
    for value, mass in zip(values.tolist(), weight.tolist(), strict=True):
        block = (value, mass, 1)
        while blocks and blocks[-1][0] >= block[0]:
            before = blocks.pop()
            total = before[1] + block[1]
            block = (
                (before[0] * before[1] + block[0] * block[1]) / total,
                total,
                before[2] + block[2],
            )
        blocks.append(block)
    heights, lengths = [block[0] for block in blocks], [block[2] for block in blocks]
    return np.repeat(np.array(heights, dtype=np.float64), lengths)


def _mean_posterior(
    class_priors: NDArray[np.float64], ratio: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return sum_g weight_g min(class_prior * ratio_g, 1) for each class prior; `ratio` ascends."""
    weighted = np.concatenate([[0.0], np.cumsum(weight * ratio)])
    total = np.concatenate([[0.0], np.cumsum(weight)])
    cut = np.searchsorted(ratio, 1.0 / class_priors)
    posterior: NDArray[np.float64] = class_priors * weighted[cut] + total[-1] - total[cut]
    return posterior


def kernel_mean_estimate(positive: Scores, unlabeled: Scores) -> tuple[float, None]:
    """Return the class prior by KM2 from (n, F) features; see `class_prior_kernel`."""
    from pu_kd_pipeline.learning.class_prior.kernel_mean import kernel_mean_class_prior

    return kernel_mean_class_prior(positive, unlabeled), None


def share_at_least(scores: Scores, unlabeled_scores: Scores) -> NDArray[np.float64]:
    """Return, for each of (n,) `scores`, the share of (m,) `unlabeled_scores` that are >= it: (n,) in [0, 1]."""
    ordered = np.sort(unlabeled_scores)
    return (len(ordered) - np.searchsorted(ordered, scores, side="left")) / len(ordered)


def checked_scores(values: Scores, name: str, n_axes: int = 1) -> Scores:
    values = np.asarray(values)
    if values.ndim != n_axes or values.size == 0:
        kind = "vector" if n_axes == 1 else "matrix of samples by features"
        raise ValueError(f"{name} must be a non-empty {kind}, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} holds {int((~np.isfinite(values)).sum())} values that are not finite"
        )
    return values
