"""How every figure looks: colors, titles, axes, numbers."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


TEACHER, STUDENT, RANDOM = "#3d3d3d", "#0072b2", "#e69f00"
RELEVANT, UNLABELED, ALERT = "#009e73", "#b4b4b4", "#d55e00"
DARK_ALERT = "#a84300"  # the same as small text on white
INK, MUTED, GRID = "#222222", "#666666", "#e6e6e6"
WIDTH_IN, HEADER_IN = 8.4, 0.52
MAX_NAMED_CLASSES = (
    40  # more rows than this cannot be read: the figure then shows the sorted distribution
)


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in [0, 1] as text in percent; a dash where it is unknown."""
    return "–" if share is None or not np.isfinite(share) else f"{100 * share:.{digits}f} %"


def points(difference: float) -> str:
    """Return a difference of two percentages as text with its sign, such as "−0.8 points"; none is "0.0 points"."""
    rounded = round(float(difference), 1)
    return (
        "0.0 points" if rounded == 0 else f"{'+' if rounded > 0 else '−'}{abs(rounded):.1f} points"
    )


def new_figure(height_in: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), facecolor="white", layout=layout)
    if engine := figure.get_layout_engine():
        engine.set(w_pad=0.1, h_pad=0.08, wspace=0.03)  # type: ignore[call-arg]
        _keep_room(figure, HEADER_IN)
    return figure


def _keep_room(figure: Figure, header_in: float) -> None:
    """Have the layout leave so many inches at the top to `set_title`."""
    figure.get_layout_engine().set(rect=(0.0, 0.0, 1.0, 1 - header_in / figure.get_figheight()))  # type: ignore[call-arg, union-attr]


def style_axes(axes: Axes, x_label: str, y_label: str, grid: str = "y") -> None:
    """Label the axes and take away what carries no data: two spines, dark ticks, the grid across the values."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9, color=MUTED)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, fontsize=9.5, color=INK)
    axes.set_ylabel(y_label, fontsize=9.5, color=INK)


def set_title(figure: Figure, finding: str, evidence: str) -> None:
    """Write the finding in bold and the evidence below it, both from the left edge, into the room kept for them.

    What needs a second line makes the figure higher by it; one without a layout has a line for each.
    """
    most_lines = 1 if figure.get_layout_engine() is None else 2
    findings = textwrap.wrap(finding, 84, max_lines=most_lines, placeholder="…")
    evidences = textwrap.wrap(evidence, 112, max_lines=most_lines, placeholder="…")
    extra_in = 0.19 * (len(findings) - 1) + 0.17 * max(len(evidences) - 1, 0)
    if extra_in:
        figure.set_figheight(figure.get_figheight() + extra_in)
        _keep_room(figure, HEADER_IN + extra_in)
    top, left = 1 / figure.get_figheight(), 0.1 / WIDTH_IN
    title = figure.suptitle(
        "\n".join(findings),
        x=left,
        y=1 - 0.1 * top,
        ha="left",
        va="top",
        fontsize=12,
        weight="bold",
    )
    title.set(color=INK, in_layout=False)
    below = 1 - (0.34 + 0.19 * (len(findings) - 1)) * top
    detail = figure.text(
        left, below, "\n".join(evidences), ha="left", va="top", fontsize=9.5, color=MUTED
    )
    detail.set_in_layout(False)


def shorten(name: str, n_characters: int = 22) -> str:
    return name if len(name) <= n_characters else name[: n_characters - 1] + "…"


def darker(color: str) -> str:
    """Return the color at 70 % of its brightness, readable as text on white."""
    return "#" + "".join(
        f"{int(int(color[start : start + 2], 16) * 0.7):02x}" for start in (1, 3, 5)
    )


def log_scale_when_wide(axes: Axes, values: np.ndarray) -> None:
    positive = values[np.isfinite(values) & (values > 0)]
    if (
        len(positive)
        and (values[np.isfinite(values)] > 0).all()
        and positive.max() > 30 * positive.min()
    ):
        axes.set_yscale("log")
