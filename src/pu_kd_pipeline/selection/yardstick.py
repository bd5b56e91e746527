"""Which images make the yardstick of a run: no selection rule and no PU classifier is asked.

Copies of test images are left out, and pool images that are copies of labeled ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.scoring import check_teacher
from pu_kd_pipeline.images.batches import predict_logits
from pu_kd_pipeline.images.duplicates import LABELED, POOL, TEACHER_TRAINING, TEST, copies_of
from pu_kd_pipeline.images.store import ImageStore, find_rows
from pu_kd_pipeline.images.subset import ImageSubset
from pu_kd_pipeline.learning.confidence import class_confidence
from pu_kd_pipeline.learning.yardstick import related_rows, uniform_rows, yardstick_size
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.selection.relatedness import ONE_CLASS_SUM
from pu_kd_pipeline.selection.tie_breaks import tie_breaks
from pu_kd_pipeline.storage import yardstick as tables
from pu_kd_pipeline.storage.sharded_table import ShardedTable, as_array


def choose_yardstick(
    labeled_images: ImageStore,
    pool_images: ImageStore,
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
    teacher: Model,
    duplicates: pd.DataFrame,
    params: YardstickParams,
) -> pd.DataFrame:
    """Return the yardstick (`storage.yardstick`) of a pool whose teacher features exist.

    Half of the pool images are drawn uniformly. The others are drawn evenly over the teacher's
    classes among the images with the highest log odds (`learning.yardstick.related_rows`). Classes
    with enough labeled images add a share of these.

    Raises:
        InputError: the features are of another teacher or of other images, or not finite.
    """
    check_teacher(labeled_features, teacher.fingerprint(), "labeled_features")
    check_teacher(pool_features, teacher.fingerprint(), "pool_features")
    candidates = _candidates(pool_features)
    pool = _pool_part(candidates, pool_images, duplicates, params)
    labeled = _labeled_part(labeled_images, duplicates, params)
    images = pd.concat([labeled, pool], ignore_index=True)
    logits = np.concatenate(
        [
            _stored_logits(labeled_features, labeled["id"], teacher.n_classes),
            _stored_logits(pool_features, pool["id"], teacher.n_classes),
        ]
    )
    return _table(images, logits, teacher, params)


def choose_unlabeled_yardstick(
    relatedness: ShardedTable,
    pool_images: ImageStore,
    teacher: Model,
    duplicates: pd.DataFrame,
    params: YardstickParams,
    compute: ComputeParams,
) -> pd.DataFrame:
    """Return the yardstick of a pool whose relatedness was measured; there is no labeled image.

    As `choose_yardstick`, with the pool images ranked by their calibrated sum of indicators. The
    teacher answers for the chosen images alone.

    Raises:
        InputError: the relatedness is of another teacher or of other images, or not finite.
    """
    check_teacher(relatedness, teacher.fingerprint(), "relatedness")
    scores = relatedness.to_pandas()
    # A low sum is related.
    candidates = pd.DataFrame(
        {
            "id": scores["id"],
            "teacher_class": scores["teacher_class"],
            "score": -scores[ONE_CLASS_SUM],
        }
    )
    images = _pool_part(candidates, pool_images, duplicates, params)
    logits = _predicted_logits(teacher, pool_images, images["id"], compute)
    return _table(images, logits, teacher, params)


def choose_original_yardstick(
    original_images: ImageStore,
    teacher: Model,
    duplicates: pd.DataFrame,
    params: YardstickParams,
    compute: ComputeParams,
) -> pd.DataFrame:
    """Return a yardstick of the teacher's own training images, drawn uniformly.

    It is for students that learn from these images and from no pool. Their origin is `labeled`, as
    in the manifest of such a student.
    """
    index = original_images.index
    is_copy = index["id"].isin(copies_of(duplicates, TEACHER_TRAINING, TEST))
    free = index[~is_copy.to_numpy()].reset_index(drop=True)
    n = min(params.n_images, int(params.max_share * len(free)))
    rows = uniform_rows(tie_breaks(free["id"], params.seed), n)
    images = _rows_of(original_images, free["id"].iloc[rows], "labeled", tables.UNIFORM)
    logits = _predicted_logits(teacher, original_images, images["id"], compute)
    return _table(images, logits, teacher, params)


def _table(
    images: pd.DataFrame, logits: np.ndarray, teacher: Model, params: YardstickParams
) -> pd.DataFrame:
    facts: dict[str, Any] = params.model_dump(mode="json")
    facts[tables.TEACHER] = teacher.fingerprint()
    return tables.yardstick_table(images, logits, **facts)


def _candidates(pool_features: ShardedTable) -> pd.DataFrame:
    """Return `id`, `teacher_class` and `score` of every pool image: the teacher's log odds."""
    parts = []
    for table in pool_features.shards(["id", "logits"]):
        # A copy: torch does not take the read-only memory of the table.
        logits = torch.from_numpy(as_array(table["logits"]).copy())
        teacher = class_confidence(logits)
        columns = {
            "id": table["id"].to_pandas(),
            "teacher_class": teacher.classes.numpy(),
            "score": teacher.log_odds.numpy(),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _pool_part(
    candidates: pd.DataFrame,
    pool_images: ImageStore,
    duplicates: pd.DataFrame,
    params: YardstickParams,
) -> pd.DataFrame:
    """Return the pool images of a yardstick.

    Args:
        candidates: `id`, `teacher_class` and `score` of every pool image.
        pool_images: the store.
        duplicates: copies in several stores.
        params: how many images, and the seed.

    Raises:
        InputError: the candidates are not the images of the pool, or a score is not finite.
    """
    if len(candidates) != len(pool_images):
        raise InputError(
            f"yardstick: the teacher saw {len(candidates):,} images, and the pool has "
            f"{len(pool_images):,}. Run `kedro run --pipeline=feature_extraction` again"
        )
    if not np.isfinite(candidates["score"]).all():
        raise InputError("yardstick: the teacher's outputs on the pool are not finite")
    copies = copies_of(duplicates, POOL, TEST) | copies_of(duplicates, POOL, LABELED)
    is_copy = candidates["id"].isin(copies).to_numpy()
    free = candidates[~is_copy].reset_index(drop=True)
    n_uniform, n_related = yardstick_size(len(free), params.n_images, params.max_share)
    draw = tie_breaks(free["id"], params.seed)
    uniform = uniform_rows(draw, n_uniform)

    is_left = np.ones(len(free), dtype=bool)
    is_left[uniform] = False
    left = np.flatnonzero(is_left)
    of_left = related_rows(
        free["teacher_class"].to_numpy()[left],
        free["score"].to_numpy()[left],
        draw[left],
        n_related,
        params.max_share,
    )
    ids = free["id"]
    uniform_part = _rows_of(pool_images, ids.iloc[uniform], "pool", tables.UNIFORM)
    related_part = _rows_of(pool_images, ids.iloc[left[of_left]], "pool", tables.RELATED)
    return pd.concat([uniform_part, related_part], ignore_index=True)


def _labeled_part(
    labeled_images: ImageStore, duplicates: pd.DataFrame, params: YardstickParams
) -> pd.DataFrame:
    """Return the labeled images of a yardstick: a share of each class that has enough of them."""
    index = labeled_images.index
    is_copy = index["id"].isin(copies_of(duplicates, LABELED, TEST))
    free = index[~is_copy.to_numpy()]
    drawn = [free["id"].iloc[:0]]
    if params.n_images:
        for _, of_class in free.groupby("label"):
            if len(of_class) < params.min_labeled_per_class:
                continue
            n = int(params.labeled_share * len(of_class))
            rows = uniform_rows(tie_breaks(of_class["id"], params.seed), n)
            drawn.append(of_class["id"].iloc[rows])
    return _rows_of(labeled_images, pd.concat(drawn), "labeled", tables.LABELED)


def _rows_of(store: ImageStore, ids: pd.Series, origin: str, part: str) -> pd.DataFrame:
    """Return images of a store as rows of a yardstick."""
    rows = find_rows(store, ids.to_numpy(), "yardstick")
    images = store.index[["id", "sha256"]].iloc[rows].reset_index(drop=True)
    return images.assign(origin=origin, part=part)


def _stored_logits(features: ShardedTable, ids: pd.Series, n_classes: int) -> np.ndarray:
    """Return the (n, K) float32 logits of some images, in the order of the ids."""
    wanted = pa.array(ids, pa.string())
    logits = np.empty((len(ids), n_classes), dtype=np.float32)
    places = pd.Index(ids)
    for table in features.shards(["id", "logits"]):
        kept = table.filter(pa.compute.is_in(table["id"], wanted))
        if len(kept):
            of_shard = places.get_indexer(kept["id"].to_pandas())
            logits[of_shard] = as_array(kept["logits"])
    return logits


def _predicted_logits(
    teacher: Model, store: ImageStore, ids: pd.Series, compute: ComputeParams
) -> np.ndarray:
    """Return the (n, K) float32 logits of some images, in the order of the ids."""
    rows = find_rows(store, ids.to_numpy(), "yardstick")
    logits = predict_logits(teacher, ImageSubset.of(store, rows), compute)
    array: np.ndarray = logits.numpy()
    return array
