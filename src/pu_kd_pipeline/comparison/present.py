"""Which of the saved results belong to the grid of the present parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from pu_kd_pipeline.comparison.grid import Blocks, Cell, make_cells
from pu_kd_pipeline.errors import InputError

if TYPE_CHECKING:
    from pu_kd_pipeline.params.comparison import ComparisonParams

# What results hold of how their images were chosen, in the order of `_recipe_of_cell`.
RECIPE = ("method", "rule", "criterion", "features")
_MAX_NAMED = 3

CellKey = tuple[str, str, int | None, int | None, int]


@dataclass(frozen=True)
class PresentResults:
    """Results of the present grid, and what became of the others.

    Attributes:
        results: one row per cell of the present grid, as `comparison.RESULT` has it.
        missing: cells of the grid without a row.
        others: rows at places that the grid does not have.
        changed: rows at places of the grid, of another method, rule, criterion or features.
    """

    results: pd.DataFrame
    missing: set[CellKey]
    others: set[CellKey]
    changed: set[CellKey]

    def doubts(self) -> list[str]:
        """Return what makes the results less than those of the present grid, in sentences."""
        doubts = []
        if self.missing:
            doubts.append(
                f"{students_text(self.missing)} of the present grid {are(self.missing)} missing: "
                "run `kedro run --pipeline=comparison` again."
            )
        if self.others:
            doubts.append(
                f"{students_text(self.others)} of an earlier grid, which the present parameters do "
                f"not have, {are(self.others)} left out."
            )
        if self.changed:
            doubts.append(
                f"{students_text(self.changed)} {are(self.changed)} of another method, rule, "
                "criterion or features than the present parameters have, and left out: run "
                "`kedro run --pipeline=comparison` again."
            )
        return doubts


def present_results(
    results: pd.DataFrame, params: ComparisonParams, blocks: Blocks
) -> PresentResults:
    """Return the results that belong to the grid of the present parameters.

    Results hold their place in the grid, and method, rule, criterion and features. A change of
    another parameter cannot be seen in them.

    Args:
        results: one row per cell, as `comparison.RESULT` has it.
        params: the comparison.
        blocks: the run's own parameter blocks, which the variants override.

    Raises:
        InputError: there are results, and none of them belongs to the grid.
    """
    expected: dict[CellKey, tuple[str | None, ...]] = {}
    for cell in make_cells(params, blocks):
        n_updates = cell.blocks.distillation.n_updates
        place = (cell.variant, cell.objective, cell.labeled_per_class, n_updates, cell.seed)
        expected[place] = _recipe_of_cell(cell)
    is_present = []
    present = set()
    others = set()
    changed = set()
    for row in results.to_dict("records"):
        key = cell_key(row)
        is_of_recipe = key in expected and _is_same(row, expected[key])
        is_present.append(is_of_recipe)
        if is_of_recipe:
            present.add(key)
        elif key in expected:
            changed.add(key)
        else:
            others.add(key)
    if len(results) and not present:
        raise InputError(
            "comparison: no saved result belongs to the grid of the present parameters, such as "
            f"{student_text(next(iter(expected)))}: run `kedro run --pipeline=comparison`, or give "
            "the --env and --params of the run that computed them"
        )
    is_row = pd.Series(is_present, index=results.index, dtype=bool)
    missing = set(expected) - present - changed
    return PresentResults(results[is_row], missing, others, changed)


def cell_key(row: Mapping[Any, Any]) -> CellKey:
    """Return where a row of results stands in a grid."""
    labeled = row["labeled_per_class"]
    n_updates = row["n_updates"]
    return (
        str(row["variant"]),
        str(row["objective"]),
        None if pd.isna(labeled) else int(labeled),
        None if pd.isna(n_updates) else int(n_updates),
        int(row["seed"]),
    )


def _recipe_of_cell(cell: Cell) -> tuple[str | None, ...]:
    criterion = features = None
    if cell.needs_pu:
        criterion = cell.blocks.subset_materialization.criterion
        features = cell.blocks.pu_training.features
    return cell.method, cell.rule, criterion, features


def _is_same(row: Mapping[Any, Any], recipe: tuple[str | None, ...]) -> bool:
    """Return whether a row has a recipe; what it does not state is not compared."""
    for name, value in zip(RECIPE, recipe, strict=True):
        if not pd.isna(row[name]) and row[name] != value:
            return False
    return True


def students_text(keys: set[CellKey]) -> str:
    """Return how many students there are, with some of their names."""
    named = [student_text(key) for key in sorted(keys, key=str)[:_MAX_NAMED]]
    listed = "; ".join(named)
    if len(keys) > len(named):
        listed += "; …"
    noun = "student" if len(keys) == 1 else "students"
    return f"{len(keys):,} {noun} ({listed})"


def student_text(key: CellKey) -> str:
    """Return the name of a student."""
    variant, objective, labeled, n_updates, seed = key
    parts = [variant, objective]
    if labeled is not None:
        parts.append(f"{labeled} per class")
    if n_updates is not None:
        parts.append(f"{n_updates:,} updates")
    return f"{', '.join(parts)}, seed {seed}"


def are(keys: set[CellKey]) -> str:
    """Return the verb of that many students."""
    return "is" if len(keys) == 1 else "are"
