"""Which images of the pool a person is asked about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.reading import images_digest, read_confidence
from pu_kd_pipeline.features.scoring import check_teacher
from pu_kd_pipeline.images.store import ImageStore, find_rows
from pu_kd_pipeline.learning.stratified import allocate_answers, stratum_sizes
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.base import SEEDS
from pu_kd_pipeline.params.pool_audit import PoolAuditParams
from pu_kd_pipeline.selection.tie_breaks import tie_breaks
from pu_kd_pipeline.storage.digests import json_digest
from pu_kd_pipeline.storage.sharded_table import ShardedTable

# Of the table: `stratum` counts from 0, the most related ranks; `teacher_class` is a number.
COLUMNS = ("id", "stratum", "teacher_class")
# In the attrs: images of the pool in each stratum, the fingerprints of pool and teacher, and one of
# the draw, which answers name.
SIZES = "stratum_sizes"
POOL = "pool"
TEACHER = "teacher"
DRAW = "draw"
# Numbers of their own for each purpose: an image that ranks first in one says nothing of another.
_DRAWN_FIRST = SEEDS
_SHOWN_FIRST = 2 * SEEDS


def draw_audit(
    pool_features: ShardedTable, pool_images: ImageStore, teacher: Model, params: PoolAuditParams
) -> pd.DataFrame:
    """Return the images that a person is asked about, in the order in which they are shown.

    The pool is ranked by the log odds of the teacher's class and cut into the strata of
    `learning.stratified`. Each gives a random sample of its images. Ranks, sample and order depend
    on ids and seed, and not on the order of the pool.

    Returns:
        One row per image with the columns of `COLUMNS`; the attrs hold `SIZES` and fingerprints.

    Raises:
        InputError: the features are of another teacher or pool, or the pool is empty.
    """
    check_teacher(pool_features, teacher.fingerprint(), "pool_features")
    ids, classes, log_odds = read_confidence(pool_features)
    find_rows(pool_images, ids, "pool_features")
    if len(ids) != len(pool_images) or not len(ids):
        raise InputError(
            f"pool_audit: pool_features holds {len(ids):,} of {len(pool_images):,} images of the "
            "pool: run `kedro run --pipeline=feature_extraction`"
        )
    strata = strata_of(ids, log_odds, params.seed)
    sizes = stratum_sizes(len(ids))

    id_column = pd.Series(ids)
    drawing = tie_breaks(id_column, params.seed + _DRAWN_FIRST)
    drawn = []
    for stratum, n in enumerate(allocate_answers(params.n_images, sizes)):
        rows = np.flatnonzero(strata == stratum)
        first = np.argsort(drawing[rows], kind="stable")[:n]
        drawn.append(rows[first])
    rows = np.concatenate(drawn)
    showing = tie_breaks(id_column.iloc[rows], params.seed + _SHOWN_FIRST)
    rows = rows[np.argsort(showing, kind="stable")]

    table = pd.DataFrame(
        {"id": ids[rows], "stratum": strata[rows], "teacher_class": classes[rows]},
        columns=list(COLUMNS),
    )
    facts: dict[str, Any] = {
        SIZES: sizes.tolist(),
        POOL: images_digest(pool_features),
        TEACHER: teacher.fingerprint(),
        "seed": params.seed,
    }
    table.attrs.update(facts)
    table.attrs[DRAW] = json_digest([facts, table["id"].tolist(), table["stratum"].tolist()])
    return table


def strata_of(ids: np.ndarray, log_odds: np.ndarray, seed: int) -> NDArray[np.int64]:
    """Return the (N,) stratum of each image of a pool, 0 for the most related ranks.

    Args:
        ids: (N,) texts.
        log_odds: (N,) float64 of the teacher's class.
        seed: decides between images with equal log odds.
    """
    # An image for which the teacher gives no number is as little related as any.
    ranked = np.nan_to_num(log_odds, nan=-np.inf)
    order = np.lexsort((tie_breaks(pd.Series(ids), seed), -ranked))
    sizes = stratum_sizes(len(ids))
    strata: NDArray[np.int64] = np.empty(len(ids), dtype=np.int64)
    strata[order] = np.repeat(np.arange(len(sizes)), sizes)
    return strata
