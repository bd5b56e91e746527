"""Where the student gives another class than its teacher, with test images as examples."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
MAX_EXAMPLES = 80  # of all pairs


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
    """The matrix, if it is small enough, and pairs of different classes, most images first."""

    names: list[str]
    matrix: list[list[MatrixCell]]
    pairs: list[Pair]
    """With a matrix, as many as have examples."""
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
    of_teacher = np.bincount(teacher, minlength=n_classes)
    # Not a matrix, which of thousands of classes would not fit into memory.
    codes, counts = np.unique(teacher * n_classes + student, return_counts=True)
    is_different = codes // n_classes != codes % n_classes
    order = np.argsort(-counts[is_different], kind="stable")
    different = codes[is_different][order]
    n_of = counts[is_different][order]
    n_shown = MAX_EXAMPLES if n_classes <= MAX_CLASSES else MAX_PAIRS
    n_examples = _shared_examples(n_of[:n_shown])
    pairs = []
    for code, n, n_rows in zip(different[:n_shown], n_of, n_examples, strict=False):
        of, to = divmod(int(code), n_classes)
        rows: np.ndarray = np.flatnonzero((teacher == of) & (student == to))[:n_rows]
        pairs.append(
            Pair(
                str(names[of]),
                str(names[to]),
                f"{of}-{to}",
                int(n),
                percent(n / of_teacher[of]),
                [_thumb(predictions, int(row), names, album) for row in rows],
            )
        )
    return Confusion(
        [str(name) for name in names],
        _cells(codes, counts, of_teacher, {pair.key for pair in pairs}),
        pairs,
        len(different),
        len(predictions),
        int((teacher != student).sum()),
    )


def _shared_examples(counts: np.ndarray) -> np.ndarray:
    """Return how many examples each pair has: each one before any has two, and so on.

    Args:
        counts: (P,) int64: images of each pair, most first.
    """
    examples = np.zeros_like(counts)
    for n in range(1, N_EXAMPLES + 1):
        n_left = MAX_EXAMPLES - int(examples.sum())
        has_more = np.flatnonzero(counts >= n)[:n_left]
        examples[has_more] = n
    return examples


def _cells(
    codes: np.ndarray, counts: np.ndarray, of_teacher: np.ndarray, keys: Collection[str]
) -> list[list[MatrixCell]]:
    """Return the matrix, empty for more than `MAX_CLASSES`.

    Args:
        codes: (P,) teacher's class times the number of classes, plus the student's class.
        counts: (P,) images of each code.
        of_teacher: (K,) images of each class of the teacher.
        keys: of the pairs with examples.
    """
    n_classes = len(of_teacher)
    if n_classes > MAX_CLASSES:
        return []
    matrix = np.zeros((n_classes, n_classes), dtype=np.int64)
    matrix.flat[codes] = counts
    rows = []
    for of, counts in enumerate(matrix):
        cells = []
        for to, n in enumerate(counts):
            is_diagonal = of == to
            key = f"{of}-{to}" if f"{of}-{to}" in keys else ""
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
