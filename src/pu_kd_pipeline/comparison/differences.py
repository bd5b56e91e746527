"""How certain the order of the rows of a comparison is: paired differences to the best row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pu_kd_pipeline.comparison.tables import is_in_column, rivals
from pu_kd_pipeline.learning.paired import PairedDifference, paired_mean_difference

_KEYS = ["variant", "objective", "labeled_per_class", "n_updates"]
Student = tuple[int, str]  # seed, fingerprint of the test images


class RowDifference(NamedTuple):
    """The accuracy of a row minus that of the best row."""

    accuracy: PairedDifference
    n_seeds: int
    """Number of seeds whose students were compared; with one, the test leaves out their chance."""


class Ranking(NamedTuple):
    """The rows of a column that are no references and have a result, the best first."""

    rows: pd.DataFrame
    n_common: int
    """Number of seeds by which they are ranked, those that all rows have with the same test images;
    0: there are none, and each row counts with its own ones."""
    is_complete: bool
    """Whether all rows have the same seeds, with the same test images."""

    @property
    def best(self) -> pd.Series | None:
        """The first row; None where there is none."""
        return self.rows.iloc[0] if len(self.rows) else None


def rank_rows(results: pd.DataFrame, means: pd.DataFrame, column: float | None) -> Ranking:
    """Return the rows of a column in their order by the seeds that all of them have.

    A row whose hard seeds failed would else be compared by its easy ones. Rows that are equal keep
    their order.

    Args:
        results: one row per cell, as `comparison.RESULT` has it.
        means: rows of `means_over_seeds`.
        column: number of labeled images per class.
    """
    rows = rivals(means, column)
    rows = rows[rows["mean"].notna()]
    by_row = _accuracies_by_row(results)
    accuracies = [by_row[_key_of(row[_KEYS])] for _, row in rows.iterrows()]
    students = [set(of_row) for of_row in accuracies]
    common = sorted(set.intersection(*students)) if students else []
    is_complete = all(of_row == set(common) for of_row in students)
    score = rows["mean"].to_numpy(float)
    if not is_complete and common:
        score = np.array([np.mean([of_row[each] for each in common]) for of_row in accuracies])
    order = np.argsort(-score, kind="stable")
    return Ranking(rows.iloc[order], len(common), is_complete)


def best_row(results: pd.DataFrame, means: pd.DataFrame, column: float | None) -> pd.Series | None:
    """Return the best row of a column, as `rank_rows` has it; None where there is none."""
    return rank_rows(results, means, column).best


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
    best = best_row(results, means, column)
    if best is None:
        return {}
    of_best = students_of_row(results, best)
    differences = {}
    in_column = means[is_in_column(means, column)]
    for _, row in in_column.iterrows():
        if row["row"] != best["row"]:
            differences[row["row"]] = paired_students(students_of_row(results, row), of_best)
    return differences


def _accuracies_by_row(results: pd.DataFrame) -> dict[tuple[Any, ...], dict[Student, float]]:
    """Return the accuracy by student, of each row that has one.

    Results of an earlier version do not state their test images.
    """
    found: dict[tuple[Any, ...], dict[Student, float]] = {}
    columns = [*_KEYS, "seed", "test_images", "accuracy"]
    cells = results.loc[results["accuracy"].notna(), columns]
    for *key, seed, test_images, accuracy in cells.itertuples(index=False, name=None):
        student = (int(seed), "" if pd.isna(test_images) else str(test_images))
        found.setdefault(_key_of(key), {})[student] = float(accuracy)
    return found


def _key_of(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return values as a key, in which what is missing equals itself."""
    return tuple(None if pd.isna(value) else value for value in values)


def students_of_row(results: pd.DataFrame, row: pd.Series) -> dict[Student, np.ndarray]:
    """Return which test images the students of a row classify correctly, where it is known."""
    students = {}
    of_row = _cells_of_row(results, row).dropna(subset=["is_correct", "test_images"])
    for _, cell in of_row.iterrows():
        student = (int(cell["seed"]), str(cell["test_images"]))
        students[student] = np.asarray(cell["is_correct"], dtype=bool)
    return students


def _cells_of_row(results: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    is_of_row = pd.Series(True, index=results.index)
    for key in _KEYS:
        value = row[key]
        is_same = results[key].isna() if pd.isna(value) else results[key] == value
        is_of_row &= is_same
    return results[is_of_row]


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
