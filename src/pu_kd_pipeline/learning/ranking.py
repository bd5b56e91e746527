"""Orders of the images of a pool: best first, at random, and within groups. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def best_first(scores: NDArray[np.floating[Any]], tie_break: NDArray[np.uint64]) -> Rows:
    """Return (n,) the rows by falling score; equal scores by rising tie break.

    Args:
        scores: (n,) without NaN.
        tie_break: (n,) numbers that depend on neither the scores nor the order of the rows.
    """
    # `lexsort` sorts by its last key, and by the others where that is equal.
    order = np.lexsort((tie_break, -scores))
    return order.astype(np.int64)


def n_tied_at_cut(ranked_scores: NDArray[np.floating[Any]], n_kept: int) -> int:
    """Return how many images share the score of the last kept one, if the cut separates them.

    0 where all images with that score are kept: no tie decides then.

    Args:
        ranked_scores: (n,) best first.
        n_kept: how many are kept, at least 1.
    """
    n_kept = min(n_kept, len(ranked_scores))
    is_tied = ranked_scores == ranked_scores[n_kept - 1]
    is_separated = is_tied[n_kept:].any()
    if not is_separated:
        return 0
    return int(is_tied.sum())


def random_order(n: int, rng: np.random.Generator) -> Rows:
    """Return (n,) all rows, permuted."""
    order = rng.permutation(n)
    return order.astype(np.int64)


def places_within_groups(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each item its place, from 0, among the items of its group.

    Args:
        groups: (n,) number of the group of each item, at least 0.
    """
    by_group = np.argsort(groups, kind="stable")
    # Every group has a value of at least 0, so that -1 marks the first item as a start, too.
    n = len(groups)
    steps = np.diff(groups[by_group], prepend=-1)
    starts = np.flatnonzero(steps)
    sizes = np.diff(starts, append=n)
    start_of_each = np.repeat(starts, sizes)
    places = np.empty(n, dtype=np.int64)
    places[by_group] = np.arange(n) - start_of_each
    return places
