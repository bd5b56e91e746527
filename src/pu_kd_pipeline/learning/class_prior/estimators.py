"""Estimators of the class prior: BBE and DEDPUL from scores, KM2 from features."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]

BBE_DELTA = 0.1  # Garg et al. 2021, sec. 6: one minus the confidence of the bound
BBE_GAMMA = 0.01  # Garg et al. 2021, sec. 6: slack on the bound
DEDPUL_STEP = 0.001  # Ivanov 2020, Algorithm 2: step of the grid of class priors
# Ivanov 2020: only class priors whose mean posterior is this close to them can be the bend.
DEDPUL_LARGEST_GAP = 0.05
# The share of the positives, those with the largest density ratio, that the second reading is
# taken at. Of the shares tried, this one had the smallest error together with the first reading:
# see docs/decisions/0036.
DEDPUL_TOP_SHARE = 0.05
DEDPUL_SMALLEST_MEAN_RATIO = 0.5  # below it, the second reading is not used

_N_GRID_POINTS = 1024
# In logits of ranks. Without it, positives that all have the same rank would have no density.
_MIN_SPREAD = 0.25
_KERNEL_REACH = 4.0  # in bandwidths: a Gaussian is negligible beyond


def best_bin_estimate(
    positive_scores: Scores,
    unlabeled_scores: Scores,
    *,
    delta: float = BBE_DELTA,
    gamma: float = BBE_GAMMA,
) -> tuple[float, float]:
    """Return the best bin estimate (BBE) of the class prior and the threshold of that bin.

    With q_S(c) the share of S that scores at least c (Garg et al. 2021, arXiv:2111.00980):

        deviation = sqrt(ln(4/delta) / 2n_U) + sqrt(ln(4/delta) / 2n_P)
        c* = argmin_c  q_U(c)/q_P(c) + (1+gamma)/q_P(c) * deviation
        class prior = q_U(c*) / q_P(c*)

    The second term grows as the bin empties and keeps the estimate away from bins with few
    samples. The estimate is right when some top bin is nearly pure; negatives that look positive
    bias it upward. Only the order of the scores matters.

    Args:
        positive_scores: (n_P,) finite scores of positives the classifier was not trained on;
            n_P > 0.
        unlabeled_scores: (n_U,) finite scores of held-out unlabeled samples; n_U > 0.
        delta: one minus the confidence of the bound, in (0, 1).
        gamma: slack on the bound, >= 0.

    Returns:
        The class prior, clipped to [0, 1], and the threshold c*.

    Raises:
        ValueError: no scores on one side, a score that is not finite, or delta or gamma out of
            range.
    """
    if not 0.0 < delta < 1.0 or gamma < 0.0:
        raise ValueError(
            "delta must lie in (0, 1) and gamma be at least 0, "
            f"got delta={delta!r}, gamma={gamma!r}"
        )
    positive_scores = check_scores(positive_scores, "positive_scores")
    unlabeled_scores = check_scores(unlabeled_scores, "unlabeled_scores")

    # Only the distinct positive scores need to be tried: raising any other threshold to the next
    # positive score keeps q_P and cannot raise q_U. It also keeps q_P above zero.
    thresholds = np.unique(positive_scores)
    q_positive = share_at_least(thresholds, positive_scores)
    q_unlabeled = share_at_least(thresholds, unlabeled_scores)

    n_positive = len(positive_scores)
    n_unlabeled = len(unlabeled_scores)
    log_term = np.log(4.0 / delta)
    positive_deviation = np.sqrt(log_term / (2.0 * n_positive))
    unlabeled_deviation = np.sqrt(log_term / (2.0 * n_unlabeled))
    deviation = positive_deviation + unlabeled_deviation
    slack = (1.0 + gamma) * deviation
    upper_bounds = (q_unlabeled + slack) / q_positive

    best = int(np.argmin(upper_bounds))
    ratio = q_unlabeled[best] / q_positive[best]
    class_prior = min(ratio, 1.0)
    threshold = thresholds[best]
    return float(class_prior), float(threshold)


def density_ratio_estimate(positive_scores: Scores, unlabeled_scores: Scores) -> tuple[float, None]:
    """Return the class prior by DEDPUL: the mean of two readings of a monotone density ratio.

    The first is that of the paper (Ivanov 2020, arXiv:1902.06965, Algorithm 2). With
    r(s) = f_P(s) / f_U(s) the posterior of a score is min(class_prior * r, 1), and EM repeats
    class_prior <- mean_U min(class_prior * r, 1) from 1. That map is concave, so EM ends at its
    largest fixed point, which is read off a grid instead. The sharpest bend of the gap
    mean_U min(class_prior * r, 1) - class_prior is used where it lies above the fixed point: noise
    in r makes the mean of r less than 1, and EM then sinks to zero.

    The second is 1/r at the score that `DEDPUL_TOP_SHARE` of the positives reach: a region of
    positives alone has r = 1 / class_prior. The two err for different reasons, and their geometric
    mean errs less than either (benchmarks/class_prior_simulated.py).

    Departures: the second reading; densities are kernel estimates on the logits of ranks among the
    unlabeled, with one bandwidth (Scott's rule on the positives) for both so that its blur cancels
    in the ratio; isotonic regression replaces the paper's rolling median and partial monotony. Only
    the order of the scores matters.

    Args:
        positive_scores: (n_P,) finite scores of positives the classifier was not trained on;
            n_P > 0.
        unlabeled_scores: (n_U,) finite scores of held-out unlabeled samples; n_U > 0.

    Returns:
        The class prior in (0, 1], and None because no single score decides.

    Raises:
        ValueError: no scores on one side, or a score that is not finite.
    """
    positive_scores = check_scores(positive_scores, "positive_scores")
    unlabeled_scores = check_scores(unlabeled_scores, "unlabeled_scores")
    ratio, weight = _monotone_density_ratio(positive_scores, unlabeled_scores)
    by_posteriors = _prior_of_posteriors(ratio, weight)
    # The mean of r is 1 but for noise. Where it is far less, the positives lie beyond the scores of
    # the unlabeled, and no ratio there is one of a region of positives.
    mean_ratio = float(np.sum(weight * ratio))
    if mean_ratio < DEDPUL_SMALLEST_MEAN_RATIO:
        return by_posteriors, None
    by_top_ratio = _prior_of_top_ratio(ratio, weight)
    class_prior = np.sqrt(by_posteriors * by_top_ratio)
    return float(class_prior), None


def _prior_of_posteriors(ratio: Floats, weight: Floats) -> float:
    """Return the largest fixed point of EM, or the sharpest bend of the gap where it is larger."""
    # Half a step more, so that the grid ends with 1 whatever the rounding.
    end = 1.0 + DEDPUL_STEP / 2
    class_priors = np.arange(DEDPUL_STEP, end, DEDPUL_STEP)
    mean_posteriors = _mean_posterior(class_priors, ratio, weight)
    gap = mean_posteriors - class_priors

    largest_fixed_point = 0.0
    fixed_points = class_priors[gap >= 0.0]
    if len(fixed_points):
        largest_fixed_point = fixed_points[-1]

    # The second difference at index i belongs to the class prior at index i + 1.
    bend = -np.diff(gap, 2)
    is_too_far = gap[1:-1] < -DEDPUL_LARGEST_GAP
    bend[is_too_far] = -np.inf
    sharpest = 1 + int(np.argmax(bend))
    sharpest_bend = class_priors[sharpest]

    class_prior = max(largest_fixed_point, sharpest_bend)
    return float(min(class_prior, 1.0))


def _prior_of_top_ratio(ratio: Floats, weight: Floats) -> float:
    """Return 1/r where the positives with a larger ratio r are `DEDPUL_TOP_SHARE` of all."""
    positive_shares = weight * ratio
    # The ratio ascends: from its end, the shares of the positives add up.
    shares_above = np.cumsum(positive_shares[::-1])
    total_share = shares_above[-1]
    from_end = int(np.searchsorted(shares_above, DEDPUL_TOP_SHARE * total_share))
    top_ratio = ratio[::-1][from_end]
    return float(min(1.0 / top_ratio, 1.0))


def _monotone_density_ratio(
    positive_scores: Scores, unlabeled_scores: Scores
) -> tuple[Floats, Floats]:
    """Return (G,) f_P / f_U on an ascending grid of scores, and (G,) shares of the unlabeled."""
    ordered = np.sort(unlabeled_scores)
    positive = _rank_logits(positive_scores, ordered)
    unlabeled = _rank_logits(ordered, ordered)

    # Scott's rule on the positives
    n_positive = len(positive)
    spread = max(float(positive.std()), _MIN_SPREAD)
    bandwidth = n_positive**-0.2 * spread

    # The logits of mid-ranks lie within +-log(2n + 1); the kernel adds its own reach.
    n_unlabeled = len(unlabeled)
    kernel_reach = _KERNEL_REACH * bandwidth
    reach = np.log(2.0 * n_unlabeled + 1.0) + kernel_reach
    step = 2.0 * reach / (_N_GRID_POINTS - 1)

    # (G,) shares of the samples at each point of the grid, which runs from -reach to reach
    positive_places = (positive + reach) / step
    unlabeled_places = (unlabeled + reach) / step
    positive_shares = _histogram(positive_places) / n_positive
    unlabeled_shares = _histogram(unlabeled_places) / n_unlabeled

    # Without its normalization, which cancels in the ratio.
    half_width = np.ceil(kernel_reach / step)
    distances = np.arange(-half_width, half_width + 1.0) * step
    z = distances / bandwidth
    kernel = np.exp(-0.5 * z**2)
    positive_density = np.convolve(positive_shares, kernel, mode="same")
    unlabeled_density = np.convolve(unlabeled_shares, kernel, mode="same")

    # Only where there are unlabeled samples does the ratio get a weight.
    is_seen = unlabeled_shares > 0.0
    weight = unlabeled_shares[is_seen]
    ratio = positive_density[is_seen] / unlabeled_density[is_seen]
    return isotonic_regression(ratio, weight), weight


def _rank_logits(scores: Scores, ordered: Scores) -> Floats:
    """Return the logit of each score's mid-rank among the ordered scores."""
    n_below = np.searchsorted(ordered, scores, side="left")
    n_at_most = np.searchsorted(ordered, scores, side="right")
    mid_rank = (n_below + n_at_most) / 2.0
    # One half on either side keeps scores beyond the ends of `ordered` finite.
    below = mid_rank + 0.5
    above = len(ordered) + 0.5 - mid_rank
    odds = below / above
    return np.log(odds)


def _histogram(places: Floats) -> Floats:
    """Return (G,) counts, each place in [0, G - 1) shared between its two neighbors on the grid."""
    # Linear binning: the nearer neighbor gets the larger share.
    left = places.astype(np.int64)
    right = left + 1
    right_share = places - left
    left_share = 1.0 - right_share
    neighbors = np.concatenate([left, right])
    shares = np.concatenate([left_share, right_share])
    counts = np.bincount(neighbors, shares, _N_GRID_POINTS)
    return counts.astype(np.float64)


class _Block(NamedTuple):
    """Neighbors that isotonic regression gives one value."""

    mean: float
    weight: float
    length: int


def isotonic_regression(values: Floats, weight: Floats) -> Floats:
    """Return the (n,) ascending values closest to `values` in weighted squares.

    Pool adjacent violators: neighbors in the wrong order are replaced by their weighted mean.
    """
    blocks: list[_Block] = []
    weighted_values = zip(values.tolist(), weight.tolist(), strict=True)
    for value, mass in weighted_values:
        block = _Block(value, mass, 1)
        # A merged block may again be below the one before it.
        while blocks and blocks[-1].mean >= block.mean:
            previous = blocks.pop()
            block = _merged(previous, block)
        blocks.append(block)

    # Each value gets the mean of its block.
    block_means = [block.mean for block in blocks]
    lengths = [block.length for block in blocks]
    means = np.array(block_means, dtype=np.float64)
    return np.repeat(means, lengths)


def _merged(left: _Block, right: _Block) -> _Block:
    weight = left.weight + right.weight
    left_sum = left.mean * left.weight
    right_sum = right.mean * right.weight
    return _Block(
        mean=(left_sum + right_sum) / weight,
        weight=weight,
        length=left.length + right.length,
    )


def _mean_posterior(class_priors: Floats, ratio: Floats, weight: Floats) -> Floats:
    """Return sum_g weight_g min(class_prior * ratio_g, 1) for each class prior; `ratio` ascends."""
    cumulative_ratio = _sums_below(weight * ratio)
    cumulative_weight = _sums_below(weight)
    # From this index on, class_prior * ratio exceeds 1 and the posterior is clipped.
    cut = np.searchsorted(ratio, 1.0 / class_priors)
    unclipped = class_priors * cumulative_ratio[cut]
    weight_below_cut = cumulative_weight[cut]
    total_weight = cumulative_weight[-1]
    posterior: Floats = unclipped + total_weight - weight_below_cut
    return posterior


def _sums_below(values: Floats) -> Floats:
    """Return (G + 1,): the sum of the first 0, 1, ..., G values."""
    sums = np.cumsum(values)
    return np.concatenate([[0.0], sums])


def kernel_mean_estimate(positive: Scores, unlabeled: Scores) -> tuple[float, None]:
    """Return the class prior by KM2 from (n, F) features, and None; see `kernel_mean`."""
    # KM2 needs torch, which everything else here does without.
    from pu_kd_pipeline.learning.class_prior.kernel_mean import kernel_mean_class_prior

    class_prior = kernel_mean_class_prior(positive, unlabeled)
    return class_prior, None


def share_at_least(scores: Scores, unlabeled_scores: Scores) -> Floats:
    """Return, for each of (n,) `scores`, the share of (m,) `unlabeled_scores` that are >= it."""
    ordered = np.sort(unlabeled_scores)
    n_unlabeled = len(ordered)
    n_below = np.searchsorted(ordered, scores, side="left")
    n_at_least = n_unlabeled - n_below
    return n_at_least / n_unlabeled


def check_scores(values: Scores, name: str, n_axes: int = 1) -> Scores:
    """Return the values as an array with `n_axes` axes.

    Raises:
        ValueError: they are empty, have another number of axes, or are not all finite.
    """
    values = np.asarray(values)
    has_axes = values.ndim == n_axes
    if not has_axes or values.size == 0:
        kind = "matrix of samples by features"
        if n_axes == 1:
            kind = "vector"
        raise ValueError(f"{name} must be a non-empty {kind}, got shape {values.shape}")

    is_invalid = ~np.isfinite(values)
    n_invalid = int(is_invalid.sum())
    if n_invalid > 0:
        raise ValueError(f"{name} holds {n_invalid} values that are not finite")
    return values
