"""Drawing the classes of a pool evenly. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def balanced_probabilities(
    probabilities: NDArray[np.float64],
    classes: NDArray[np.integer[Any]],
    *,
    max_factor: float,
) -> NDArray[np.float64]:
    """Return p_i ~ q_i min(f, 1 / (M s_k)), with k the class of sample i: classes drawn evenly.

    s_k is the share of class k of the draws by q, M the number of classes that are drawn at all:
    without the limit f every one of them has a share of 1 / M, and within a class the ratios of q
    stay. The limit keeps a class of a few images, which the teacher may have found by mistake, from
    being a tenth of every batch. Class-balanced sampling, see Kang et al. 2020 (arXiv:1910.09217);
    the limit is ours.

    Args:
        probabilities: q, (n,) non-negative, with a positive sum; n > 0.
        classes: (n,) the teacher's class of each sample, at least 0.
        max_factor: f >= 1, before the probabilities are scaled to sum to one again.

    Returns:
        (n,) float64, summing to one.

    Raises:
        ValueError: an argument cannot be used.
    """
    if not max_factor >= 1.0:
        raise ValueError(f"max_factor must be at least 1, got {max_factor!r}")
    total = probabilities.sum()
    if not total > 0.0 or (probabilities < 0).any():
        raise ValueError("probabilities must be non-negative with a positive sum")
    drawn = probabilities / total
    shares = np.bincount(classes, weights=drawn)
    n_drawn = np.count_nonzero(shares)
    factors = np.zeros_like(shares)
    # Classes without draws stay at zero.
    np.divide(1.0 / n_drawn, shares, out=factors, where=shares > 0)
    limited = np.minimum(factors, max_factor)
    balanced = drawn * limited[classes]
    return balanced / balanced.sum()
