"""How the pages of a comparison write differences and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pu_kd_pipeline.reporting.style import UNKNOWN

# Of tables of differences to the row that leads.
EACH_ALONE = (
    "Each row is tested alone, and the row that leads was found on these very images: of many "
    "equally good rows, more than one in twenty is bold by chance."
)

if TYPE_CHECKING:
    from pu_kd_pipeline.comparison.differences import RowDifference


def difference_text(found: RowDifference | None) -> str:
    """Return a difference of accuracies in points with its interval, in bold if significant."""
    if found is None:
        return UNKNOWN
    accuracy = found.accuracy
    lower = signed(100 * accuracy.lower)
    upper = signed(100 * accuracy.upper)
    text = f"{signed(100 * accuracy.difference)} ({lower} to {upper})"
    if accuracy.is_significant:
        text = f"**{text}**"
    if found.n_seeds == 1:
        text += ", one seed"
    return text


def signed(points: float) -> str:
    """Return a difference with its sign, and zero without one."""
    if round(points, 2) == 0:
        return "0.00"
    return f"{points:+.2f}".replace("-", "−")


def markdown_table(rows: list[list[str]]) -> str:
    """Return a table whose first row is the header; all columns but the first align right."""
    lines = []
    for row in rows:
        cells = " | ".join(row)
        lines.append(f"| {cells} |")
    n_numbers = len(rows[0]) - 1
    separator = "| --- |" + " ---: |" * n_numbers
    lines.insert(1, separator)
    return "\n".join(lines)
