"""The yardstick's table: the images that students are measured on, and the teacher's logits there.

Columns: `id`, `origin` (the store, as in a manifest), `part` (uniform, related or labeled: how it
was drawn), `sha256` (of the pixels), and the float32 columns `logit_0` to `logit_<K-1>`. The
`attrs` hold the fingerprint of the teacher and how the images were chosen.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.storage.manifest import ORIGINS

UNIFORM = "uniform"
RELATED = "related"
LABELED = "labeled"
PARTS = (UNIFORM, RELATED, LABELED)
TEACHER = "teacher"  # in the attrs: the fingerprint of the network whose logits these are
COLUMNS = ("id", "origin", "part", "sha256")
_LOGIT = "logit_"
_FIX = "Run the stage that writes it again: `kedro run --pipeline=feature_extraction`"


def yardstick_table(images: pd.DataFrame, logits: np.ndarray, **facts: Any) -> pd.DataFrame:
    """Return the table of a yardstick, in an order that depends on the ids alone.

    Args:
        images: (n,) rows with `COLUMNS`.
        logits: (n, K) of the teacher.
        facts: for the attrs.
    """
    names = [f"{_LOGIT}{number}" for number in range(logits.shape[1])]
    of_teacher = pd.DataFrame(logits.astype(np.float32), columns=names, index=images.index)
    table = pd.concat([images[list(COLUMNS)], of_teacher], axis=1)
    table = table.sort_values(["origin", "id"], ignore_index=True)
    table.attrs.clear()
    table.attrs.update(facts)
    return table


def teacher_logits(yardstick: pd.DataFrame) -> np.ndarray:
    """Return the (n, K) float32 logits of the teacher."""
    names = [name for name in yardstick.columns if name.startswith(_LOGIT)]
    return yardstick[names].to_numpy(dtype=np.float32, copy=True)


def yardstick_ids(yardstick: pd.DataFrame, origin: str) -> frozenset[str]:
    """Return the ids of the images of a store that are in the yardstick."""
    is_of_store = yardstick["origin"] == origin
    return frozenset(yardstick["id"][is_of_store])


def yardstick_fingerprint(yardstick: pd.DataFrame) -> str:
    """Return sixteen hexadecimal digits that change with the images and with the teacher.

    The same pixels have the same fingerprint in another store, under another id and in any order.
    """
    hashes = sorted(yardstick["sha256"])
    teacher = str(yardstick.attrs.get(TEACHER))
    content = "\n".join([teacher, *hashes])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def yardstick_facts(yardstick: pd.DataFrame) -> dict[str, Any]:
    """Return fingerprint, seed, and the number of images of each part, as JSON can hold them."""
    counts = yardstick["part"].value_counts()
    facts: dict[str, Any] = {
        "fingerprint": yardstick_fingerprint(yardstick),
        "seed": yardstick.attrs.get("seed"),
        "n_images": len(yardstick),
    }
    for part in PARTS:
        facts[f"n_{part}"] = int(counts.get(part, 0))
    return facts


def check_yardstick(yardstick: pd.DataFrame, teacher: str, n_classes: int) -> None:
    """Check that a yardstick holds images once each, and the outputs of this teacher.

    Raises:
        InputError: a column is missing or holds something else, an image is there twice, or another
            network made the logits.
    """
    missing = [name for name in COLUMNS if name not in yardstick.columns]
    if missing:
        raise InputError(f"yardstick: the columns {', '.join(missing)} are missing. {_FIX}")
    if not yardstick["origin"].isin(ORIGINS).all() or not yardstick["part"].isin(PARTS).all():
        raise InputError(f"yardstick: an image has an unknown origin or part. {_FIX}")
    if yardstick.duplicated(["origin", "id"]).any():
        raise InputError(f"yardstick: an image is there twice. {_FIX}")
    if yardstick.attrs.get(TEACHER) != teacher:
        raise InputError(
            "yardstick: another network than teacher_model gave its outputs. Run the stages from "
            "`feature_extraction` on again"
        )
    logits = teacher_logits(yardstick)
    # A network may exclude classes with logits of minus infinity.
    is_number = logits < np.inf
    if logits.shape[1] != n_classes or not is_number.all():
        raise InputError(f"yardstick: it does not hold {n_classes} logits per image. {_FIX}")
