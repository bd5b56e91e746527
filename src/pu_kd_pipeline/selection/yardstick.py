"""Which images make the yardstick of a run: no selection rule and no PU classifier is asked.

Copies of test images are left out, and pool images that are copies of labeled ones.
"""

from __future__ import annotations

import logging
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
from pu_kd_pipeline.learning.metrics import area_under_roc
from pu_kd_pipeline.learning.yardstick import related_rows, uniform_rows, yardstick_size
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.selection.relatedness import ONE_CLASS_SUM
from pu_kd_pipeline.selection.retrieval import Scores, similarities_to_labeled
from pu_kd_pipeline.selection.tie_breaks import tie_breaks
from pu_kd_pipeline.storage import yardstick as tables
from pu_kd_pipeline.storage.sharded_table import ShardedTable, as_array

# A pool image counts as related if its score is at least this quantile of the labeled images'.
_HEAD_QUANTILE = 0.25
_MAX_QUERIES = 4_096  # labeled images that the pool is compared with
_FEW = 50  # related images, of which fewer are worth a warning

_NOT_FINITE = "yardstick: the teacher's outputs are not finite: check teacher.weights"

logger = logging.getLogger(__name__)


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

    `uniform_share` of the pool images are drawn uniformly. The others are drawn evenly over the
    teacher's classes among the related images (`learning.yardstick.related_rows`): those that score
    at least the lower quartile of the labeled images' scores. The score is the largest cosine with
    a labeled image or the teacher's log odds, whichever tells labeled and pool images better apart.
    Where few images are related, the yardstick is smaller, and the log says so. With fewer than
    two labeled images, all pool images are ranked by the log odds. Classes with enough labeled
    images add a share of these.

    Raises:
        InputError: the features are of another teacher or of other images, or not finite.
    """
    check_teacher(labeled_features, teacher.fingerprint(), "labeled_features")
    check_teacher(pool_features, teacher.fingerprint(), "pool_features")
    candidates = _candidates(pool_features)
    lowest_score = -np.inf
    labeled_ids = _queries(labeled_images, duplicates, params)
    if len(labeled_ids) > 1 and params.n_images:
        scores = _best_scores(candidates["score"], labeled_ids, labeled_features, pool_features)
        candidates["score"] = scores.pool
        lowest_score = float(np.quantile(scores.labeled, _HEAD_QUANTILE))
    pool = _pool_part(candidates, pool_images, duplicates, params, lowest_score)
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


def _queries(
    labeled_images: ImageStore, duplicates: pd.DataFrame, params: YardstickParams
) -> np.ndarray:
    """Return the ids of the labeled images that the pool is compared with: a random sample."""
    ids = labeled_images.index["id"]
    free = ids[~ids.isin(copies_of(duplicates, LABELED, TEST)).to_numpy()]
    return free.iloc[uniform_rows(tie_breaks(free, params.seed), _MAX_QUERIES)].to_numpy()


def _best_scores(
    pool_log_odds: pd.Series,
    labeled_ids: np.ndarray,
    labeled_features: ShardedTable,
    pool_features: ShardedTable,
) -> Scores:
    """Return the scores that tell labeled and pool images better apart.

    With labeled images as related as the related part pi of the pool, the area under the ROC curve
    of labeled against pool images is pi / 2 + (1 - pi) A, where A is that of related against
    unrelated images: it orders scores as A does, and A is not known.
    """
    similarity = similarities_to_labeled(labeled_ids, labeled_features, pool_features)
    labeled = _candidates(labeled_features).set_index("id")
    log_odds = Scores(pool_log_odds.to_numpy(), labeled["score"].loc[labeled_ids].to_numpy())
    for scores in (log_odds, similarity):
        if not (np.isfinite(scores.pool).all() and np.isfinite(scores.labeled).all()):
            raise InputError(_NOT_FINITE)
    of_log_odds = _area_under_roc(log_odds)
    of_similarity = _area_under_roc(similarity)
    best = similarity if of_similarity >= of_log_odds else log_odds
    logger.info(
        "yardstick: related images are those with %s (area under the ROC curve of labeled against "
        "pool images: %.3f by similarity, %.3f by log odds)",
        "high similarity to a labeled image" if best is similarity else "high log odds",
        of_similarity,
        of_log_odds,
    )
    return best


def _area_under_roc(scores: Scores) -> float:
    is_labeled = np.repeat([True, False], [len(scores.labeled), len(scores.pool)])
    return area_under_roc(np.concatenate([scores.labeled, scores.pool]), is_labeled)


def _candidates(features: ShardedTable) -> pd.DataFrame:
    """Return `id`, `teacher_class` and `score` of every image: the teacher's log odds."""
    parts = []
    for table in features.shards(["id", "logits"]):
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
    lowest_score: float = -np.inf,
) -> pd.DataFrame:
    """Return the pool images of a yardstick.

    Args:
        candidates: `id`, `teacher_class` and `score` of every pool image.
        pool_images: the store.
        duplicates: copies in several stores.
        params: how many images, and the seed.
        lowest_score: images below it are not related.

    Raises:
        InputError: the candidates are not the images of the pool, or a score is not finite.
    """
    if len(candidates) != len(pool_images):
        raise InputError(
            f"yardstick: the teacher saw {len(candidates):,} images, and the pool has "
            f"{len(pool_images):,}. Run `kedro run --pipeline=feature_extraction` again"
        )
    if not np.isfinite(candidates["score"]).all():
        raise InputError(_NOT_FINITE)
    copies = copies_of(duplicates, POOL, TEST) | copies_of(duplicates, POOL, LABELED)
    is_copy = candidates["id"].isin(copies).to_numpy()
    free = candidates[~is_copy].reset_index(drop=True)
    n_uniform, n_related = yardstick_size(
        len(free), params.n_images, params.max_share, params.uniform_share
    )
    draw = tie_breaks(free["id"], params.seed)
    uniform = uniform_rows(draw, n_uniform)

    is_left = free["score"].to_numpy() >= lowest_score
    is_left[uniform] = False
    left = np.flatnonzero(is_left)
    of_left = related_rows(
        free["teacher_class"].to_numpy()[left],
        free["score"].to_numpy()[left],
        draw[left],
        n_related,
        params.max_share,
    )
    if len(of_left) < n_related:
        _report_few(len(of_left), n_related, len(left))
    ids = free["id"]
    uniform_part = _rows_of(pool_images, ids.iloc[uniform], "pool", tables.UNIFORM)
    related_part = _rows_of(pool_images, ids.iloc[left[of_left]], "pool", tables.RELATED)
    return pd.concat([uniform_part, related_part], ignore_index=True)


def _report_few(n_found: int, n_wanted: int, n_related: int) -> None:
    logger.log(
        logging.WARNING if n_found < _FEW else logging.INFO,
        "yardstick: it has %s related images instead of %s. Of the pool, %s images count as "
        "related, and at most yardstick.max_share of those of each class are measured on. Raise it "
        "for more, or raise yardstick.uniform_share to measure on other images of the pool, too",
        f"{n_found:,}",
        f"{n_wanted:,}",
        f"{n_related:,}",
    )


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
