"""Scores of positives and of unlabeled mixtures with a known class prior."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[np.float64]


# Few distinct integers, so that ties are common.
def as_floats(values: list[int]) -> Array:
    return np.array(values, dtype=float)


# Few distinct integers, so that ties are common.
score_arrays = st.lists(st.integers(-5, 5), min_size=1, max_size=15).map(as_floats)


def mixture(
    class_prior: float, n_positive: int, n_unlabeled: int, seed: int = 0
) -> tuple[Array, Array]:
    """Return scores of positives, N(3, 1), and of a mixture of them with negatives, N(0, 1)."""
    rng = np.random.default_rng(seed)
    n_hidden = round(class_prior * n_unlabeled)
    n_negative = n_unlabeled - n_hidden
    # The positives among the unlabeled are not those of the first array.
    hidden = rng.normal(3, 1, n_hidden)
    negative = rng.normal(0, 1, n_negative)
    positive = rng.normal(3, 1, n_positive)
    unlabeled = np.concatenate([hidden, negative])
    return positive, unlabeled
