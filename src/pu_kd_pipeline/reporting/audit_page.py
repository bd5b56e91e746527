"""The page of an audit: images of the pool, one by one, and a key for each answer.

It needs no other file and no network. Answers are kept in the browser until they are saved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.images.pictures import data_uri
from pu_kd_pipeline.images.store import ImageStore, find_rows
from pu_kd_pipeline.masking import visible
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.pool_audit.answers import CANNOT_TELL, FILE, KIND, NO, VERSION, YES
from pu_kd_pipeline.pool_audit.drawing import DRAW, POOL, TEACHER
from pu_kd_pipeline.reporting.html import render_page

N_EXAMPLES = 6
"""Labeled images of a class that are shown next to an image of the pool."""


def render_audit(
    audit_draw: pd.DataFrame, pool_images: ImageStore, labeled_images: ImageStore, teacher: Model
) -> str:
    """Return the page as HTML. Neither stratum nor score of an image is in it.

    Args:
        audit_draw: the images to show, in order, from `pool_audit.drawing.draw_audit`.
        pool_images: where they are.
        labeled_images: gives the examples of each class that the teacher sees among them.
        teacher: names the classes.

    Raises:
        InputError: an image is not in the pool.
    """
    rows = find_rows(pool_images, audit_draw["id"].to_numpy(), "audit_draw")
    pictures = [data_uri(pixels) for pixels in pool_images.read(rows)]
    images = []
    columns = (audit_draw["id"], audit_draw["teacher_class"], pictures)
    for identifier, number, picture in zip(*columns, strict=True):
        images.append({"id": identifier, "class": int(number), "picture": picture})
    fingerprints = {key: audit_draw.attrs[key] for key in (POOL, TEACHER, DRAW)}
    data: dict[str, Any] = {
        "kind": KIND,
        "version": VERSION,
        "file": FILE,
        "fingerprints": fingerprints,
        "classes": [visible(name) for name in teacher.card.classes],
        "answers": {"yes": YES, "no": NO, "unknown": CANNOT_TELL},
        "images": images,
        "examples": _examples(labeled_images, set(audit_draw["teacher_class"])),
    }
    return render_page(
        "audit_page.html.jinja",
        title="Audit of the pool",
        n_images=len(images),
        classes=teacher.card.classes,
        file=FILE,
        data=data,
    )


def _examples(labeled_images: ImageStore, classes: set[int]) -> dict[str, list[str]]:
    """Return the first labeled images of each class, as pictures."""
    labels = labeled_images.index["label"]
    examples = {}
    for number in sorted(classes):
        is_of_class = (labels == number).fillna(False).to_numpy(dtype=bool)
        rows = np.flatnonzero(is_of_class)[:N_EXAMPLES]
        pictures = [data_uri(pixels) for pixels in labeled_images.read(rows)]
        examples[str(int(number))] = pictures
    return examples
