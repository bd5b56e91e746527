"""Pictures that a source gives to two classes: none of their labels can be used."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pu_kd_pipeline.images.quarantine import CONFLICT, DUPLICATE, duplicate_of
from pu_kd_pipeline.masking import visible_name

logger = logging.getLogger(__name__)

_IRRELEVANT = "no class"


def find_label_conflicts(
    quarantine: pd.DataFrame, wanted: pd.DataFrame, class_names: Sequence[str]
) -> pd.DataFrame:
    """Return the images whose pixels occur under different labels, with their new `status`.

    An image without a label contradicts none.

    Args:
        quarantine: `id`, `source`, `version` and `status` of the images that are not stored; that
            of a duplicate names the image that was stored.
        wanted: all images of the plan, with `id`, `source`, `version`, `label` and `relevant`.
        class_names: names of the teacher's classes.
    """
    is_duplicate = quarantine["status"].str.startswith(DUPLICATE)
    duplicates = quarantine[is_duplicate]
    original_ids = duplicates["status"].str.removeprefix(duplicate_of(""))

    # Rows of one picture: the image that was stored, and then each duplicate.
    stored = pd.DataFrame({"id": original_ids, "picture": original_ids}).drop_duplicates()
    others = pd.DataFrame({"id": duplicates["id"], "picture": original_ids})
    pictures = pd.concat([stored, others])
    columns = ["id", "source", "version", "label", "relevant"]
    table = pictures.merge(wanted[columns], on="id")
    table["class"] = _class_texts(table, class_names)
    n_classes = table.groupby("picture")["class"].transform("nunique")
    conflicts = table[n_classes > 1]

    statuses = []
    for _, images in conflicts.groupby("picture", sort=False):
        # Labels in the order of the images, each of them once.
        names = list(dict.fromkeys(images["class"].dropna()))
        statuses.append(pd.Series(f"{CONFLICT}: {' and '.join(names)}", index=images.index))
    if not statuses:
        return quarantine.iloc[:0]
    return conflicts.assign(status=pd.concat(statuses))[["id", "source", "version", "status"]]


def warn_of_conflicts(conflicts: pd.DataFrame, where: str) -> None:
    """Log how many images are in conflict, with an example."""
    first = conflicts.iloc[0]
    logger.warning(
        "%s: %s images have pixels that also occur under another label, and are left out, such as "
        "%s (%s); all are in the quarantine",
        where,
        f"{len(conflicts):,}",
        visible_name(first["id"]),
        visible_name(first["status"]),
    )


def _class_texts(table: pd.DataFrame, class_names: Sequence[str]) -> list[Any]:
    """Return the class of each image as text, None where it is unknown."""
    texts: list[Any] = []
    for label, is_relevant in zip(table["label"], table["relevant"], strict=True):
        text = None
        if pd.notna(label):
            text = class_names[int(label)]
        elif pd.notna(is_relevant) and not is_relevant:
            text = _IRRELEVANT
        texts.append(text)
    return texts
