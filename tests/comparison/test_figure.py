"""The plot of a comparison."""

from __future__ import annotations

import numpy as np
import pytest

from pu_kd_pipeline.comparison.figure import plot_comparison
from tests.comparison.builders import grid


def test_the_plot_shows_every_row_with_its_deviation(results):
    figure = plot_comparison(results, grid(title="MNIST"))
    [axes] = figure.axes
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "teacher",
        "original",
        "pu",
        "random",
    }
    errors = {
        container.get_label(): container.lines[0].get_ydata() for container in axes.containers
    }
    np.testing.assert_allclose(errors["pu"], [9, 4])
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # better to the top
    assert (
        figure._suptitle.get_text()
        == "pu is best at 5 per class with 96.00 %, 1.00 points before random"
    )
    one = plot_comparison(results[results["labeled_per_class"] != 5], grid(title="MNIST")).axes[0]
    assert [label.get_text() for label in one.get_yticklabels()] == ["original", "random", "pu"]


def test_a_long_title_takes_a_second_line_and_no_room_of_the_axes(results):
    short, long = (
        plot_comparison(results, grid(title=title))
        for title in ("MNIST", "Students of one teacher, " * 5)
    )
    heights = []
    for figure in (short, long):
        figure.draw_without_rendering()
        (axes,) = figure.axes
        heights.append(axes.get_window_extent().height)
        evidence = figure.texts[-1].get_window_extent()
        assert (
            axes.get_tightbbox().y1
            < evidence.y0
            < evidence.y1
            < figure._suptitle.get_window_extent().y0
        )
    assert (long.texts[-1].get_text().count("\n"), short.texts[-1].get_text().count("\n")) == (1, 0)
    assert "updates each" in long.texts[-1].get_text()
    assert heights[1] == pytest.approx(heights[0], rel=0.02)
