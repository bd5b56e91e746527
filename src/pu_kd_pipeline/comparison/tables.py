"""The results of a comparison as tables: means over seeds, and a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pu_kd_pipeline.reporting.style import percent

if TYPE_CHECKING:
    from pu_kd_pipeline.params.comparison import ComparisonParams


_SAME_ROW = ["variant", "objective"]


def means_over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each variant, objective and number of labeled images per class, in the order of the grid.

    Columns: `variant`, `objective`, `labeled_per_class` (null where no labeled image is used), `row` (what the row is
    called), `role` (its rule or method), `is_reference`, `n_seeds` (those that have a result), `mean` and `std` of the
    test accuracy in percent (std of the sample; NaN for one seed), and the means of the other numbers.

    Args:
        results: one row a cell, as `comparison.RESULT` has it.
    """
    results = results.assign(percent=100 * results["accuracy"])
    groups = results.groupby([*_SAME_ROW, "labeled_per_class"], dropna=False, sort=False)
    percents = groups["percent"]
    first = groups[["rule", "method", "is_reference"]].first()
    numbers = [
        "agreement",
        "auc",
        "precision",
        "recall",
        "class_prior",
        "n_selected",
        "pu_seconds",
        "seconds",
    ]
    table = (
        groups[numbers]
        .mean()
        .assign(mean=percents.mean(), std=percents.std(ddof=1), n_seeds=percents.count())
    )
    table["role"] = first["rule"].fillna(first["method"])
    table["is_reference"] = first["is_reference"]
    table = table.reset_index()
    several = table.groupby("variant")["objective"].transform("nunique") > 1
    table["row"] = table["variant"].where(~several, table["variant"] + " · " + table["objective"])
    return table


def comparison_page(results: pd.DataFrame, params: ComparisonParams) -> str:
    """Return the page: accuracies by variant and labeled images, sweeps, selections, and what could not be computed."""
    means = means_over_seeds(results)
    of_grid, sweeps = split_sweeps(means, params)
    parts = [f"# {params.title}", _facts(results, means)]
    if len(of_grid):
        parts.append(_markdown(_accuracy_rows(of_grid)))
    for label, of_sweep in sweeps.items():
        parts += [f"## By {label}", _markdown(_sweep_rows(of_sweep))]
    for title, curves in curve_table(results, params).items():
        parts += [f"## Accuracy by updates: {title}", _CURVES_FACTS, _markdown(_curve_rows(curves))]
    selections = means[means["n_selected"] > 0]
    if len(selections):
        parts += ["## What was selected", _markdown(_selection_rows(selections))]
    if notes := [f"- {name}: {note}" for name, note in _notes(results)]:
        parts += ["## What to know of them", "\n".join(notes)]
    if failures := [f"- {name}: {reason}" for name, reason in _failures(results)]:
        again = "To try a cell again, delete its file in `comparison_cells`."
        parts += ["## What could not be computed", "\n".join(failures), again]
    return "\n\n".join(parts) + "\n"


def _facts(results: pd.DataFrame, means: pd.DataFrame) -> str:
    facts = [
        f"Test accuracy in percent, mean ± standard deviation over {seeds_text(means)}; columns: labeled images per class.",
        f"Every student got {one_or_range(results['n_updates'])} updates.",
    ]
    if results["teacher_accuracy"].notna().any():
        facts.append(
            f"Teacher: {100 * results['teacher_accuracy'].max():.2f}; {int(results['n_test'].max()):,} test images."
        )
    facts.append("**Bold**: the best of a column.")
    if means["is_reference"].any():
        facts.append("*Italic*: a reference, which uses the original images or the pool's truth.")
    return " ".join(facts)


