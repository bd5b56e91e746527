"""The results of a comparison as tables: means over seeds, points of sweeps, and curves.

`page.py` writes them as Markdown, `figure.py` draws them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from pu_kd_pipeline.params.comparison import ComparisonParams

_MEAN_COLUMNS = [
    "agreement",
    "auc",
    "precision",
    "recall",
    "class_prior",
    "n_selected",
    "pu_seconds",
    "seconds",
]


def means_over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per variant, objective and number of labeled images, in grid order.

    Columns: `variant`, `objective`, `labeled_per_class` (null where no labeled image is used),
    `row` (the name of the row), `role` (its rule or method), `is_reference`, `n_seeds` (seeds that
    have a result), `mean` and `std` of the test accuracy in percent (std of the sample; NaN for one
    seed), and the means of the other numbers.

    Args:
        results: one row per cell, as `comparison.RESULT` has it.
    """
    results = results.assign(percent=100 * results["accuracy"])
    keys = ["variant", "objective", "labeled_per_class"]
    groups = results.groupby(keys, dropna=False, sort=False)
    percents = groups["percent"]
    table = groups[_MEAN_COLUMNS].mean()
    table["mean"] = percents.mean()
    table["std"] = percents.std(ddof=1)
    table["n_seeds"] = percents.count()
    first = groups[["rule", "method", "is_reference"]].first()
    table["role"] = first["rule"].fillna(first["method"])
    table["is_reference"] = first["is_reference"]
    table = table.reset_index()
    table["row"] = _row_names(table, "variant", ["variant"])
    return table


def _row_names(table: pd.DataFrame, name: str, keys: list[str]) -> pd.Series:
    """Return the names of a column, with the objective where rows of the same keys have several."""
    n_objectives = table.groupby(keys)["objective"].transform("nunique")
    with_objective = table[name] + " · " + table["objective"]
    return table[name].where(n_objectives == 1, with_objective)


def split_sweeps(
    means: pd.DataFrame, params: ComparisonParams
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Return the rows of the grid and, by the label of their axis, the points of each sweep.

    Points have the additional columns `line` (the line that they belong to) and `at` (the place on
    the axis).
    """
    sweep_of = {}
    line_of = {}
    place_of = {}
    for name, variant in params.variants.items():
        if variant is not None and variant.sweep:
            sweep_of[name] = variant.sweep.name
            line_of[name] = variant.sweep.line
            place_of[name] = variant.sweep.at
    if not sweep_of:
        return means, {}
    is_point = means["variant"].isin(list(sweep_of))
    points = means[is_point].copy()
    points["sweep"] = points["variant"].map(sweep_of)
    points["line"] = points["variant"].map(line_of)
    points["at"] = points["variant"].map(place_of)
    points["row"] = _row_names(points, "line", ["sweep", "line"])
    by_label = {}
    for name, label in params.sweeps.items():
        of_sweep = points[points["sweep"] == name]
        if len(of_sweep):
            by_label[label] = of_sweep
    return means[~is_point], by_label


def curve_table(results: pd.DataFrame, params: ComparisonParams) -> dict[str, pd.DataFrame]:
    """Return for each panel, by title, the curves of accuracy in percent.

    Columns: `row`, `updates`, and over the seeds the mean `watched` and its deviation `std`.
    """
    if params.curves is None:
        return {}
    # Cells of earlier versions have no curve.
    points = results.dropna(subset=["curve_updates"]).explode(["curve_updates", "curve_accuracy"])
    panels = {}
    for title, variants in params.curves.panels.items():
        of_panel = points[points["variant"].isin(variants)]
        if of_panel.empty:
            continue
        row = _row_names(of_panel, "variant", ["variant"]).rename("row")
        updates = of_panel["curve_updates"].astype(int).rename("updates")
        percents = 100 * of_panel["curve_accuracy"].astype(float)
        groups = percents.groupby([row, updates], sort=False)
        curves = pd.DataFrame({"watched": groups.mean(), "std": groups.std(ddof=1)})
        panels[title] = curves.reset_index()
    return panels


def is_in_column(means: pd.DataFrame, column: float | None) -> pd.Series:
    """Return (n,) bool: which rows have a result for that number of labeled images per class.

    A row without labeled images has the same result in every column.
    """
    return means["labeled_per_class"].isna() | (means["labeled_per_class"] == column)


def rivals(means: pd.DataFrame, column: float | None) -> pd.DataFrame:
    """Return the rows that may be the best of a column: all but the references."""
    return means[is_in_column(means, column) & ~means["is_reference"]]


def seeds_text(means: pd.DataFrame) -> str:
    """Return the number of seeds as words, such as "3 seeds"."""
    n = int(means["n_seeds"].max())
    if n == 1:
        return "1 seed"
    return f"{n} seeds"


def one_or_range(values: pd.Series) -> str:
    """Return the value that all have, or the lowest and the highest."""
    if values.nunique() == 1:
        return f"{values.min():,}"
    return f"{values.min():,} to {values.max():,}"
