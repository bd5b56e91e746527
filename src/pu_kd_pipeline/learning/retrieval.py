"""The pool images nearest to each labeled image, block by block in bounded memory. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
_BLOCK_VALUES = 2**22  # similarities that are held at once, 16 MB


def unit_vectors(vectors: NDArray[np.floating]) -> Vectors:
    """Return (n, d) float32 vectors of length one; a vector of zeros stays one."""
    exact = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.maximum(lengths, np.finfo(np.float32).tiny)


def largest_cosines(
    queries: Vectors, vectors: Vectors, *, leave_one_out: bool = False
) -> NDArray[np.float64]:
    """Return the (n,) largest cosine of each vector with a query.

    In double precision: a ranking by it does not change with the order of the vectors.

    Args:
        queries: (q, d) unit vectors, q > 0.
        vectors: (n, d) unit vectors.
        leave_one_out: the vectors are the queries, q > 1, and none is compared with itself.
    """
    columns = queries.astype(np.float64).T
    size = max(1, _BLOCK_VALUES // len(queries))
    largest = np.empty(len(vectors), dtype=np.float64)
    for start in range(0, len(vectors), size):
        block = vectors[start : start + size].astype(np.float64)
        cosines = block @ columns
        if leave_one_out:
            rows = np.arange(len(block))
            cosines[rows, start + rows] = -np.inf
        largest[start : start + size] = cosines.max(axis=1)
    return largest


class NearestImages:
    """Keeps the images nearest to each of q queries, of all that are added.

    Args:
        queries: (q, d) unit vectors.
        n_kept: images kept per query, at least 1.
        duplicate_cosine: images at least this similar to the query are taken for copies of it and
            skipped; above 1: none.
    """

    def __init__(self, queries: Vectors, n_kept: int, duplicate_cosine: float) -> None:
        self._queries = queries
        self._n_kept = n_kept
        self._duplicate_cosine = duplicate_cosine
        n_queries = len(queries)
        self.rows: NDArray[np.int64] = np.empty((n_queries, 0), dtype=np.int64)
        """(q, m) positions, nearest first; -1 where there are fewer. m grows up to `n_kept`."""
        self._cosines: Vectors = np.empty((n_queries, 0), dtype=np.float32)

    def add(self, vectors: Vectors, positions: NDArray[np.int64]) -> None:
        """Compare (n, d) unit vectors of images at (n,) positions with all queries."""
        size = max(1, _BLOCK_VALUES // max(1, len(self._queries)))
        for start in range(0, len(vectors), size):
            block = vectors[start : start + size]
            cosines = self._queries @ block.T
            cosines[cosines >= self._duplicate_cosine] = -np.inf
            # Of a large pool, hardly any image is near enough to a query to be kept.
            is_candidate = (cosines >= self._least_kept()).any(axis=0)
            candidates = np.flatnonzero(is_candidate)
            if len(candidates):
                self._merge(cosines[:, candidates], positions[start + candidates])

    def _least_kept(self) -> Vectors:
        """Return the (q, 1) cosines below which an image is not among the nearest."""
        if self._cosines.shape[1] < self._n_kept:
            return np.full((len(self._queries), 1), -np.inf, dtype=np.float32)
        return self._cosines[:, -1:]

    def _merge(self, cosines: Vectors, positions: NDArray[np.int64]) -> None:
        rows = np.broadcast_to(positions, cosines.shape)
        rows = np.where(np.isneginf(cosines), -1, rows)
        all_cosines = np.concatenate([self._cosines, cosines], axis=1)
        all_rows = np.concatenate([self.rows, rows], axis=1)
        # By falling similarity, and by position where that is equal.
        order = np.lexsort((all_rows, -all_cosines), axis=1)[:, : self._n_kept]
        self._cosines = np.take_along_axis(all_cosines, order, axis=1)
        self.rows = np.take_along_axis(all_rows, order, axis=1)


@dataclass(frozen=True, eq=False)
class Neighbors:
    """What the rule `retrieved` knows of the pool.

    Attributes:
        names: (q,) of the labeled images.
        rows: (q, m) pool rows nearest to each, nearest first; -1 where there are fewer.
        vectors: unit vectors of pool rows, by row, of all that are in `rows`.
        clusters: (n,) cluster of each pool image, at least 0.
        duplicate_cosine: images at least this similar are copies of each other.
    """

    names: NDArray[np.str_]
    rows: NDArray[np.int64]
    vectors: dict[int, Vectors]
    clusters: NDArray[np.int64]
    duplicate_cosine: float

    def in_turn(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return up to n distinct pool rows, and for which labeled image each was retrieved.

        The labeled images take turns; each takes its nearest image that is not taken yet and is no
        copy of one that it took before.
        """
        n_queries = len(self.rows)
        next_place = np.zeros(n_queries, dtype=np.int64)
        taken_by: list[list[int]] = [[] for _ in range(n_queries)]
        is_taken: set[int] = set()
        found: list[int] = []
        found_for: list[int] = []
        is_open = np.ones(n_queries, dtype=bool)
        while len(found) < n and is_open.any():
            for query in np.flatnonzero(is_open).tolist():
                row = self._next(query, next_place, is_taken, taken_by[query])
                if row < 0:
                    is_open[query] = False
                    continue
                is_taken.add(row)
                taken_by[query].append(row)
                found.append(row)
                found_for.append(query)
                if len(found) == n:
                    break
        return np.array(found, dtype=np.int64), np.array(found_for, dtype=np.int64)

    def _next(
        self, query: int, next_place: NDArray[np.int64], is_taken: set[int], own: list[int]
    ) -> int:
        """Return the next pool row of a labeled image; -1 if it has no more."""
        candidates = self.rows[query]
        while next_place[query] < len(candidates):
            row = int(candidates[next_place[query]])
            next_place[query] += 1
            if row < 0:
                return -1
            if row not in is_taken and not self._is_copy(row, own):
                return row
        return -1

    def _is_copy(self, row: int, others: list[int]) -> bool:
        if not others or self.duplicate_cosine > 1.0:
            return False
        vectors = np.stack([self.vectors[other] for other in others])
        return bool((vectors @ self.vectors[row] >= self.duplicate_cosine).any())
