"""Scores of positives and of unlabeled mixtures with a known class prior."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Few distinct integers, so that ties are common.
score_arrays = st.lists(st.integers(-5, 5), min_size=1, max_size=15).map(
    lambda values: np.array(values, dtype=float)
)


def mixture(
    class_prior: float, n_positive: int, n_unlabeled: int, seed: int = 0
) -> tuple[Array, Array]:
    """Return scores of positives, N(3, 1), and of a mixture of them with negatives, N(0, 1)."""
    rng = np.random.default_rng(seed)
    n_hidden = round(class_prior * n_unlabeled)
    hidden = rng.normal(3, 1, n_hidden)
    negative = rng.normal(0, 1, n_unlabeled - n_hidden)
    positive = rng.normal(3, 1, n_positive)
    return positive, np.concatenate([hidden, negative])
