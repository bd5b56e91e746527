"""The classes in two tables: accuracies on the test images, and how many images each has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pu_kd_pipeline.reporting.style import UNKNOWN, percent
from pu_kd_pipeline.reporting.summary import MODEL_TITLES

if TYPE_CHECKING:
    import pandas as pd

_MODELS = ("teacher", "student", "random_student", "student_without_critic")


@dataclass(frozen=True)
class Cell:
    """A cell of a sortable table."""

    text: str
    key: float | str | None
    """What the column is sorted by; None is last, whatever the order."""
    share: float | None = None
    """Length of a bar behind the text, in [0, 1]; None: no bar."""
    kind: str = ""
    """"best" or "significant" for bold text, "reference" for italics."""


@dataclass(frozen=True)
class SortableTable:
    """A table whose header cells sort its rows; the first column names the row."""

    header: list[str]
    rows: list[list[Cell]]
    title: str = ""
    """Above the table, where a section has several."""


def accuracy_table(metrics: Mapping[str, Any], names: Sequence[str]) -> SortableTable | None:
    """Return accuracy per class for each model, the student's largest loss first.

    The difference is the student's minus the teacher's, in points.

    None where no model was measured class by class.

    Args:
        metrics: metrics of a run.
        names: names of the teacher's classes.
    """
    models = [name for name in _MODELS if _per_class(metrics, name)]
    if "student" not in models or "teacher" not in models:
        return None
    shown = {name: list(metrics[name]["per_class_accuracy"]) for name in models}
    header = ["class", *(MODEL_TITLES[name] for name in models), "difference"]
    rows = []
    for index, class_name in enumerate(names):
        values = [_at(shown[name], index) for name in models]
        cells = [Cell(str(class_name), str(class_name))]
        cells += [Cell(percent(value), value) for value in values]
        cells.append(_difference(_at(shown["student"], index), _at(shown["teacher"], index)))
        rows.append(cells)
    # The classes that the student lost most in are what a reader looks for.
    rows.sort(key=lambda cells: _last_if_none(cells[-1].key))
    return SortableTable(header, rows)


def _per_class(metrics: Mapping[str, Any], name: str) -> bool:
    facts = metrics.get(name) or {}
    values = facts.get("per_class_accuracy")
    return isinstance(values, Sequence) and len(values) > 0


def _at(values: Sequence[float | None], index: int) -> float | None:
    return values[index] if index < len(values) else None


def _difference(student: float | None, teacher: float | None) -> Cell:
    if student is None or teacher is None:
        return Cell(UNKNOWN, None)
    difference = 100 * (student - teacher)
    rounded = round(difference, 1) + 0.0
    sign = "+" if rounded > 0 else "−" if rounded < 0 else ""
    return Cell(f"{sign}{abs(rounded):.1f}", difference)


def _last_if_none(key: float | str | None) -> float:
    return float("inf") if key is None else float(key)


def balance_table(
    counts: Mapping[str, np.ndarray],
    names: Sequence[str],
    class_weights: pd.DataFrame | None,
    *,
    is_uneven: bool,
) -> SortableTable:
    """Return the share of each class before and after the selection, the largest after it first.

    Args:
        counts: result of `counts_by_class`; classes of pool images are the teacher's.
        names: (K,) names of the classes.
        class_weights: `class_index`, `weight`; None where the student reads no weights.
        is_uneven: whether images are drawn unevenly, so that draws count, and not images.
    """
    before = _shares(counts["pool"])
    after = _shares(counts["draws"] if is_uneven else counts["selected"])
    header = ["class", "labeled", "pool, before", "selected, after"]
    if is_uneven:
        header[-1] = "draws, after"
    weights: dict[int, float] = {}
    if class_weights is not None:
        header.append("weight")
        pairs = zip(class_weights["class_index"], class_weights["weight"], strict=True)
        weights = {int(index): float(weight) for index, weight in pairs}
    largest = max(before.max(initial=0.0), after.max(initial=0.0)) or 1.0
    rows = []
    for index, name in enumerate(names):
        n_labeled = int(counts["labeled"][index])
        cells = [Cell(str(name), str(name)), Cell(f"{n_labeled:,}", n_labeled)]
        for kind, shares in (("pool", before), ("selected", after)):
            share = float(shares[index])
            text = percent(share)
            if kind == "pool" or not is_uneven:
                text = f"{int(counts[kind][index]):,} ({text})"
            cells.append(Cell(text, share, share / largest))
        if class_weights is not None:
            weight = weights.get(index)
            cells.append(Cell(UNKNOWN if weight is None else f"{weight:.2f}", weight))
        rows.append(cells)
    rows.sort(key=lambda cells: -float(cells[3].key or 0))
    return SortableTable(header, rows)


def _shares(counts: np.ndarray) -> np.ndarray:
    total = counts.sum()
    if not total:
        return np.zeros(len(counts))
    shares: np.ndarray = counts / total
    return shares
