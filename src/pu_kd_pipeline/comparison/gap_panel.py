"""The gap closed, as a panel of the comparison's figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

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
    shares = np.array([100 * _share(row) for row in rows])
    bounds = np.array([_bounds(row) for row in rows])
    for end in (0, 100):
        axes.axvline(end, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    for place, row in enumerate(rows):
        look = looks[row.name]
        lower, upper = bounds[place]
        share = shares[place]
        axes.errorbar(
            [share],
            [place],
            xerr=[[share - lower], [upper - share]],
            fmt=look.marker,
            markersize=6,
            color=look.color,
            markerfacecolor=fill_color_of(look.color, look.is_reference),
            elinewidth=1.2,
            capsize=2.5,
        )
    names = [shorten(row.name, _NAME_CHARACTERS) for row in rows]
    axes.set_yticks(range(len(rows)), names, color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    lowest = max(min(bounds[:, 0].min(), 0.0), _WIDEST[0])
    highest = min(max(bounds[:, 1].max(), 100.0), _WIDEST[1])
    axes.set_xlim(lowest - _MARGIN, highest + _MARGIN)
    label = f"gap closed (%), with 95 % interval; 0: random images, 100: {gap.goal}"
    style_axes(axes, label, "", grid="x")
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, loc="left", fontsize=10, color=INK)


def _share(row: GapRow) -> float:
    assert row.closed is not None
    return row.closed.share


def _bounds(row: GapRow) -> tuple[float, float]:
    assert row.closed is not None
    return 100 * row.closed.lower, 100 * row.closed.upper
