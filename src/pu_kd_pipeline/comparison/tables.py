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
    "yardstick_agreement",
    "yardstick_kl",
    "auc",
    "precision",
    "recall",
    "class_prior",
    "n_selected",
    "pu_seconds",
    "seconds",
]


def means_over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row per variant, objective, labeled images and updates, in grid order.

    Columns: `variant`, `objective`, `labeled_per_class` (null where no labeled image is used),
    `n_updates`,
    `row` (the name of the row), `role` (its rule or method), `is_reference`, `n_seeds` (seeds that
    have a result), `mean` and `std` of the test accuracy in percent (std of the sample; NaN for one
    seed), and the means of the other numbers.

    Args:
        results: one row per cell, as `comparison.RESULT` has it.
    """
    accuracy_percent = 100 * results["accuracy"]
    results = results.assign(percent=accuracy_percent)
    keys = ["variant", "objective", "labeled_per_class", "n_updates"]
    # Kept null: rows without labeled images are a group, too.
    groups = results.groupby(keys, dropna=False, sort=False)
    percents = groups["percent"]
    table = groups[_MEAN_COLUMNS].mean()
    table["mean"] = percents.mean()
    table["std"] = percents.std(ddof=1)
    table["n_seeds"] = percents.count()
    first = groups[["rule", "method", "is_reference"]].first()
    # Methods that select nothing have no rule.
    table["role"] = first["rule"].fillna(first["method"])
    table["is_reference"] = first["is_reference"]
    table = table.reset_index()
    table["row"] = _row_names(table, "variant", ["variant"])
    return table


def results_by_length(
    results: pd.DataFrame, params: ComparisonParams
) -> list[tuple[int | None, pd.DataFrame]]:
    """Return the results of each length of training, the shortest first.

    Without `comparison.n_updates` they are not split, and the length is None: there, only points of
    a sweep may differ in it.
    """
    if params.n_updates is None:
        return [(None, results)]
    parts: list[tuple[int | None, pd.DataFrame]] = []
    for n_updates in sorted(params.n_updates):
        is_of_length = results["n_updates"] == n_updates
        parts.append((n_updates, results[is_of_length]))
    return parts


def _row_names(table: pd.DataFrame, name: str, keys: list[str]) -> pd.Series:
    """Return the names of a column, with the objective where rows of the same keys have several."""
    groups = table.groupby(keys)
    n_objectives = groups["objective"].transform("nunique")
    is_unique = n_objectives == 1
    short_names = table[name]
    long_names = short_names + " · " + table["objective"]
    return short_names.where(is_unique, long_names)


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
        if variant is None or not variant.sweep:
            continue
        sweep = variant.sweep
        sweep_of[name] = sweep.name
        line_of[name] = sweep.line
        place_of[name] = sweep.at
    if not sweep_of:
        return means, {}
    is_point = means["variant"].isin(list(sweep_of))
    of_grid = means[~is_point]
    points = means[is_point].copy()
    variants = points["variant"]
    points["sweep"] = variants.map(sweep_of)
    points["line"] = variants.map(line_of)
    points["at"] = variants.map(place_of)
    # Two sweeps may have lines of the same name.
    points["row"] = _row_names(points, "line", ["sweep", "line"])
    by_label = {}
    for name, label in params.sweeps.items():
        is_of_sweep = points["sweep"] == name
        of_sweep = points[is_of_sweep]
        # Without points, the page would have an empty table and the figure an empty panel.
        if len(of_sweep):
            by_label[label] = of_sweep
    return of_grid, by_label


def curve_table(results: pd.DataFrame, params: ComparisonParams) -> dict[str, pd.DataFrame]:
    """Return for each panel, by title, the curves of accuracy in percent.

    Columns: `row`, `updates`, and over the seeds the mean `watched` and its deviation `std`.
    """
    if params.curves is None:
        return {}
    # Cells of earlier versions have no curve.
    with_curve = results.dropna(subset=["curve_updates"])
    points = with_curve.explode(["curve_updates", "curve_accuracy"])
    panels = {}
    for title, variants in params.curves.panels.items():
        is_of_panel = points["variant"].isin(variants)
        of_panel = points[is_of_panel]
        if of_panel.empty:
            continue
        names = _row_names(of_panel, "variant", ["variant"])
        rows = names.rename("row")
        # The columns held lists, so that their values are objects.
        updates = of_panel["curve_updates"].astype(int)
        updates = updates.rename("updates")
        accuracy = of_panel["curve_accuracy"].astype(float)
        percents = 100 * accuracy
        groups = percents.groupby([rows, updates], sort=False)
        mean = groups.mean()
        std = groups.std(ddof=1)
        curves = pd.DataFrame({"watched": mean, "std": std})
        panels[title] = curves.reset_index()
    return panels


def labeled_columns(means: pd.DataFrame) -> list[float]:
    """Return the numbers of labeled images of a table, without those that no row has."""
    n_labeled = means["labeled_per_class"].dropna()
    return sorted(n_labeled.unique())


def is_in_column(means: pd.DataFrame, column: float | None) -> pd.Series:
    """Return (n,) bool: which rows have a result for that number of labeled images per class.

    A row without labeled images has the same result in every column.
    """
    n_labeled = means["labeled_per_class"]
    uses_no_labeled_images = n_labeled.isna()
    has_that_number = n_labeled == column
    return uses_no_labeled_images | has_that_number


def rivals(means: pd.DataFrame, column: float | None) -> pd.DataFrame:
    """Return the rows that may be the best of a column: all but the references."""
    is_in_race = ~means["is_reference"]
    return means[is_in_column(means, column) & is_in_race]


def seeds_text(means: pd.DataFrame) -> str:
    """Return the number of seeds as words, such as "3 seeds"."""
    # A variant whose cells failed for some seeds has fewer.
    n_seeds = int(means["n_seeds"].max())
    if n_seeds == 1:
        return "1 seed"
    return f"{n_seeds} seeds"


def updates_text(results: pd.DataFrame, params: ComparisonParams) -> str:
    """Return how many updates students got, such as "600 or 3,000 updates"."""
    if params.n_updates is not None:
        lengths = [f"{n_updates:,}" for n_updates in sorted(params.n_updates)]
        return f"{' or '.join(lengths)} updates"
    return f"{one_or_range(results['n_updates'])} updates"


def one_or_range(values: pd.Series) -> str:
    """Return the value that all have, or the lowest and the highest."""
    lowest = values.min()
    highest = values.max()
    if values.nunique() == 1:
        return f"{lowest:,}"
    return f"{lowest:,} to {highest:,}"
