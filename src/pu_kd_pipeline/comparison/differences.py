"""How certain the order of the rows of a comparison is: paired differences to the best row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from pu_kd_pipeline.comparison.tables import is_in_column, rivals
from pu_kd_pipeline.learning.paired import PairedDifference, paired_mean_difference

_KEYS = ["variant", "objective", "labeled_per_class"]
Student = tuple[int, str]  # seed, fingerprint of the test images


class RowDifference(NamedTuple):
    """The accuracy of a row minus that of the best row."""

    accuracy: PairedDifference
    n_seeds: int
    """Number of seeds whose students were compared; with one, the test leaves out their chance."""


def best_row(means: pd.DataFrame, column: float | None) -> pd.Series | None:
    """Return the best row of a column that is no reference; None where there is none."""
    ranking = rivals(means, column).sort_values("mean", ascending=False)
    if ranking.empty or ranking["mean"].isna().all():
        return None
    return ranking.iloc[0]


def differences_to_best(
    results: pd.DataFrame, means: pd.DataFrame, column: float | None
) -> dict[str, RowDifference | None]:
    """Return, by the name of a row, its accuracy minus that of the best row of a column.

    Only students of the same seed that were tested on the same images are compared. The value is
    None where there are none, such as for results of a version that kept no predictions. The best
    row itself is left out.

    Args:
        results: one row per cell, as `comparison.RESULT` has it.
        means: rows of `means_over_seeds`.
        column: number of labeled images per class.
    """
    best = best_row(means, column)
    if best is None:
        return {}
    of_best = students_of_row(results, best)
    differences = {}
    in_column = means[is_in_column(means, column)]
    for _, row in in_column.iterrows():
        if row["row"] != best["row"]:
            differences[row["row"]] = paired_students(students_of_row(results, row), of_best)
    return differences


def students_of_row(results: pd.DataFrame, row: pd.Series) -> dict[Student, np.ndarray]:
    """Return which test images the students of a row classify correctly, where it is known."""
    is_of_row = pd.Series(True, index=results.index)
    for key in _KEYS:
        value = row[key]
        is_same = results[key].isna() if pd.isna(value) else results[key] == value
        is_of_row &= is_same
    students = {}
    of_row = results[is_of_row].dropna(subset=["is_correct", "test_images"])
    for _, cell in of_row.iterrows():
        student = (int(cell["seed"]), str(cell["test_images"]))
        students[student] = np.asarray(cell["is_correct"], dtype=bool)
    return students


def paired_students(
    first: dict[Student, np.ndarray], second: dict[Student, np.ndarray]
) -> RowDifference | None:
    """Return the difference of two rows; None without students of one seed and test set."""
    stacked = stack_pairs(first, second)
    if stacked is None:
        return None
    first_correct, second_correct = stacked
    return RowDifference(paired_mean_difference(first_correct, second_correct), len(first_correct))


def stack_pairs(*rows: dict[Student, np.ndarray]) -> list[np.ndarray] | None:
    """Return for each row (S, N) bool of the students that all rows have, by seed; None if none."""
    common = sorted(set.intersection(*(set(row) for row in rows)))
    if not common:
        return None
    # Students of another test set cannot be paired with these.
    last_test_images = common[-1][1]
    pairs = [student for student in common if student[1] == last_test_images]
    return [np.stack([row[student] for student in pairs]) for row in rows]
