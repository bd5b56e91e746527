"""Where the student gives another class than its teacher, with test images as examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pu_kd_pipeline.reporting.sections.album import TEST, Album, Thumb
from pu_kd_pipeline.reporting.style import percent

if TYPE_CHECKING:
    import pandas as pd

MAX_CLASSES = 20  # of a matrix; of more classes, the pairs with most images are listed
MAX_PAIRS = 20
N_EXAMPLES = 4
MAX_EXAMPLES = 80


@dataclass(frozen=True)
class Pair:
    """Test images to which the teacher gives one class and the student another."""

    teacher: str
    student: str
    key: str
    """Part of the id of its element on the page."""
    n: int
    share: str
    """Of the images of the teacher's class."""
    examples: list[Thumb]


@dataclass(frozen=True)
class MatrixCell:
    """A cell of the matrix; `key` is empty where there is nothing to open."""

    n: int
    key: str
    shade: float
    """Share of the images of the row, in [0, 1]."""
    is_diagonal: bool


@dataclass(frozen=True)
class Confusion:
    """The matrix, if it is small enough, and the pairs of different classes, most images first."""

    names: list[str]
    matrix: list[list[MatrixCell]]
    pairs: list[Pair]
    n_pairs: int
    n_images: int
    n_different: int


def confusion_of(predictions: pd.DataFrame, names: Sequence[str], album: Album) -> Confusion | None:
    """Return where student and teacher differ; None without the predictions of both.

    Args:
        predictions: one row per test image; `id`, `teacher`, `student`, and `label`, the class.
        names: names of the teacher's classes.
        album: gets the examples.
    """
    if not {"teacher", "student"} <= set(predictions.columns) or not len(predictions):
        return None
    n_classes = len(names)
    teacher = predictions["teacher"].to_numpy(dtype=np.int64)
    student = predictions["student"].to_numpy(dtype=np.int64)
    code = teacher * n_classes + student
    counts = np.bincount(code, minlength=n_classes * n_classes)
    matrix = counts[: n_classes * n_classes].reshape(n_classes, n_classes)
    of_teacher = matrix.sum(axis=1)

    different = np.flatnonzero((counts > 0) & (np.arange(len(counts)) % (n_classes + 1) != 0))
    by_count = different[np.argsort(-counts[different], kind="stable")]
    shown = by_count if n_classes <= MAX_CLASSES else by_count[:MAX_PAIRS]
    pairs = []
    n_examples = 0
    for place in shown:
        rows: np.ndarray = np.flatnonzero(code == place)[:N_EXAMPLES]
        rows = rows[: MAX_EXAMPLES - n_examples]
        n_examples += len(rows)
        of, to = divmod(int(place), n_classes)
        pairs.append(
            Pair(
                str(names[of]),
                str(names[to]),
                f"{of}-{to}",
                int(counts[place]),
                percent(counts[place] / of_teacher[of]),
                [_thumb(predictions, int(row), names, album) for row in rows],
            )
        )
    return Confusion(
        [str(name) for name in names],
        _cells(matrix, of_teacher) if n_classes <= MAX_CLASSES else [],
        pairs,
        len(different),
        len(predictions),
        int((teacher != student).sum()),
    )


def _cells(matrix: np.ndarray, of_teacher: np.ndarray) -> list[list[MatrixCell]]:
    rows = []
    for of, counts in enumerate(matrix):
        cells = []
        for to, n in enumerate(counts):
            is_diagonal = of == to
            key = f"{of}-{to}" if n and not is_diagonal else ""
            share = float(n / of_teacher[of]) if of_teacher[of] else 0.0
            cells.append(MatrixCell(int(n), key, round(share, 3), is_diagonal))
        rows.append(cells)
    return rows


def _thumb(predictions: pd.DataFrame, row: int, names: Sequence[str], album: Album) -> Thumb:
    entry = predictions.iloc[row]
    identifier = str(entry["id"])
    facts = {
        "teacher's class": str(names[int(entry["teacher"])]),
        "student's class": str(names[int(entry["student"])]),
    }
    line = ""
    if "label" in predictions and 0 <= int(entry["label"]) < len(names):
        label = str(names[int(entry["label"])])
        facts = {"label": label, **facts}
        line = f"label {label}"
    number = album.add(TEST, identifier, facts)
    alt = f"test image {identifier}"
    return Thumb(number, (line,) if line else (), alt)