def split_sweeps(
    means: pd.DataFrame, params: ComparisonParams
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Return the rows of the grid and, by the label of their axis, those of each sweep with `line` and `at`."""
    points = {
        name: variant.sweep
        for name, variant in params.variants.items()
        if variant is not None and variant.sweep
    }
    if not points:
        return means, {}
    is_point = means["variant"].isin(list(points))
    of_sweeps = means[is_point].assign(
        sweep=means["variant"].map({name: point.name for name, point in points.items()}),
        line=means["variant"].map({name: point.line for name, point in points.items()}),
        at=means["variant"].map({name: point.at for name, point in points.items()}),
    )
    several = of_sweeps.groupby(["sweep", "line"])["objective"].transform("nunique") > 1
    of_sweeps["row"] = of_sweeps["line"].where(
        ~several, of_sweeps["line"] + " · " + of_sweeps["objective"]
    )
    by_label = {
        label: of_sweeps[of_sweeps["sweep"] == name] for name, label in params.sweeps.items()
    }
    return means[~is_point], {label: rows for label, rows in by_label.items() if len(rows)}


def _sweep_rows(means: pd.DataFrame) -> list[list[str]]:
    places = sorted(means["at"].unique())
    rows = [["", *(f"{place:,g}" for place in places)]]
    for name, of_row in means.groupby("row", sort=False):
        cells = [f"*{name}*" if of_row["is_reference"].all() else str(name)]
        for place in places:
            here = of_row[of_row["at"] == place]
            cells.append(
                _with_deviation(here.iloc[0], means["n_seeds"].max()) if len(here) else "–"
            )
        rows.append(cells)
    return rows


_CURVES_FACTS = (
    "In percent, of training images of the teacher that no student sees; columns: updates so far."
)


def curve_table(results: pd.DataFrame, params: ComparisonParams) -> dict[str, pd.DataFrame]:
    """Return by title of a panel the mean `watched` and its deviation `std` of each `row` after `updates`."""
    if params.curves is None:
        return {}
    points = results.dropna(subset=["curve_updates"]).explode(["curve_updates", "curve_accuracy"])
    panels = {}
    for title, variants in params.curves.panels.items():
        of_panel = points[points["variant"].isin(variants)]
        if of_panel.empty:
            continue
        several = of_panel.groupby("variant")["objective"].transform("nunique") > 1
        row = of_panel["variant"].where(
            ~several, of_panel["variant"] + " · " + of_panel["objective"]
        )
        percents = 100 * of_panel["curve_accuracy"].astype(float)
        groups = percents.groupby(
            [row.rename("row"), of_panel["curve_updates"].astype(int).rename("updates")], sort=False
        )
        panels[title] = pd.DataFrame(
            {"watched": groups.mean(), "std": groups.std(ddof=1)}
        ).reset_index()
    return panels


def _curve_rows(curves: pd.DataFrame) -> list[list[str]]:
    updates = sorted(curves["updates"].unique())
    rows = [["", *(f"{update:,}" for update in updates)]]
    for name, of_row in curves.groupby("row", sort=False):
        known = of_row.set_index("updates")["watched"]
        rows.append(
            [str(name), *(f"{known[update]:.2f}" if update in known else "–" for update in updates)]
        )
    return rows


def _accuracy_rows(means: pd.DataFrame) -> list[list[str]]:
    columns = sorted(means["labeled_per_class"].dropna().unique())
    rows = [["", *(f"{column:.0f}" for column in columns)]]
    for name, of_row in means.groupby("row", sort=False):
        is_reference = bool(of_row["is_reference"].iloc[0])
        cells = [f"*{name}*" if is_reference else str(name)]
        for column in columns:
            here = of_row[
                of_row["labeled_per_class"].isna() | (of_row["labeled_per_class"] == column)
            ]
            rival_means = rivals(means, column)["mean"]
            text = _with_deviation(here.iloc[0], means["n_seeds"].max()) if len(here) else "–"
            is_best = len(here) and not is_reference and here["mean"].iloc[0] == rival_means.max()
            cells.append(f"**{text}**" if is_best else text)
        rows.append(cells)
    return rows


def rivals(means: pd.DataFrame, column: float | None) -> pd.DataFrame:
    """Return the rows that may be the best of a column: no references; a row without labeled images is in each."""
    is_here = means["labeled_per_class"].isna() | (means["labeled_per_class"] == column)
    return means[is_here & ~means["is_reference"]]


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.0f}"


def _with_deviation(row: pd.Series, n_seeds: int) -> str:
    if not row["n_seeds"]:
        return "–"
    deviation = f" ± {row['std']:.2f}" if np.isfinite(row["std"]) else ""
    return f"{row['mean']:.2f}{deviation}" + (
        f" ({row['n_seeds']:.0f})" if row["n_seeds"] < n_seeds else ""
    )


def _selection_rows(means: pd.DataFrame) -> list[list[str]]:
    header = [
        "",
        "labeled per class",
        "images",
        "AUC",
        "precision",
        "recall",
        "class prior",
        "PU (s)",
        "student (s)",
    ]
    rows = [header]
    for _, row in means.iterrows():
        shares = [percent(row[name]) for name in ("precision", "recall")]
        auc, prior = (
            "–" if np.isnan(row[name]) else f"{row[name]:.3f}" for name in ("auc", "class_prior")
        )
        seconds = [
            "–" if np.isnan(row[name]) else f"{row[name]:.0f}" for name in ("pu_seconds", "seconds")
        ]
        rows.append(
            [
                row["row"],
                _number(row["labeled_per_class"]),
                f"{row['n_selected']:,.0f}",
                auc,
                *shares,
                prior,
                *seconds,
            ]
        )
    return rows


def _notes(results: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield a row and what its first seed that has one notes."""
    for (variant, objective), of_row in results.groupby(_SAME_ROW, sort=False):
        notes = of_row["note"].dropna()
        if len(notes):
            yield f"{variant}, {objective} ({len(notes)} of {len(of_row)} students)", notes.iloc[0]


def _failures(results: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for _, row in results[results["failure"].notna()].iterrows():
        labeled = (
            ""
            if pd.isna(row["labeled_per_class"])
            else f", {row['labeled_per_class']:.0f} per class"
        )
        yield f"{row['variant']}, {row['objective']}{labeled}, seed {row['seed']}", row["failure"]


def _markdown(rows: list[list[str]]) -> str:
    header, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([header, "| --- |" + " ---: |" * (len(rows[0]) - 1), *body])


def seeds_text(means: pd.DataFrame) -> str:
    n = int(means["n_seeds"].max())
    return f"{n} seed{'s' * (n != 1)}"


def one_or_range(values: pd.Series) -> str:
    return f"{values.min():,}" if values.nunique() == 1 else f"{values.min():,} to {values.max():,}"
