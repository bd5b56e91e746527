"""The neighbors of the labeled images in the pool, and its clusters, from stored features.

The pool's features are read shard by shard, four times at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.store import ImageStore, find_rows
from pu_kd_pipeline.learning.retrieval import (
    NearestImages,
    Neighbors,
    largest_cosines,
    unit_vectors,
)
from pu_kd_pipeline.params.subset_materialization import RetrievedParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable, as_array

# Candidates kept per labeled image, times its part of the retrieved images: neighbors are shared.
_SLACK = 4
_MIN_CANDIDATES = 32
_MAX_FITTED = 20_000  # pool images that the clusters are fitted to
_RESTARTS = 3  # of k-means, of which the best is kept


class FeatureSpace:
    """Unit vectors of images, by the standardized descriptors or the probabilities of the teacher.

    Args:
        space: `descriptor` or `probability`.
        pool_features: mean and standard deviation of the descriptors are those of the pool.
    """

    def __init__(self, space: str, pool_features: ShardedTable) -> None:
        self._space = space
        self._mean: np.ndarray = np.zeros(1, dtype=np.float32)
        self._scale: np.ndarray = np.ones(1, dtype=np.float32)
        if space == "descriptor":
            self._mean, self._scale = _moments(pool_features)

    def shards(self, features: ShardedTable) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the (n,) ids and (n, d) float32 unit vectors of each shard."""
        column = "descriptor"
        if self._space == "probability":
            column = "logits"
        for table in features.shards(["id", column]):
            values = as_array(table[column]).astype(np.float32)
            if self._space == "probability":
                values = torch.softmax(torch.from_numpy(values), dim=1).numpy()
            else:
                values = (values - self._mean) / self._scale
            yield table["id"].to_pandas().to_numpy(), unit_vectors(values)


def _moments(features: ShardedTable) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each channel; 1 where it is constant."""
    n = 0
    total: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0
    for table in features.shards(["descriptor"]):
        values = as_array(table["descriptor"]).astype(np.float64)
        n += len(values)
        total = total + values.sum(axis=0)
        squares = squares + np.square(values).sum(axis=0)
    mean = np.asarray(total) / n
    variance = np.asarray(squares) / n - np.square(mean)
    # Rounding leaves a little variance to constant channels.
    is_constant = variance <= 1e-9 * np.maximum(np.square(mean), 1e-12)
    scale = np.sqrt(np.where(is_constant, 1.0, variance))
    return mean.astype(np.float32), scale.astype(np.float32)


def find_neighbors(
    labeled_ids: np.ndarray,
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
    pool_images: ImageStore,
    rows: np.ndarray,
    n_retrieved: int,
    params: RetrievedParams,
    seed: int,
) -> Neighbors:
    """Return the neighbors of the labeled images and the clusters of the pool.

    Args:
        labeled_ids: (q,) of the labeled images that are not excluded, q > 0.
        labeled_features: they hold these images.
        pool_features: they hold the pool.
        pool_images: the pool.
        rows: (n,) rows in the store of the pool images that can be selected.
        n_retrieved: how many images are retrieved in all.
        params: feature space, number of clusters, and from which similarity on an image is a copy.
        seed: of the clusters.

    Raises:
        InputError: the features do not hold the images.
    """
    space = FeatureSpace(params.space, pool_features)
    queries = _vectors_of(labeled_ids, space, labeled_features)
    place_of_row = np.full(len(pool_images), -1, dtype=np.int64)
    place_of_row[rows] = np.arange(len(rows))

    share = -(-n_retrieved // len(labeled_ids))
    n_kept = min(len(rows), max(_MIN_CANDIDATES, _SLACK * share))
    nearest = NearestImages(queries, n_kept, params.duplicate_cosine)
    n_found = 0
    for places, vectors in _pool(space, pool_features, pool_images, place_of_row):
        nearest.add(vectors, places)
        n_found += len(places)
    if n_found != len(rows):
        raise InputError(
            f"pool_features: they hold {n_found:,} of the {len(rows):,} pool images that can be "
            "selected. Run the stages from `feature_extraction` on again"
        )
    wanted = np.unique(nearest.rows)
    vector_of = {}
    for places, vectors in _pool(space, pool_features, pool_images, place_of_row):
        for index in np.flatnonzero(np.isin(places, wanted)):
            vector_of[int(places[index])] = vectors[index].copy()

    clusters = _clusters(space, pool_features, pool_images, place_of_row, params, seed)
    names = labeled_ids.astype(str)
    return Neighbors(names, nearest.rows, vector_of, clusters, params.duplicate_cosine)


class Scores(NamedTuple):
    """A score of pool images and of labeled images, larger for more related ones."""

    pool: np.ndarray
    """(n,) float64, in the order of the pool's features."""
    labeled: np.ndarray
    """(q,) float64."""


