"""What the answers of an audit say of the pool: its class prior, and the precision of rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.features.reading import read_confidence
from pu_kd_pipeline.learning.proportions import LEVEL
from pu_kd_pipeline.learning.stratified import StratifiedCounts, estimate_share
from pu_kd_pipeline.pool_audit.answers import CANNOT_TELL, NO, YES
from pu_kd_pipeline.pool_audit.drawing import DRAW, POOL, SIZES, TEACHER, strata_of
from pu_kd_pipeline.storage.manifest import check_manifest, is_preferred
from pu_kd_pipeline.storage.sharded_table import ShardedTable

VERSION = 1


def unanswered(audit: pd.DataFrame) -> dict[str, Any]:
    """Return the result of an audit that nobody has answered yet, as `pool_audit` stores it."""
    return {
        "version": VERSION,
        "level": LEVEL,
        "n_images": len(audit),
        "n_answered": 0,
        "class_prior": None,
        "strata": [],
        "ranking": [],
        "positives": [],
        "negatives": [],
        "cannot_tell": [],
        "provenance": _provenance(audit),
    }


def estimate_audit(answered: pd.DataFrame, class_names: Sequence[str]) -> dict[str, Any]:
    """Return what the answers say of the pool, as `pool_audit` stores it.

    Shares have a `value` and the limits `lower` and `upper` of their 95 % interval, see
    `learning.stratified.estimate_share`. `ranking` holds the precision of the images with the
    highest log odds of the teacher's class, for the strata from the top.

    Args:
        answered: images with answers, from `answers.checked_answers`.
        class_names: of the teacher.
    """
    sizes = np.array(answered.attrs[SIZES], dtype=np.int64)
    counts = _counts(answered, sizes)
    strata = []
    first_rank = 1
    negatives = counts.n - counts.hits - counts.unknown
    for size, n, yes, unknown, no in zip(*counts, negatives, strict=True):
        strata.append(
            {
                "first_rank": first_rank,
                "last_rank": first_rank + int(size) - 1,
                "weight": float(size / sizes.sum()),
                "n": int(n),
                "yes": int(yes),
                "no": int(no),
                "cannot_tell": int(unknown),
            }
        )
        first_rank += int(size)
    ranking = []
    for n_strata in range(1, len(sizes)):
        top = StratifiedCounts(*(each[:n_strata] for each in counts))
        # Of a pool of few images, the first strata are empty.
        if top.sizes.sum():
            precision = estimate_share(top)._asdict()
            ranking.append({"n_pool": int(top.sizes.sum()), "n": int(top.n.sum()), **precision})
    positives = []
    is_positive = answered["answer"] == YES
    for identifier, number in answered[is_positive][["id", "class"]].itertuples(index=False):
        positives.append({"id": identifier, "class": class_names[number]})
    return {
        **unanswered(answered),
        "n_answered": len(answered),
        "class_prior": estimate_share(counts)._asdict(),
        "strata": strata,
        "ranking": ranking,
        "positives": positives,
        "negatives": answered["id"][answered["answer"] == NO].tolist(),
        "cannot_tell": answered["id"][answered["answer"] == CANNOT_TELL].tolist(),
    }


def selection_precision(
    audit_draw: pd.DataFrame,
    audit: Mapping[str, Any],
    manifest: pd.DataFrame,
    pool_features: ShardedTable,
) -> dict[str, Any]:
    """Return the precision of the images that a selection prefers, from the same answers.

    These are the pool images of the manifest or, of a rule that draws the images of the pool
    unevenly, those that it draws more often than evenly. Given how many images of a stratum are
    preferred and answered, these are a random sample of the preferred ones of the stratum.

    Args:
        audit_draw: the images that were asked about, from `drawing.draw_audit`.
        audit: result of `estimate_audit` for them.
        manifest: of the selection.
        pool_features: of the pool that was audited.

    Returns:
        `rule`, `n_selected`, `n` with an answer, and `value`, `lower` and `upper`, which are None
        where no image is preferred, or none of them has an answer.

    Raises:
        InputError: the manifest is damaged.
    """
    check_manifest(manifest)
    answers = dict.fromkeys(audit["negatives"], NO)
    answers |= dict.fromkeys(audit["cannot_tell"], CANNOT_TELL)
    answers |= {positive["id"]: YES for positive in audit["positives"]}
    answered = audit_draw.assign(answer=audit_draw["id"].map(answers))
    ids, _, log_odds = read_confidence(pool_features)
    strata = strata_of(ids, log_odds, answered.attrs["seed"])
    selected = set(manifest["id"][is_preferred(manifest)])
    is_selected = np.fromiter((each in selected for each in ids), dtype=bool, count=len(ids))
    sizes = np.bincount(strata[is_selected], minlength=len(answered.attrs[SIZES]))
    counts = _counts(answered[answered["id"].isin(selected)], sizes)
    n_answered = int(counts.n.sum())
    precision: dict[str, float | None] = dict.fromkeys(("value", "lower", "upper"))
    if n_answered:
        precision.update(estimate_share(counts)._asdict())
    return {
        "rule": manifest.attrs.get("rule"),
        "n_selected": int(sizes.sum()),
        "n": n_answered,
        **precision,
    }


def _counts(answered: pd.DataFrame, sizes: np.ndarray) -> StratifiedCounts:
    """Return how many images of each stratum have which answer."""

    def per_stratum(rows: pd.Series | slice) -> np.ndarray:
        strata = answered["stratum"][rows].to_numpy(dtype=np.int64)
        return np.bincount(strata, minlength=len(sizes))

    n = per_stratum(slice(None))
    hits = per_stratum(answered["answer"] == YES)
    unknown = per_stratum(answered["answer"] == CANNOT_TELL)
    return StratifiedCounts(sizes, n, hits, unknown)


def _provenance(audit: pd.DataFrame) -> dict[str, Any]:
    return {
        "pool": audit.attrs[POOL],
        "teacher": audit.attrs[TEACHER],
        "draw": audit.attrs[DRAW],
        "seed": audit.attrs["seed"],
    }
