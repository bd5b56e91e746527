"""What choosing images can gain at most, the headroom, and how much of it each row gains.

The goal is a reference, such as the oracle. The controls are what a user has without choosing: as
many random images, and the whole pool. `gap_section.py` writes this, `gap_panel.py` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from pu_kd_pipeline.comparison.differences import (
    RowDifference,
    paired_students,
    stack_pairs,
    students_of_row,
)
from pu_kd_pipeline.comparison.grid import Blocks, Cell, make_cells
from pu_kd_pipeline.comparison.tables import (
    is_in_column,
    labeled_columns,
    means_over_seeds,
    results_by_length,
    split_sweeps,
)
from pu_kd_pipeline.learning.paired import GapClosed, gap_closed
from pu_kd_pipeline.params.comparison import METHODS, ComparisonParams, GapParams
from pu_kd_pipeline.params.flatten import flatten
from pu_kd_pipeline.training.recipes import differences_text

# open: the goal is better than the control; none: by less than is worth choosing images for;
# unclear: chance explains the difference; unknown: the students cannot be compared
HeadroomKind = Literal["open", "none", "unclear", "unknown"]

_RECIPE_PARTS = ("distillation", "class_weighting", "precision of distillation")
_Recipe = dict[str, Any]
_Recipes = dict[tuple[str, str], _Recipe]  # by variant and objective


@dataclass(frozen=True)
class Headroom:
    """The accuracy of the goal minus that of a control of random images."""

    control: str
    n_images: float
    difference: RowDifference | None
    kind: HeadroomKind


@dataclass(frozen=True)
class GapRow:
    """A row between its control and the goal; None where it cannot be compared."""

    name: str
    control: str | None
    n_images: float
    to_control: RowDifference | None = None
    to_whole_pool: RowDifference | None = None
    closed: GapClosed | None = None


@dataclass(frozen=True)
class Gap:
    """Headroom and rows of one length of training and one number of labeled images.

    Attributes:
        n_updates: None where the comparison has one length.
        whole_pool: the second control; None without one.
        shares_labeled: whether the batches of all these students have the same share of labeled
            images; without it, more pool images mean fewer labeled ones.
        reasons: why rows were not compared.
    """

    n_updates: int | None
    labeled_per_class: float
    goal: str
    whole_pool: str | None
    least_headroom: float
    shares_labeled: bool
    headrooms: list[Headroom] = field(default_factory=list)
    rows: list[GapRow] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def measure_gaps(results: pd.DataFrame, params: ComparisonParams, blocks: Blocks) -> list[Gap]:
    """Return the gaps of a comparison, by length and number of labeled images.

    Students are compared only where they differ in nothing but their images: not with another
    temperature, share of labeled images or learning rate than their control or the goal.

    Args:
        results: one row per cell, as `comparison.RESULT` has it.
        params: the comparison; without its `gap`, there are none.
        blocks: the run's own parameter blocks, which the variants override.
    """
    if params.gap is None:
        return []
    recipes = _recipes(params, blocks)
    gaps = []
    for n_updates, of_length in results_by_length(results, params):
        of_grid, _ = split_sweeps(means_over_seeds(of_length), params)
        for column in labeled_columns(of_grid):
            rows = of_grid[is_in_column(of_grid, column)]
            measured = _Column(of_length, rows, recipes, params.gap)
            gaps.append(measured.gap(n_updates, column))
    return gaps


def _recipes(params: ComparisonParams, blocks: Blocks) -> _Recipes:
    # Seeds differ in nothing that is compared here.
    one_seed = params.model_copy(update={"seeds": params.seeds[:1]})
    recipes = {}
    for cell in make_cells(one_seed, blocks):
        recipes[cell.variant, cell.objective] = _recipe(cell)
    return recipes


def _recipe(cell: Cell) -> _Recipe:
    """Return how the student of a cell is trained, whatever its images are."""
    identity = cell.identity()
    recipe: _Recipe = {}
    for part in _RECIPE_PARTS:
        recipe.update(flatten({part: identity.get(part)}))
    if not METHODS[cell.method].selects:
        # Images of one origin have no share.
        recipe.pop("distillation.labeled_share", None)
    return recipe


class _Column:
    """Compares the rows of one number of labeled images."""

    def __init__(
        self, results: pd.DataFrame, rows: pd.DataFrame, recipes: _Recipes, params: GapParams
    ) -> None:
        self._results = results
        self._rows = [row for _, row in rows.iterrows()]
        self._recipes = recipes
        self._params = params
        self._students = {}
        for row in self._rows:
            self._students[row["row"]] = students_of_row(results, row)
        self._kinds: dict[str, HeadroomKind] = {}
        self._reasons: list[str] = []

    def gap(self, n_updates: int | None, column: float) -> Gap:
        headrooms = []
        for row in self._rows:
            if row["variant"] in self._params.random_controls:
                headrooms.append(self._headroom(row))
        self._kinds = {headroom.control: headroom.kind for headroom in headrooms}
        ends = {*self._params.random_controls, self._params.goal}
        rows = [self._gap_row(row) for row in self._rows if row["variant"] not in ends]
        return Gap(
            n_updates,
            column,
            self._params.goal,
            self._params.whole_pool,
            self._params.least_headroom,
            self._shares_labeled(),
            headrooms,
            rows,
            self._reasons,
        )

    def _shares_labeled(self) -> bool:
        for row in self._rows:
            recipe = self._recipe_of(row)
            if recipe.get("distillation.labeled_share", "none") is None:
                return False
        return True

    def _headroom(self, control: pd.Series) -> Headroom:
        goal = self._partner(control, (self._params.goal,))
        difference = None
        if goal is not None:
            difference = self._difference(goal, control)
        kind = headroom_kind(difference, self._params.least_headroom)
        return Headroom(control["row"], _n_images(control), difference, kind)

    def _gap_row(self, row: pd.Series) -> GapRow:
        control = self._partner(row, self._params.random_controls)
        goal = self._partner(row, (self._params.goal,))
        to_whole_pool = None
        whole_pool = self._params.whole_pool
        if whole_pool is not None and whole_pool != row["variant"]:
            pool = self._partner(row, (whole_pool,))
            to_whole_pool = self._difference(row, pool)
        closed = None
        if control is not None and goal is not None and self._kinds[control["row"]] == "open":
            closed = self._closed(row, control, goal)
        return GapRow(
            row["row"],
            None if control is None else control["row"],
            _n_images(row),
            self._difference(row, control),
            to_whole_pool,
            closed,
        )

    def _partner(self, row: pd.Series, names: tuple[str, ...]) -> pd.Series | None:
        """Return the row to compare with: trained alike, with the nearest number of images."""
        listed = " and ".join(names)
        is_candidate = [
            each["variant"] in names and each["objective"] == row["objective"]
            for each in self._rows
        ]
        candidates = [each for each, is_one in zip(self._rows, is_candidate, strict=True) if is_one]
        if not candidates:
            self._add_reason(f"{row['row']}: {listed} has no student with this objective here")
            return None
        n_images = _n_images(row)
        candidates.sort(key=lambda each: abs(_n_images(each) - n_images))
        for candidate in candidates:
            if not self._differences_of_recipes(row, candidate):
                return candidate
        nearest = candidates[0]
        differences = differences_text(self._differences_of_recipes(row, nearest))
        self._add_reason(
            f"{row['row']} was trained differently from {nearest['row']}: {differences}"
        )
        return None

    def _add_reason(self, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons.append(reason)

    def _recipe_of(self, row: pd.Series) -> _Recipe:
        return self._recipes.get((row["variant"], row["objective"]), {})

    def _differences_of_recipes(self, row: pd.Series, other: pd.Series) -> list[str]:
        return recipe_differences(self._recipe_of(row), self._recipe_of(other))

    def _difference(self, row: pd.Series, other: pd.Series | None) -> RowDifference | None:
        if other is None:
            return None
        return paired_students(self._students[row["row"]], self._students[other["row"]])

    def _closed(self, row: pd.Series, control: pd.Series, goal: pd.Series) -> GapClosed | None:
        stacked = stack_pairs(*(self._students[each["row"]] for each in (row, control, goal)))
        if stacked is None:
            return None
        return gap_closed(*stacked)


def headroom_kind(difference: RowDifference | None, least: float) -> HeadroomKind:
    """Return what the difference of goal and control shows.

    Args:
        difference: accuracy of the goal minus that of the control.
        least: the smallest difference that is worth choosing images for.
    """
    if difference is None:
        return "unknown"
    if difference.accuracy.upper < least:
        return "none"
    if difference.accuracy.lower <= 0:
        return "unclear"
    return "open"


def recipe_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return in what two trainings differ, such as "temperature 4.0 and 1.0".

    Keys that only one of them has are not compared: the other one does not read them.
    """
    differences = []
    for key in sorted(first.keys() & second.keys()):
        one = first[key]
        other = second[key]
        if one != other:
            name = key.removeprefix("distillation.")
            differences.append(f"{name} {one} and {other}")
    return differences


def _n_images(row: pd.Series) -> float:
    """Return the number of pool images of a row; 0 where no cell has a result."""
    return float(np.nan_to_num(row["n_selected"]))
