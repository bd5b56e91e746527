"""Node functions of the stage `data_ingestion`.

A node returns the plan of a store. Saving the plan lists the sources and decodes the images that
are not in the store yet.
"""

from __future__ import annotations

import logging
from itertools import combinations
from typing import Any

import pandas as pd

from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.plan import IngestionPlan, plan_store
from pu_kd_pipeline.images.quarantine import CONFLICT
from pu_kd_pipeline.images.source_reports import read_reports
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.masking import visible_name
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.params.teacher import TeacherParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable

logger = logging.getLogger(__name__)

_MAX_EXAMPLES = 10


def plan_labeled_images(
    params: DataIngestionParams, teacher: TeacherParams, engine: EngineParams = LOCAL
) -> IngestionPlan:
    """Return the plan of the few labeled images: the positives."""
    return plan_store("labeled", params.labeled, params, teacher, engine)


def plan_pool_images(
    params: DataIngestionParams, teacher: TeacherParams, engine: EngineParams = LOCAL
) -> IngestionPlan:
    """Return the plan of the unlabeled pool."""
    return plan_store("pool", params.pool, params, teacher, engine)


def plan_test_images(
    params: DataIngestionParams, teacher: TeacherParams, engine: EngineParams = LOCAL
) -> IngestionPlan:
    """Return the plan of the test set."""
    return plan_store("test", params.test, params, teacher, engine)


def plan_teacher_training_images(
    params: DataIngestionParams, teacher: TeacherParams, engine: EngineParams = LOCAL
) -> IngestionPlan:
    """Return the plan of the images that an experiment trains its teacher on.

    A user who brings a teacher gives no sources; the store is then empty.
    """
    return plan_store("teacher_training", params.teacher_training, params, teacher, engine)


def search_near_copies(
    labeled_images: ImageStore,
    pool_images: ImageStore,
    test_images: ImageStore,
    teacher_training_images: ImageStore,
    params: DataIngestionParams,
    engine: EngineParams,
) -> ShardMakers:
    """Return one function per shard of images that finds its near copies of other images."""
    from pu_kd_pipeline.images.duplicates import near_copy_shards

    stores = {
        "test": test_images,
        "labeled": labeled_images,
        "pool": pool_images,
        "teacher_training": teacher_training_images,
    }
    return near_copy_shards(stores, params.near_duplicates).on(engine)


def search_duplicates(
    labeled_images: ImageStore,
    pool_images: ImageStore,
    test_images: ImageStore,
    teacher_training_images: ImageStore,
    near_copies: ShardedTable,
    params: DataIngestionParams,
) -> pd.DataFrame:
    """Return the images that are copies of an image in another store."""
    from pu_kd_pipeline.images.duplicates import find_duplicates

    stores = {
        "test": test_images,
        "labeled": labeled_images,
        "pool": pool_images,
        "teacher_training": teacher_training_images,
    }
    return find_duplicates(stores, params.near_duplicates, near_copies)


def report_ingestion(
    labeled_images: ImageStore,
    pool_images: ImageStore,
    test_images: ImageStore,
    duplicates: pd.DataFrame,
) -> dict[str, Any]:
    """Return what the stores contain, what was quarantined and why, and the numbers of duplicates.

    Raises:
        InputError: labeled images and pool share ids; later stages distinguish images by their ids.
    """
    labeled_ids = set(labeled_images.index["id"])
    shared = labeled_ids & set(pool_images.index["id"])
    if shared:
        raise InputError(
            f"data_ingestion: {len(shared):,} ids are in both labeled_images and pool_images, "
            f"such as {min(shared)!r}. Give the sources of one of them a `name`, "
            "which becomes the prefix of their ids"
        )
    stores = {
        "labeled_images": labeled_images,
        "pool_images": pool_images,
        "test_images": test_images,
    }
    return {
        **{name: _summary(store) for name, store in stores.items()},
        "duplicates": duplicates.attrs["counts"],
        "conflicting_labels": _conflicts_between(stores),
    }


def _summary(store: ImageStore) -> dict[str, Any]:
    index = store.index
    n_quarantined = len(store.quarantine)
    return {
        "n_images": len(store),
        "kind": store.kind,
        "n_shards": len(store.shards),
        "n_bytes": store.n_bytes,
        "size_px": store.size_px,
        "channels": store.n_channels,
        "shorter_side_px": store.specification.shorter_side_px,
        "interpolation": store.specification.interpolation,
        "n_per_source": _counts(index["source"]),
        "n_per_class": _counts(index["label"]),
        "n_without_class": int(index["label"].isna().sum()),
        "n_quarantined": n_quarantined,
        "quarantined": store.quarantine_counts,
        "conflicting_labels": _conflict_examples(store),
        "sources": read_reports(store.folder, len(store) + n_quarantined),
    }


def _conflict_examples(store: ImageStore) -> dict[str, str]:
    """Return the first images whose pixels occur under several labels, and those labels."""
    quarantine = store.quarantine
    is_conflict = quarantine["status"].str.startswith(CONFLICT)
    first = quarantine[is_conflict].head(_MAX_EXAMPLES)
    return dict(zip(first["id"], first["status"], strict=True))


def _conflicts_between(stores: dict[str, ImageStore]) -> dict[str, Any]:
    """Return how many images have the pixels of an image in another store and another label.

    Each store was joined to the teacher's classes on its own, so that nothing is left out here.
    """
    found = {}
    for (name, store), (other_name, other) in combinations(stores.items(), 2):
        columns = ["id", "sha256", "label", "relevant"]
        both = store.index[columns].merge(other.index[columns], on="sha256", suffixes=("", "_2"))
        # An image of no class counts as one of class -1; without a label it is unknown.
        is_known = both["relevant"].notna() & both["relevant_2"].notna()
        differs = both["label"].fillna(-1) != both["label_2"].fillna(-1)
        conflicts = both[(is_known & differs).to_numpy(dtype=bool)]
        if conflicts.empty:
            continue
        first = conflicts[["id", "id_2"]].head(_MAX_EXAMPLES)
        found[f"{name} and {other_name}"] = {
            "n_images": len(conflicts),
            "examples": first.to_numpy().tolist(),
        }
        logger.warning(
            "data_ingestion: %s images in %s have the pixels of an image in %s and another label, "
            "such as %s",
            f"{len(conflicts):,}",
            name,
            other_name,
            visible_name(first["id"].iloc[0]),
        )
    return found


def _counts(values: Any) -> dict[str, int]:
    counts = values.value_counts().sort_index()
    # JSON knows neither NumPy's integers nor keys that are not text.
    return {str(value): int(count) for value, count in counts.items()}
