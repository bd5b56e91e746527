"""The style shared by all figures: colors, titles, axes, and numbers as text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Literal

import numpy as np

from pu_kd_pipeline.masking import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Colors by role. Those of Okabe and Ito stay distinct for readers with color blindness.
TEACHER = "#3d3d3d"
STUDENT = "#0072b2"
RANDOM = "#e69f00"
RELEVANT = "#009e73"
UNLABELED = "#b4b4b4"
ALERT = "#d55e00"
DARK_ALERT = "#a84300"  # ALERT has too little contrast for small text on white
INK = "#222222"
MUTED = "#666666"
GRID = "#e6e6e6"

WIDTH_IN = 8.4
HEADER_IN = 0.52  # one line of finding and one of evidence
MAX_NAMED_CLASSES = 40  # more rows cannot be read: figures then show the sorted distribution

_FINDING_CHARACTERS = 84  # that fit into the width at 12 points in bold
_EVIDENCE_CHARACTERS = 112  # at 9.5 points
_FINDING_LINE_IN = 0.19
_EVIDENCE_LINE_IN = 0.17


UNKNOWN = "–"  # stands for a number that is not known, in every table


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in [0, 1] as text in percent, and a dash for None, NaN and infinity."""
    if share is None or not np.isfinite(share):
        return UNKNOWN
    return f"{100 * share:.{digits}f} %"


def points(difference: float) -> str:
    """Return a difference of two percentages as text with its sign, such as "−0.8 points".

    A difference that rounds to zero is "0.0 points", without a sign.
    """
    rounded = round(float(difference), 1)
    if rounded == 0:
        return "0.0 points"
    if rounded > 0:
        return f"+{rounded:.1f} points"
    return f"−{abs(rounded):.1f} points"


def new_figure(height_in: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Return an empty figure of the common width, with room for `set_title` if it has a layout."""
    # No pyplot, which keeps every figure in a global list, and chooses a display.
    from pu_kd_pipeline.reporting.text_figure import TextFigure

    figure = TextFigure(figsize=(WIDTH_IN, height_in), facecolor="white", layout=layout)
    engine = figure.get_layout_engine()
    if engine:
        engine.set(w_pad=0.1, h_pad=0.08, wspace=0.03)  # type: ignore[call-arg]
        _reserve_header(figure, HEADER_IN)
    return figure


def _reserve_header(figure: Figure, header_in: float) -> None:
    """Make the layout leave that many inches free at the top, for the text of `set_title`."""
    share_of_axes = 1 - header_in / figure.get_figheight()
    figure.get_layout_engine().set(rect=(0.0, 0.0, 1.0, share_of_axes))  # type: ignore[call-arg, union-attr]


def style_axes(axes: Axes, x_label: str, y_label: str, grid: str = "y") -> None:
    """Label the axes and remove what carries no data.

    Args:
        axes: changed in place.
        x_label: text below; "" for none.
        y_label: text on the left; "" for none.
        grid: the axis whose values get grid lines, "x" or "y".
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9, color=MUTED)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, fontsize=9.5, color=INK)
    axes.set_ylabel(y_label, fontsize=9.5, color=INK)


def set_title(figure: Figure, finding: str, evidence: str) -> None:
    """Write the finding in bold and the evidence below it, left-aligned, above the axes.

    A figure with a layout grows by the height of each second line, so that its axes keep their
    size. One without a layout has a fixed height, and each text is cut to one line.
    """
    has_layout = figure.get_layout_engine() is not None
    max_lines = 2 if has_layout else 1
    finding_lines = textwrap.wrap(
        finding, _FINDING_CHARACTERS, max_lines=max_lines, placeholder="…"
    )
    evidence_lines = textwrap.wrap(
        evidence, _EVIDENCE_CHARACTERS, max_lines=max_lines, placeholder="…"
    )
    extra_finding_in = _FINDING_LINE_IN * (len(finding_lines) - 1)
    # No line of evidence leaves the header at its usual height.
    extra_in = extra_finding_in + _EVIDENCE_LINE_IN * max(len(evidence_lines) - 1, 0)
    if extra_in:
        figure.set_figheight(figure.get_figheight() + extra_in)
        _reserve_header(figure, HEADER_IN + extra_in)

    inch = 1 / figure.get_figheight()  # matplotlib places text in shares of the figure
    left = 0.1 / WIDTH_IN
    title = figure.suptitle(
        "\n".join(finding_lines),
        x=left,
        y=1 - 0.1 * inch,
        ha="left",
        va="top",
        fontsize=12,
        weight="bold",
    )
    # The header is reserved already: a layout that also counts the text would leave twice the room.
    title.set(color=INK, in_layout=False)
    detail = figure.text(
        left,
        1 - (0.34 + extra_finding_in) * inch,
        "\n".join(evidence_lines),
        ha="left",
        va="top",
        fontsize=9.5,
        color=MUTED,
    )
    detail.set_in_layout(False)


def shorten(name: str, n_characters: int = 22) -> str:
    """Return the name on one line, cut to that many characters with an ellipsis if it is longer."""
    # Visible here already: what is a label of an axis is written when the figure is drawn.
    name = visible(" ".join(name.split()))
    if len(name) <= n_characters:
        return name
    return name[: n_characters - 1] + "…"


def darker(color: str) -> str:
    """Return "#rrggbb" at 70 % of its brightness, which is readable as text on white."""
    darkened = "#"
    for start in (1, 3, 5):
        channel = int(color[start : start + 2], 16)
        darkened += f"{int(channel * 0.7):02x}"
    return darkened


def log_scale_when_wide(axes: Axes, values: np.ndarray) -> None:
    """Make the y axis logarithmic where its values are positive and span a factor over 30."""
    finite = values[np.isfinite(values)]
    if not len(finite) or not (finite > 0).all():
        return
    if finite.max() > 30 * finite.min():
        axes.set_yscale("log")
