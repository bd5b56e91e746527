"""Copies of the same image in several stores.

Copies are found by equal pixels, and by nearly equal pictures (`learning.near_duplicates`). A copy
of a test image among the images that a student learns from makes its test accuracy meaningless, so
those copies are left out of every manifest. PU classifier and teacher may have learned from such
copies as well: these are only counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.store_file import Shard
from pu_kd_pipeline.params.data_ingestion import NearDuplicateParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.progress import count_images
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint
from pu_kd_pipeline.storage.digests import json_digest
from pu_kd_pipeline.storage.parquet_files import write_parquet
from pu_kd_pipeline.storage.sharded_table import ShardedTable
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
NEAR_COPIES = pa.schema(
    [
        ("id", pa.string()),
        ("store", pa.string()),
        ("other_store", pa.string()),
        ("other_id", pa.string()),
        ("distance", pa.float32()),
    ]
)
SAMPLE_SIZE = 20_000  # images of a large store that show how similar different images can be
_VALUES_AT_A_TIME = 2**25  # pixel values that are read per batch


def find_duplicates(
    stores: Mapping[str, ImageStore],
    params: NearDuplicateParams | None,
    near_copies: ShardedTable | None = None,
) -> pd.DataFrame:
    """Return one row per image of a store and other store that holds a copy: the nearest copy.

    Columns: `id`, `store`, `kind` (exact: equal pixels at the working size; near), `other_store`,
    `other_id`, `distance` (0 for an exact copy). Of two stores, `store` is the later one in
    `STORES`. Near copies are searched for only among test and labeled images. The `attrs` hold the
    limits, the fingerprints of the stores, and the number of copies.

    Args:
        stores: the stores, by the names of `STORES`.
        params: limits for near copies; None: search for equal pixels only.
        near_copies: the table of `near_copy_shards`; None: they are searched for here.

    Raises:
        InputError: the stores hold images of different shapes, or others than the near copies were
            searched in.
    """
    _check_shapes(stores)
    pairs = [(name, other) for other, name in combinations(STORES, 2)]
    found = [_exact_copies(stores, name, other) for name, other in pairs]
    if params is not None:
        for near in _near_copies(stores, params, near_copies):
            found.append(_near_copies_table(near))
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
    # Stated dtypes, so that an empty table has the same ones.
    n_copies = len(both)
    return pd.DataFrame(
        {
            "id": pd.array(ids, dtype="str"),
            "store": pd.array([name] * n_copies, dtype="str"),
            "kind": pd.array(["exact"] * n_copies, dtype="str"),
            "other_store": pd.array([other] * n_copies, dtype="str"),
            "other_id": pd.array(other_ids, dtype="str"),
            "distance": np.zeros(n_copies),
        },
        columns=COLUMNS,
    )


def _check_shapes(stores: Mapping[str, ImageStore]) -> None:
    """Check that images of different stores can be compared.

    Raises:
        InputError: they have different shapes.
    """
    shapes = {store.image_shape for store in stores.values()}
    if len(shapes) > 1:
        raise InputError(
            "the stores hold images of different forms: run `kedro run --pipeline=data_ingestion` "
            "again"
        )


# --- near copies


def near_copy_shards(
    stores: Mapping[str, ImageStore], params: NearDuplicateParams | None
) -> ShardMakers:
    """Return one function per shard of the stores that finds its near copies of other images.

    The columns are those of `NEAR_COPIES`: one row per image of the shard and other store that
    holds a near copy. The names consist of store, shard, and a hash of all images, limits, code and
    libraries: how near different images come is measured on samples of all stores.

    Args:
        stores: the stores, by the names of `STORES`.
        params: limits; None: near copies are not searched for, and there are no shards.

    Raises:
        InputError: the stores hold images of different shapes.
    """
    if params is None:
        return ShardMakers(_NothingToFind(), {})
    _check_shapes(stores)
    work = NearCopyWork(dict(stores), params)
    suffix = json_digest([*work.facts().values(), *work.inputs()])[:12]
    shards = []
    # Nothing is earlier than the first store, and in an empty one nothing is found.
    for name in STORES[1:]:
        for shard in stores[name].shards:
            shards.append((f"{name}-{shard.name}", PlacedShard(name, shard), shard.n))
    return ShardMakers.of_images(work, shards, suffix)


class PlacedShard(NamedTuple):
    """A shard of one of several stores."""

    store: str
    shard: Shard


class _References(NamedTuple):
    """What images are compared with, by the names of the small stores that hold images."""

    fingerprints: dict[str, Tensor]
    limits: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class NearCopyWork:
    """Finds the near copies among the images of any shard of some stores.

    The fingerprints of the small stores, and the distances of different images, are found once, by
    the process that sends this work to others.
    """

    stores: dict[str, ImageStore]
    params: NearDuplicateParams

    def __getstate__(self) -> dict[str, Any]:
        """Take along what all shards are compared with."""
        return {"stores": self.stores, "params": self.params, "_references": self._references}

    def __call__(self, placed: PlacedShard) -> pa.Table:
        """Return the table of a shard, see `near_copy_shards`."""
        from pu_kd_pipeline.learning.near_duplicates import find_copies

        # Each pair of stores once, with the later one as `store`.
        earlier = STORES[: STORES.index(placed.store)]
        references, limits = self._references
        searched = [other for other in references if other in earlier]
        if not searched:
            return NEAR_COPIES.empty_table()
        shard = placed.shard
        store = self.stores[placed.store]
        ids = store.shard_ids(shard).cast(pa.string())
        rows_of_shard = np.arange(shard.start, shard.start + shard.n, dtype=np.int64)
        tables = [NEAR_COPIES.empty_table()]
        start = 0
        for fingerprints in _fingerprints(store, rows_of_shard):
            for other in searched:
                copies = find_copies(fingerprints, references[other], limits[other])
                n_copies = len(copies.rows)
                columns = {
                    "id": ids.take(pa.array(start + copies.rows.numpy())),
                    "store": pa.array([placed.store] * n_copies, pa.string()),
                    "other_store": pa.array([other] * n_copies, pa.string()),
                    "other_id": self._ids_of[other].take(pa.array(copies.references.numpy())),
                    "distance": pa.array(copies.distances.numpy()),
                }
                tables.append(pa.table(columns, schema=NEAR_COPIES))
            start += len(fingerprints)
        return pa.concat_tables(tables).combine_chunks()

    def facts(self) -> Mapping[str, str]:
        """Return what decides the near copies of an image, besides limits and images."""
        return {"code or libraries": maker_fingerprint(NearCopyWork, write_parquet)}

    def inputs(self) -> list[Any]:
        """Return the limits, and the fingerprints of all images."""
        fingerprints = [self.stores[name].fingerprint for name in STORES]
        return [self.params.model_dump(mode="json"), *fingerprints]

    @cached_property
    def _references(self) -> _References:
        import torch

        fingerprints: dict[str, Tensor] = {}
        for name in NEAR_DUPLICATE_STORES:
            store = self.stores[name]
            if len(store) == 0:
                continue
            batches = list(_fingerprints(store, np.arange(len(store))))
            fingerprints[name] = torch.cat(batches)
        if not fingerprints:
            return _References({}, {})
        return _References(fingerprints, _copy_limits(self.stores, fingerprints, self.params))

    @cached_property
    def _ids_of(self) -> dict[str, pa.Array]:
        """The ids of the images of the small stores, in row order."""
        ids = {}
        for name in self._references.fingerprints:
            ids[name] = pa.array(self.stores[name].index["id"], pa.string())
        return ids


class _NothingToFind:
    """The work of a table without shards."""

    def __call__(self, argument: Any) -> pa.Table:
        raise AssertionError(f"there is no shard {argument}")

    def facts(self) -> Mapping[str, str]:
        """Return nothing."""
        return {}


def _near_copies(
    stores: Mapping[str, ImageStore], params: NearDuplicateParams, found: ShardedTable | None
) -> Iterable[pa.Table]:
    """Return the tables of the near copies of all shards, found before or here.

    Raises:
        InputError: they were searched for in other images, or with other limits or code.
    """
    makers = near_copy_shards(stores, params)
    if found is None:
        return [make() for make in makers.values()]
    if found.names != tuple(makers):
        raise InputError(
            "near_copies: the images, the limits or the code changed since they were found: run "
            "`kedro run --pipeline=data_ingestion`"
        )
    return found.shards()


def _near_copies_table(near: pa.Table) -> pd.DataFrame:
    """Return the near copies of a shard as rows of the table of all copies."""
    table: pd.DataFrame = near.replace_schema_metadata().to_pandas()
    return pd.DataFrame(
        {
            "id": table["id"].astype("str"),
            "store": table["store"].astype("str"),
            "kind": pd.array(["near"] * len(table), dtype="str"),
            "other_store": table["other_store"].astype("str"),
            "other_id": table["other_id"].astype("str"),
            "distance": table["distance"].astype(np.float64),
        },
        columns=COLUMNS,
    )


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
        rows = _spread_rows(len(stores[name]), SAMPLE_SIZE)
        sampled += _fingerprints(stores[name], rows)

    limits = {}
    for name, own in references.items():
        others = [each for other, each in references.items() if other != name]
        # The empty slice gives the dtype and the width if there is nothing else to compare with.
        different_images = torch.cat([own[:0], *others, *sampled])
        limits[name] = copy_limits(own, different_images, **params.model_dump())
    return limits


def _spread_rows(n_stored: int, n_rows: int) -> np.ndarray:
    """Return at most that many row numbers, evenly spaced over a store."""
    n_rows = min(n_rows, n_stored)
    numbers = np.arange(n_rows, dtype=np.int64)
    return numbers * n_stored // max(1, n_rows)


def _fingerprints(store: ImageStore, rows: np.ndarray) -> Iterator[Tensor]:
    """Yield the fingerprints of the images in some rows of a store, batch by batch.

    Args:
        store: the images.
        rows: (n,) row numbers.
    """
    import torch

    from pu_kd_pipeline.learning.near_duplicates import fingerprints

    values_per_image = math.prod(store.image_shape)
    batch_size = max(1, _VALUES_AT_A_TIME // values_per_image)
    with count_images(f"fingerprints of {store.folder.name}", len(rows)) as count:
        for start in range(0, len(rows), batch_size):
            batch_rows = rows[start : start + batch_size]
            images = torch.from_numpy(store.read(batch_rows))
            found = fingerprints(images)
            count(len(batch_rows))
            yield found


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
