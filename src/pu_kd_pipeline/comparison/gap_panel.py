"""The gap closed, as a panel of the comparison's figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pu_kd_pipeline.comparison.looks import fill_color_of
from pu_kd_pipeline.reporting.style import INK, MUTED, shorten, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pu_kd_pipeline.comparison.gap import Gap, GapRow
    from pu_kd_pipeline.comparison.looks import Look

# Percent of the gap: what is further out is cut off, or one wide interval would hide all others.
_WIDEST = (-150.0, 250.0)
_MARGIN = 5.0
_NAME_CHARACTERS = 40


def shown_rows(gap: Gap) -> list[GapRow]:
    """Return the rows that have a share of the gap, the largest first."""
    with_share = [row for row in gap.rows if row.closed is not None]
    return sorted(with_share, key=_share, reverse=True)


def gap_panel_height(gap: Gap) -> float:
    """Return the height of the panel in inches."""
    return 1.3 + 0.27 * len(shown_rows(gap))


def draw_gap(axes: Axes, gap: Gap, looks: Mapping[str, Look], title: str) -> None:
    """Draw the share of the gap that each row closes, with its interval, the best on top.

    Args:
        axes: changed in place.
        gap: has rows to show.
        looks: colors and markers by row.
        title: of the panel.
    """
    rows = shown_rows(gap)
    # Random images and the goal.
    for end in (0, 100):
        axes.axvline(end, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    for place, row in enumerate(rows):
        _draw_row(axes, row, place, looks[row.name])
    names = [shorten(row.name, _NAME_CHARACTERS) for row in rows]
    axes.set_yticks(range(len(rows)), names, color=INK)
    # From the last row to the first: the largest share is on top.
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(*_limits(rows))
    label = f"gap closed (%), with 95 % interval; 0: random images, 100: {gap.goal}"
    style_axes(axes, label, "", grid="x")
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, loc="left", fontsize=10, color=INK)


def _draw_row(axes: Axes, row: GapRow, place: int, look: Look) -> None:
    lower, upper = _bounds(row)
    percent = 100 * _share(row)
    to_lower = percent - lower
    to_upper = upper - percent
    axes.errorbar(
        [percent],
        [place],
        xerr=[[to_lower], [to_upper]],
        fmt=look.marker,
        markersize=6,
        color=look.color,
        markerfacecolor=fill_color_of(look.color, look.is_reference),
        elinewidth=1.2,
        capsize=2.5,
    )


def _limits(rows: list[GapRow]) -> tuple[float, float]:
    """Return the ends of the axis, which always has both ends of the gap."""
    lowest = 0.0
    highest = 100.0
    for row in rows:
        lower, upper = _bounds(row)
        lowest = min(lowest, lower)
        highest = max(highest, upper)
    widest_low, widest_high = _WIDEST
    low = max(lowest, widest_low) - _MARGIN
    high = min(highest, widest_high) + _MARGIN
    return low, high


def _share(row: GapRow) -> float:
    assert row.closed is not None
    return row.closed.share


def _bounds(row: GapRow) -> tuple[float, float]:
    """Return the interval in percent."""
    assert row.closed is not None
    return 100 * row.closed.lower, 100 * row.closed.upper
