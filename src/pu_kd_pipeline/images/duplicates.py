"""Copies of the same image in several stores.

Copies are found by equal pixels, and by nearly equal pictures (`learning.near_duplicates`). A copy
of a test image among the images that a student learns from makes its test accuracy meaningless, so
those copies are left out of every manifest. PU classifier and teacher may have learned from such
copies as well: these are only counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.params.data_ingestion import NearDuplicateParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.progress import count_images
from pu_kd_pipeline.storage.yardstick import yardstick_ids

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

TEST = "test"
LABELED = "labeled"
POOL = "pool"
TEACHER_TRAINING = "teacher_training"
STORES = (TEST, LABELED, POOL, TEACHER_TRAINING)  # of a pair, the later one is called the copy
NEAR_DUPLICATE_STORES = (
    TEST,
    LABELED,
)  # the small stores: two large ones have too many pairs of pictures
COLUMNS = ["id", "store", "kind", "other_store", "other_id", "distance"]
SAMPLE_SIZE = 20_000  # images of a large store that show how similar different images can be
_VALUES_AT_A_TIME = 2**25  # pixel values that are read per batch


def find_duplicates(
    stores: Mapping[str, ImageStore], params: NearDuplicateParams | None
) -> pd.DataFrame:
    """Return one row per image of a store and other store that holds a copy: the nearest copy.

    Columns: `id`, `store`, `kind` (exact: equal pixels at the working size; near), `other_store`,
    `other_id`, `distance` (0 for an exact copy). Of two stores, `store` is the later one in
    `STORES`. Near copies are searched for only among test and labeled images. The `attrs` hold the
    limits, the fingerprints of the stores, and the number of copies.

    Args:
        stores: the stores, by the names of `STORES`.
        params: limits for near copies; None: search for equal pixels only.

    Raises:
        InputError: the stores hold images of different shapes.
    """
    shapes = {store.image_shape for store in stores.values()}
    if len(shapes) > 1:
        raise InputError(
            "the stores hold images of different forms: run `kedro run --pipeline=data_ingestion` "
            "again"
        )

    pairs = [(name, other) for other, name in combinations(STORES, 2)]
    found = [_exact_copies(stores, name, other) for name, other in pairs]
    if params is not None:
        found += _near_copies(stores, params)
    table = pd.concat(found, ignore_index=True)
    # Exact copies come first, so they are kept where the same pair was also found by its picture.
    table = table.drop_duplicates(["id", "store", "other_store"], ignore_index=True)

    counts = {}
    for name, other in pairs:
        counts[f"{name} and {other}"] = _counts(table, name, other, params)
    limits = None
    if params is not None:
        limits = params.model_dump(mode="json")
    fingerprints = {}
    for name in STORES:
        fingerprints[f"{name}_images"] = stores[name].fingerprint
    table.attrs.update(near_duplicates=limits, counts=counts, fingerprints=fingerprints)
    _log_copies_of_test_images(table, stores)
    return table


@dataclass(frozen=True)
class Excluded:
    """The ids of the images that no student may learn from.

    Attributes:
        labeled: labeled images that are copies of test images.
        pool: pool images that are.
        yardstick_labeled: labeled images on which students are measured.
        yardstick_pool: pool images on which students are measured, and pool images that are copies
            of `yardstick_labeled`.
    """

    labeled: frozenset[str] = frozenset()
    pool: frozenset[str] = frozenset()
    yardstick_labeled: frozenset[str] = frozenset()
    yardstick_pool: frozenset[str] = frozenset()

    @property
    def all_labeled(self) -> frozenset[str]:
        """The labeled images that no student may learn from, for either reason."""
        return self.labeled | self.yardstick_labeled

    @property
    def all_pool(self) -> frozenset[str]:
        """The pool images that no student may learn from, for either reason."""
        return self.pool | self.yardstick_pool


NOTHING_EXCLUDED = Excluded()


def excluded_images(
    duplicates: pd.DataFrame, params: SubsetParams, yardstick: pd.DataFrame | None = None
) -> Excluded:
    """Return the labeled and pool images that no manifest may hold.

    These are copies of test images, unless the parameters ask to keep them, and the yardstick.
    """
    excluded = NOTHING_EXCLUDED
    if params.exclude_test_duplicates:
        excluded = Excluded(
            labeled=copies_of(duplicates, LABELED, TEST),
            pool=copies_of(duplicates, POOL, TEST),
        )
    if yardstick is None:
        return excluded
    labeled = yardstick_ids(yardstick, LABELED)
    copies = copies_of(duplicates, POOL, LABELED, labeled)
    return replace(
        excluded,
        yardstick_labeled=labeled,
        yardstick_pool=yardstick_ids(yardstick, POOL) | copies,
    )


def copies_of(
    duplicates: pd.DataFrame, store: str, other: str, other_ids: frozenset[str] | None = None
) -> frozenset[str]:
    """Return the ids of the images of a store that are copies of images of another store.

    Args:
        duplicates: the table of `find_duplicates`.
        store: a name of `STORES`.
        other: an earlier name of `STORES`.
        other_ids: the images of `other` that count; None: all of them.
    """
    is_in_store = duplicates["store"] == store
    is_copy = is_in_store & (duplicates["other_store"] == other)
    if other_ids is not None:
        is_copy &= duplicates["other_id"].isin(other_ids)
    return frozenset(duplicates["id"][is_copy])


def test_image_copies(duplicates: pd.DataFrame, store: str) -> list[str]:
    """Return the ids of the images of a store that are copies of test images."""
    return sorted(copies_of(duplicates, store, TEST))


def _exact_copies(stores: Mapping[str, ImageStore], name: str, other: str) -> pd.DataFrame:
    # Pixels are unique within a store: ingestion quarantines repeated ones.
    columns = ["id", "sha256"]
    own = stores[name].index[columns]
    others = stores[other].index[columns]
    others = others.rename(columns={"id": "other_id"})
    both = own.merge(others, on="sha256")

    ids = both["id"].to_numpy()
    other_ids = both["other_id"].to_numpy()
    distances = np.zeros(len(both))
    return _copies_table(name, "exact", other, ids, other_ids, distances)


def _near_copies(
    stores: Mapping[str, ImageStore], params: NearDuplicateParams
) -> list[pd.DataFrame]:
    import torch

    from pu_kd_pipeline.learning.near_duplicates import find_copies

    references: dict[str, Tensor] = {}
    for name in NEAR_DUPLICATE_STORES:
        if len(stores[name]) == 0:
            continue
        batches = list(_fingerprints(stores[name]))
        references[name] = torch.cat(batches)
    if not references:
        return []

    limits = _copy_limits(stores, references, params)
    reference_ids = {}
    for name in references:
        reference_ids[name] = stores[name].index["id"].to_numpy()

    found = []
    for name in STORES[1:]:
        # Each pair of stores once, with the later one as `store`.
        earlier = STORES[: STORES.index(name)]
        searched = [other for other in references if other in earlier]
        ids = stores[name].index["id"].to_numpy()
        start = 0
        for fingerprints in _fingerprints(stores[name]):
            for other in searched:
                copies = find_copies(fingerprints, references[other], limits[other])
                rows = start + copies.rows.numpy()
                other_rows = copies.references.numpy()
                other_ids = reference_ids[other][other_rows]
                distances = copies.distances.numpy()
                table = _copies_table(name, "near", other, ids[rows], other_ids, distances)
                found.append(table)
            start += len(fingerprints)
    return found


def _copy_limits(
    stores: Mapping[str, ImageStore],
    references: Mapping[str, Tensor],
    params: NearDuplicateParams,
) -> dict[str, Tensor]:
    """Return per small store the distance below which an image is a copy of each of its images."""
    import torch

    from pu_kd_pipeline.learning.near_duplicates import copy_limits

    # How near different images come is measured on samples of the large stores.
    sampled: list[Tensor] = []
    for name in (POOL, TEACHER_TRAINING):
        sampled += _fingerprints(stores[name], SAMPLE_SIZE)

    limits = {}
    for name, own in references.items():
        others = [each for other, each in references.items() if other != name]
        # The empty slice gives the dtype and the width if there is nothing else to compare with.
        different_images = torch.cat([own[:0], *others, *sampled])
        limits[name] = copy_limits(own, different_images, **params.model_dump())
    return limits


def _fingerprints(store: ImageStore, n_images: int | None = None) -> Iterator[Tensor]:
    """Yield the fingerprints of a store's images, batch by batch in row order.

    Args:
        store: the images.
        n_images: how many to take, evenly spaced over the store; None: all.
    """
    import torch

    from pu_kd_pipeline.learning.near_duplicates import fingerprints

    n_stored = len(store)
    if n_images is None or n_images > n_stored:
        n_images = n_stored
    numbers = np.arange(n_images, dtype=np.int64)
    rows = numbers * n_stored // max(1, n_images)
    values_per_image = math.prod(store.image_shape)
    batch_size = max(1, _VALUES_AT_A_TIME // values_per_image)

    with count_images(f"fingerprints of {store.folder.name}", n_images) as count:
        for start in range(0, n_images, batch_size):
            batch_rows = rows[start : start + batch_size]
            images = torch.from_numpy(store.read(batch_rows))
            found = fingerprints(images)
            count(len(batch_rows))
            yield found


def _copies_table(
    name: str,
    kind: str,
    other: str,
    ids: np.ndarray,
    other_ids: np.ndarray,
    distances: np.ndarray,
) -> pd.DataFrame:
    # Stated dtypes, so that an empty table has the same ones.
    n = len(ids)
    return pd.DataFrame(
        {
            "id": pd.array(ids, dtype="str"),
            "store": pd.array([name] * n, dtype="str"),
            "kind": pd.array([kind] * n, dtype="str"),
            "other_store": pd.array([other] * n, dtype="str"),
            "other_id": pd.array(other_ids, dtype="str"),
            "distance": np.asarray(distances, dtype=np.float64),
        },
        columns=COLUMNS,
    )


def _counts(
    table: pd.DataFrame, name: str, other: str, params: NearDuplicateParams | None
) -> dict[str, int | None]:
    """Return how many exact and near copies there are; None if near ones were not searched for."""
    is_store = table["store"] == name
    is_other_store = table["other_store"] == other
    is_pair = is_store & is_other_store
    kinds = table["kind"][is_pair]
    is_exact = kinds == "exact"
    is_near = kinds == "near"
    n_exact = int(is_exact.sum())
    n_near = int(is_near.sum())

    if params is None or other not in NEAR_DUPLICATE_STORES:
        return {"exact": n_exact, "near": None}
    return {"exact": n_exact, "near": n_near}


def _log_copies_of_test_images(table: pd.DataFrame, stores: Mapping[str, ImageStore]) -> None:
    for name in STORES[1:]:
        n_copies = len(test_image_copies(table, name))
        if n_copies == 0:
            continue
        counts = table.attrs["counts"][f"{name} and {TEST}"]
        logger.warning(
            "%d of %d %s images are copies of test images (%d exact, %d near)",
            n_copies,
            len(stores[name]),
            name,
            counts["exact"],
            counts["near"] or 0,
        )
    if not (table["other_store"] == TEST).any():
        logger.info("no image is a copy of one of the %d test images", len(stores[TEST]))
