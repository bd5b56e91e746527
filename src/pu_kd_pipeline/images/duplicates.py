"""Copies of one image in several stores: by equal pixels, and by near-equal pictures (`learning.near_duplicates`).

A copy of a test image among the images that a student learns from makes its test accuracy worth nothing, so those are
left out of every manifest. PU classifier and teacher may have learned from them: these are counted, and no more.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.params.data_ingestion import NearDuplicateParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

TEST, LABELED, POOL, TEACHER_TRAINING = STORES = ("test", "labeled", "pool", "teacher_training")
BY_PICTURE = (TEST, LABELED)  # the small ones: two large stores have too many pairs of pictures
COLUMNS = ["id", "store", "kind", "other_store", "other_id", "distance"]
SAMPLE_SIZE = 20_000  # images of a large store that show how near different images come
_VALUES_AT_A_TIME = 2**25  # of pixels


def find_duplicates(
    stores: Mapping[str, ImageStore], params: NearDuplicateParams | None
) -> pd.DataFrame:
    """Return one row for every image of a store that is a copy of one of another store: of the nearest one there.

    Columns: `id`, `store`, `kind` (exact: equal pixels at the working size; near), `other_store`, `other_id`,
    `distance` (0 for an exact copy). Of two stores the later one in `STORES` is `store`. Near copies are looked for of
    test and labeled images only. The `attrs` say within which limits, in which stores, and how many copies there are.

    Args:
        stores: by the names of `STORES`.
        params: the limits; None: equal pixels only.

    Raises:
        InputError: the stores hold images of different forms.
    """
    if len({store.image_shape for store in stores.values()}) > 1:
        raise InputError(
            "the stores hold images of different forms: run `kedro run --pipeline=data_ingestion` again"
        )
    pairs = [(name, other) for other, name in combinations(STORES, 2)]
    found = [_exact(stores, name, other) for name, other in pairs] + (
        [] if params is None else _near(stores, params)
    )
    table = pd.concat(found, ignore_index=True).drop_duplicates(
        ["id", "store", "other_store"], ignore_index=True
    )
    table.attrs.update(
        near_duplicates=None if params is None else params.model_dump(mode="json"),
        counts={
            f"{name} and {other}": _counts(table, name, other, params) for name, other in pairs
        },
        fingerprints={f"{name}_images": stores[name].fingerprint for name in STORES},
    )
    _tell(table, stores)
    return table


@dataclass(frozen=True)
class Excluded:
    """The ids of the images that no student may learn from, for they are copies of test images."""

    labeled: frozenset[str] = frozenset()
    pool: frozenset[str] = frozenset()


NOTHING_EXCLUDED = Excluded()


def excluded_images(duplicates: pd.DataFrame, params: SubsetParams) -> Excluded:
    """Return the labeled and pool images that are copies of test images, or none where the parameters keep them."""
    if not params.exclude_test_duplicates:
        return NOTHING_EXCLUDED
    return Excluded(
        *(frozenset(copies_of_test_images(duplicates, store)) for store in (LABELED, POOL))
    )


def copies_of_test_images(duplicates: pd.DataFrame, store: str) -> list[str]:
    """Return the ids of the images of a store that are copies of test images."""
    is_copy = (duplicates["store"] == store) & (duplicates["other_store"] == TEST)
    return duplicates["id"][is_copy].tolist()


def _exact(stores: Mapping[str, ImageStore], name: str, other: str) -> pd.DataFrame:
    # pixels are unique within a store: ingestion sets repeated ones aside
    here, there = (stores[store].index[["id", "sha256"]] for store in (name, other))
    both = here.merge(there.rename(columns={"id": "other_id"}), on="sha256")
    return _rows(
        name,
        "exact",
        other,
        both["id"].to_numpy(),
        both["other_id"].to_numpy(),
        np.zeros(len(both)),
    )


def _near(stores: Mapping[str, ImageStore], params: NearDuplicateParams) -> list[pd.DataFrame]:
    import torch

    from pu_kd_pipeline.learning.near_duplicates import copy_limits, find_copies

    references = {
        name: torch.cat(list(_fingerprints(stores[name])))
        for name in BY_PICTURE
        if len(stores[name])
    }
    if not references:
        return []
    sampled = [
        each
        for name in (POOL, TEACHER_TRAINING)
        for each in _fingerprints(stores[name], SAMPLE_SIZE)
    ]
    limits = {}
    for name, own in references.items():
        others = [each for other, each in references.items() if other != name]
        limits[name] = copy_limits(
            own, torch.cat([own[:0], *others, *sampled]), **params.model_dump()
        )
    found = []
    for name in STORES[1:]:
        searched = [other for other in references if STORES.index(other) < STORES.index(name)]
        ids, start = stores[name].index["id"].to_numpy(), 0
        for fingerprints in _fingerprints(stores[name]):
            for other in searched:
                copies = find_copies(fingerprints, references[other], limits[other])
                other_ids = stores[other].index["id"].to_numpy()[copies.references.numpy()]
                rows = start + copies.rows.numpy()
                found.append(
                    _rows(name, "near", other, ids[rows], other_ids, copies.distances.numpy())
                )
            start += len(fingerprints)
    return found


def _fingerprints(store: ImageStore, n_images: int | None = None) -> Iterator[Tensor]:
    """Yield the fingerprints of a store's images, or of so many from all over it, batch by batch in row order."""
    import torch

    from pu_kd_pipeline.learning.near_duplicates import fingerprints

    n_images = len(store) if n_images is None else min(n_images, len(store))
    rows = np.arange(n_images, dtype=np.int64) * len(store) // max(1, n_images)
    batch_size = max(1, _VALUES_AT_A_TIME // math.prod(store.image_shape))
    for start in range(0, n_images, batch_size):
        yield fingerprints(torch.from_numpy(store.read(rows[start : start + batch_size])))


def _rows(
    name: str, kind: str, other: str, ids: Any, other_ids: Any, distances: Any
) -> pd.DataFrame:
    columns = (
        pd.array(ids, dtype="str"),
        *(pd.array([text] * len(ids), dtype="str") for text in (name, kind, other)),
        pd.array(other_ids, dtype="str"),
        np.asarray(distances, dtype=np.float64),
    )
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def _counts(
    table: pd.DataFrame, name: str, other: str, params: NearDuplicateParams | None
) -> dict[str, int | None]:
    """Return how many exact and near copies there are; None where near ones were not looked for."""
    kinds = table["kind"][(table["store"] == name) & (table["other_store"] == other)]
    is_searched = params is not None and other in BY_PICTURE
    return {
        "exact": int((kinds == "exact").sum()),
        "near": int((kinds == "near").sum()) if is_searched else None,
    }


def _tell(table: pd.DataFrame, stores: Mapping[str, ImageStore]) -> None:
    for name in STORES[1:]:
        counts = table.attrs["counts"][f"{name} and {TEST}"]
        if n_copies := len(copies_of_test_images(table, name)):
            logger.warning(
                "%d of %d %s images are copies of test images (%d exact, %d near)",
                n_copies, len(stores[name]), name, counts["exact"], counts["near"] or 0,
            )  # fmt: skip
    if not (table["other_store"] == TEST).any():
        logger.info("no image is a copy of one of the %d test images", len(stores[TEST]))