def similarities_to_labeled(
    labeled_ids: np.ndarray, labeled_features: ShardedTable, pool_features: ShardedTable
) -> Scores:
    """Return the largest cosine of each image with a labeled one, by standardized descriptors.

    Labeled images are compared with the other labeled ones.

    Args:
        labeled_ids: (q,) of the labeled images that are compared with, q > 1.
        labeled_features: they hold these images.
        pool_features: they hold the pool.

    Raises:
        InputError: the features do not hold the labeled images.
    """
    space = FeatureSpace("descriptor", pool_features)
    queries = _vectors_of(labeled_ids, space, labeled_features)
    cosines = []
    for _, vectors in space.shards(pool_features):
        cosines.append(largest_cosines(queries, vectors))
    of_labeled = largest_cosines(queries, queries, leave_one_out=True)
    return Scores(np.concatenate(cosines), of_labeled)


def _pool(
    space: FeatureSpace,
    pool_features: ShardedTable,
    pool_images: ImageStore,
    place_of_row: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield places and vectors of the pool images that can be selected, shard by shard."""
    for ids, vectors in space.shards(pool_features):
        places = place_of_row[find_rows(pool_images, ids, "pool_features")]
        is_selectable = places >= 0
        yield places[is_selectable], vectors[is_selectable]


def _vectors_of(ids: np.ndarray, space: FeatureSpace, features: ShardedTable) -> np.ndarray:
    """Return the (q, d) vectors of the labeled images with these ids, in their order."""
    wanted = pd.Index(ids)
    found_places = []
    found_vectors = []
    for shard_ids, vectors in space.shards(features):
        places = wanted.get_indexer(shard_ids)
        is_wanted = places >= 0
        found_places.append(places[is_wanted])
        found_vectors.append(vectors[is_wanted])
    n_found = sum(len(places) for places in found_places)
    if n_found != len(ids):
        raise InputError(
            f"labeled_features: they hold {n_found:,} of the {len(ids):,} labeled images. Run "
            "the stages from `feature_extraction` on again"
        )
    order = np.argsort(np.concatenate(found_places))
    return np.concatenate(found_vectors)[order]


def _clusters(
    space: FeatureSpace,
    pool_features: ShardedTable,
    pool_images: ImageStore,
    place_of_row: np.ndarray,
    params: RetrievedParams,
    seed: int,
) -> np.ndarray:
    """Return the (n,) cluster of each pool image that can be selected."""
    from sklearn.cluster import MiniBatchKMeans

    n = int((place_of_row >= 0).sum())
    rng = np.random.default_rng(seed)
    fitted = np.sort(rng.permutation(n)[:_MAX_FITTED])
    sample = np.empty((len(fitted), 0), dtype=np.float32)
    for places, vectors in _pool(space, pool_features, pool_images, place_of_row):
        if not sample.shape[1]:
            sample = np.empty((len(fitted), vectors.shape[1]), dtype=np.float32)
        in_sample = np.searchsorted(fitted, places)
        in_sample = np.minimum(in_sample, len(fitted) - 1)
        is_in_sample = fitted[in_sample] == places
        # In the order of the selectable images, not in that of the shards.
        sample[in_sample[is_in_sample]] = vectors[is_in_sample]
    n_clusters = min(params.n_clusters, len(fitted))
    means = MiniBatchKMeans(n_clusters, random_state=seed, n_init=_RESTARTS, batch_size=1024)
    means.fit(sample)

    clusters = np.empty(n, dtype=np.int64)
    for places, vectors in _pool(space, pool_features, pool_images, place_of_row):
        if len(places):
            clusters[places] = means.predict(vectors)
    return clusters
