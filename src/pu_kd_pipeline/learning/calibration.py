"""Calibration: whether a model is right as often as it says. NumPy only."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

N_BINS = 15


class Calibration(NamedTuple):
    """How confidence and correctness compare, in bins of equal width."""

    error: float
    """The expected calibration error: mean over the images of |share right - mean confidence| of
    their bin, in [0, 1]."""
    counts: NDArray[np.int64]
    """(B,) images in each bin."""
    confidence: NDArray[np.float64]
    """(B,) mean confidence in each bin, nan for an empty one."""
    right: NDArray[np.float64]
    """(B,) share of each bin that is right, nan for an empty one."""


def measure_calibration(
    confidence: NDArray[np.floating[Any]], is_right: NDArray[np.bool_], n_bins: int = N_BINS
) -> Calibration:
    """Return the expected calibration error and the reliability diagram of Guo et al. 2017, Eq. 3.

    arXiv:1706.04599. Bin b holds the confidences in ((b - 1) / B, b / B]. The error is biased
    upward where bins hold few images.

    Args:
        confidence: (N,) probability of the predicted class, in [0, 1]; N > 0.
        is_right: (N,) whether the prediction is right.
        n_bins: B, at least 1.

    Raises:
        ValueError: the shapes differ, N is 0, or a confidence is outside [0, 1].
    """
    if confidence.shape != is_right.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(
            "expected two vectors of one length above 0, "
            f"got shapes {confidence.shape} and {is_right.shape}"
        )
    values = confidence.astype(np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("confidences must lie in [0, 1]")
    bins = np.clip(np.ceil(values * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    sums = np.bincount(bins, weights=values, minlength=n_bins)
    n_right = np.bincount(bins, weights=is_right.astype(np.float64), minlength=n_bins)
    error = float(np.abs(n_right - sums).sum() / len(values))
    mean_confidence = np.full(n_bins, np.nan)
    share_right = np.full(n_bins, np.nan)
    has_images = counts > 0
    np.divide(sums, counts, out=mean_confidence, where=has_images)
    np.divide(n_right, counts, out=share_right, where=has_images)
    return Calibration(error, counts, mean_confidence, share_right)
