"""Numbers as text, and the parts that all figures share."""

from __future__ import annotations

import io

import numpy as np
import pytest

from pu_kd_pipeline.masking import visible
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


ODD_NAMES = (
    "$x$",
    "a $b",
    r"\$5 and \frac{1",
    "$\\alpha_{",
    "50 % of $10^{6}$",
    "^_{}~#&",
    "$" * 7,
    "\x1b[31mred",
    "a\x00b",
    "\udcff",
    "a\nb",
    "long " * 200,
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_drawn_as_they_are(name: str) -> None:
    figure = new_figure(3.0)
    axes = figure.add_subplot()
    axes.plot([0, 1], [1, 1000], label=name)
    axes.set_yscale("log")
    axes.set_xticks([0, 1], [shorten(name), "b"])
    axes.set_xlabel(name)
    axes.annotate(name, (0, 1))
    axes.legend(title=name)
    set_title(figure, name, name)
    figure.savefig(io.BytesIO())
    shown = visible(name)
    label = axes.get_xticklabels()[0]
    assert label.get_text() == shorten(name)
    assert not label.get_parse_math()
    drawn = [axes.xaxis.label, *axes.texts]
    for text in [*drawn, *axes.get_legend().get_texts(), axes.get_legend().get_title()]:
        assert text.get_text() == shown
        assert text._preprocess_math(shown) == (shown, False)
    # Powers of ten are still written as such.
    assert axes.get_yticklabels()[0].get_parse_math()


def test_a_short_name_is_one_line() -> None:
    assert shorten("a\nb\tc") == "a b c"
