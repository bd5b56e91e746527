"""The results of a comparison as a page of Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pu_kd_pipeline.comparison.tables import (
    curve_table,
    is_in_column,
    means_over_seeds,
    one_or_range,
    rivals,
    seeds_text,
    split_sweeps,
)
from pu_kd_pipeline.reporting.style import percent

if TYPE_CHECKING:
    from pu_kd_pipeline.params.comparison import ComparisonParams

_UNKNOWN = "–"
_CURVES_FACTS = (
    "In percent, of training images of the teacher that no student sees; columns: updates so far."
)
_SELECTION_HEADER = [
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


def comparison_page(results: pd.DataFrame, params: ComparisonParams) -> str:
    """Return the page: accuracies, sweeps, curves, selections, notes and failures.

    Args:
        results: one row per cell, as `comparison.RESULT` has it.
        params: the comparison's title, variants, sweeps and panels.
    """
    means = means_over_seeds(results)
    of_grid, sweeps = split_sweeps(means, params)
    parts = [f"# {params.title}", _facts(results, means)]
    if len(of_grid):
        parts.append(_markdown(_accuracy_rows(of_grid)))
    for label, of_sweep in sweeps.items():
        parts += [f"## By {label}", _markdown(_sweep_rows(of_sweep))]
    for title, curves in curve_table(results, params).items():
        heading = f"## Accuracy by updates: {title}"
        parts += [heading, _CURVES_FACTS, _markdown(_curve_rows(curves))]
    selections = means[means["n_selected"] > 0]
    if len(selections):
        parts += ["## What was selected", _markdown(_selection_rows(selections))]
    notes = _notes(results)
    if notes:
        parts += ["## What to know of them", "\n".join(notes)]
    failures = _failures(results)
    if failures:
        again = "To try a cell again, delete its file in `comparison_cells`."
        parts += ["## What could not be computed", "\n".join(failures), again]
    return "\n\n".join(parts) + "\n"


def _facts(results: pd.DataFrame, means: pd.DataFrame) -> str:
    facts = [
        f"Test accuracy in percent, mean ± standard deviation over {seeds_text(means)}; "
        "columns: labeled images per class.",
        f"Every student got {one_or_range(results['n_updates'])} updates.",
    ]
    # Where every cell failed, no accuracy of the teacher is known.
    if results["teacher_accuracy"].notna().any():
        teacher_percent = 100 * results["teacher_accuracy"].max()
        n_test = int(results["n_test"].max())
        facts.append(f"Teacher: {teacher_percent:.2f}; {n_test:,} test images.")
    facts.append("**Bold**: the best of a column.")
    if means["is_reference"].any():
        facts.append("*Italic*: a reference, which uses the original images or the pool's truth.")
    return " ".join(facts)


def _accuracy_rows(means: pd.DataFrame) -> list[list[str]]:
    columns = sorted(means["labeled_per_class"].dropna().unique())
    n_seeds = means["n_seeds"].max()
    best = {column: rivals(means, column)["mean"].max() for column in columns}
    header = [f"{column:.0f}" for column in columns]
    rows = [["", *header]]
    for name, of_row in means.groupby("row", sort=False):
        is_reference = bool(of_row["is_reference"].iloc[0])
        cells = [_row_title(str(name), is_reference)]
        for column in columns:
            here = of_row[is_in_column(of_row, column)]
            text = _accuracy_text(here, n_seeds)
            # Exact: the best is one of these very numbers.
            is_best = len(here) and not is_reference and here["mean"].iloc[0] == best[column]
            if is_best:
                text = f"**{text}**"
            cells.append(text)
        rows.append(cells)
    return rows


def _sweep_rows(means: pd.DataFrame) -> list[list[str]]:
    places = sorted(means["at"].unique())
    n_seeds = means["n_seeds"].max()
    header = [f"{place:,g}" for place in places]
    rows = [["", *header]]
    for name, of_row in means.groupby("row", sort=False):
        cells = [_row_title(str(name), bool(of_row["is_reference"].all()))]
        cells += [_accuracy_text(of_row[of_row["at"] == place], n_seeds) for place in places]
        rows.append(cells)
    return rows


def _curve_rows(curves: pd.DataFrame) -> list[list[str]]:
    updates = sorted(curves["updates"].unique())
    header = [f"{update:,}" for update in updates]
    rows = [["", *header]]
    for name, of_row in curves.groupby("row", sort=False):
        known = of_row.set_index("updates")["watched"]
        cells = [str(name)]
        for update in updates:
            cells.append(_fixed(known.get(update, np.nan), 2))
        rows.append(cells)
    return rows


def _selection_rows(means: pd.DataFrame) -> list[list[str]]:
    rows = [_SELECTION_HEADER]
    for _, row in means.iterrows():
        rows.append(
            [
                row["row"],
                _fixed(row["labeled_per_class"], 0),
                f"{row['n_selected']:,.0f}",
                _fixed(row["auc"], 3),
                percent(row["precision"]),
                percent(row["recall"]),
                _fixed(row["class_prior"], 3),
                _fixed(row["pu_seconds"], 0),
                _fixed(row["seconds"], 0),
            ]
        )
    return rows


def _row_title(name: str, is_reference: bool) -> str:
    if is_reference:
        return f"*{name}*"
    return name


def _accuracy_text(rows: pd.DataFrame, n_seeds: int) -> str:
    """Return the accuracy of a cell of a table, with its deviation over the seeds.

    Args:
        rows: the one row of the cell, or none where it was not computed.
        n_seeds: the seeds of the comparison; a cell with fewer shows how many.
    """
    if not len(rows) or not rows.iloc[0]["n_seeds"]:
        return _UNKNOWN
    row = rows.iloc[0]
    text = f"{row['mean']:.2f}"
    if np.isfinite(row["std"]):
        text += f" ± {row['std']:.2f}"
    if row["n_seeds"] < n_seeds:
        text += f" ({row['n_seeds']:.0f})"
    return text


def _fixed(value: float, n_decimals: int) -> str:
    if np.isnan(value):
        return _UNKNOWN
    return f"{value:.{n_decimals}f}"


def _notes(results: pd.DataFrame) -> list[str]:
    """Return a line per variant and objective with notes: the note of its first such seed."""
    lines = []
    for (variant, objective), of_row in results.groupby(["variant", "objective"], sort=False):
        notes = of_row["note"].dropna()
        if len(notes):
            students = f"{len(notes)} of {len(of_row)} students"
            lines.append(f"- {variant}, {objective} ({students}): {notes.iloc[0]}")
    return lines


def _failures(results: pd.DataFrame) -> list[str]:
    """Return a line per cell that has no result, with the reason."""
    lines = []
    for _, row in results[results["failure"].notna()].iterrows():
        labeled = ""
        if not pd.isna(row["labeled_per_class"]):
            labeled = f", {row['labeled_per_class']:.0f} per class"
        cell = f"{row['variant']}, {row['objective']}{labeled}, seed {row['seed']}"
        lines.append(f"- {cell}: {row['failure']}")
    return lines


def _markdown(rows: list[list[str]]) -> str:
    """Return a table whose first row is the header; all columns but the first align right."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    n_numbers = len(rows[0]) - 1
    separator = "| --- |" + " ---: |" * n_numbers
    return "\n".join([lines[0], separator, *lines[1:]])
