"""How the lines of a comparison's figure look: their colors and markers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from pu_kd_pipeline.reporting.style import (
    ALERT,
    INK,
    RANDOM,
    RELEVANT,
    STUDENT,
    TEACHER,
)

# Fixed, so that a rule or method has the same color in every comparison. `role_colors` gives a free
# one to those that are not listed.
_COLORS = {
    "nnpu": STUDENT,
    "random": RANDOM,
    "oracle": RELEVANT,
    "original": TEACHER,
    "confident": "#cc79a7",
    "disagreement": "#6a3d9a",
    "mixture": "#1b2a80",
    "retrieved": "#c2185b",
    "rolling": "#00a6a6",
    "all": "#56b4e9",
    "fitnet": ALERT,
    "fskd": "#8c5a2b",
    "labeled_only": "#9a9a9a",
}
_OTHER_COLORS = ("#b5a800", "#5f0f40", "#2f6f6f", "#7f9c3b")
_SWEEP_COLORS = (STUDENT, RANDOM, RELEVANT, ALERT, *_OTHER_COLORS)
# Curves cross each other, so that neighbors in this list differ more than those of the lines.
CURVE_COLORS = (STUDENT, RANDOM, RELEVANT, ALERT, "#6a3d9a", "#56b4e9", "#cc79a7", INK)

_MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class Look:
    """The color and marker of a row."""

    color: str
    marker: str
    is_reference: bool


def role_colors(roles: Iterable[str]) -> dict[str, str]:
    """Return the color of each rule or method.

    Those without a color of their own take a free one each, in the order given, so that a new rule
    or method needs no entry here. Free colors repeat after the fourth.
    """
    free = itertools.cycle(_OTHER_COLORS)
    colors = {}
    for role in roles:
        if role in _COLORS:
            colors[role] = _COLORS[role]
        else:
            colors[role] = next(free)
    return colors


def looks_by_row(means: pd.DataFrame) -> dict[str, Look]:
    """Return the look of each row: the color of its role, and a marker that no other of it has."""
    looks: dict[str, Look] = {}
    roles = means["role"].unique()
    colors = role_colors(roles)
    n_of_color: Counter[str] = Counter()
    distinct_rows = means.drop_duplicates("row")
    for _, row in distinct_rows.iterrows():
        name = row["row"]
        color = colors[row["role"]]
        # Roles beyond the free colors share them, so that colors are counted and not roles.
        marker = marker_of(n_of_color[color])
        n_of_color[color] += 1
        is_reference = bool(row["is_reference"])
        looks[name] = Look(color, marker, is_reference)
    return looks


def marker_of(number: int) -> str:
    """Return one of the markers, which repeat after the last."""
    position = number % len(_MARKERS)
    return _MARKERS[position]


def fill_color_of(color: str, is_reference: bool) -> str:
    """Return the color inside a marker: references are hollow."""
    if is_reference:
        return "white"
    return color


def sweep_colors(means: pd.DataFrame) -> dict[str, str]:
    """Return the color of each line: of its role, if no other line has the same role."""
    lines = means.groupby("line", sort=False)
    roles = lines["role"].first()
    cycled_colors = itertools.cycle(_SWEEP_COLORS)
    colors = dict(zip(roles.index, cycled_colors, strict=False))
    if roles.is_unique:
        for line, role in roles.items():
            if role in _COLORS:
                colors[line] = _COLORS[role]
    return colors
