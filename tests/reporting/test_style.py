"""Numbers as text, and the parts that all figures share."""

from __future__ import annotations

import numpy as np
import pytest

from pu_kd_pipeline.reporting.style import (
    darker,
    log_scale_when_wide,
    new_figure,
    percent,
    points,
    set_title,
    shorten,
)


@pytest.mark.parametrize(
    ("share", "text"), [(0.1234, "12.3 %"), (0.0, "0.0 %"), (None, "–"), (float("nan"), "–")]
)
def test_shares_are_written_in_percent(share: float | None, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("difference", "text"),
    [(-0.8, "−0.8 points"), (12.34, "+12.3 points"), (-0.04, "0.0 points"), (0, "0.0 points")],
)
def test_differences_are_written_with_their_sign(difference: float, text: str) -> None:
    assert points(difference) == text


def test_long_names_end_in_an_ellipsis() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abcde…"


def test_darker_keeps_the_hue() -> None:
    # 70 % of each channel, rounded down: 100 -> 70, 10 -> 7.
    assert darker("#640a00") == "#460700"


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1.0, 31.0], "log"),
        ([1.0, 30.0], "linear"),
        ([0.0, 31.0], "linear"),  # zero has no place on a logarithmic axis
        ([1.0, 31.0, np.nan], "log"),
        ([], "linear"),
    ],
)
def test_only_wide_ranges_of_positive_values_are_logarithmic(
    values: list[float], scale: str
) -> None:
    axes = new_figure(2.0).add_subplot()
    log_scale_when_wide(axes, np.array(values))
    assert axes.get_yscale() == scale


def test_a_second_line_of_the_title_makes_the_figure_higher() -> None:
    short = new_figure(2.0)
    set_title(short, "finding", "evidence")
    # A second line may not come out of the room for the axes.
    long = new_figure(2.0)
    set_title(long, "finding " * 15, "evidence")
    assert short.get_figheight() == 2.0
    assert long.get_figheight() > 2.0
