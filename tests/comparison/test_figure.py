"""The plot of a comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.comparison.figure import plot_comparison
from tests.comparison.builders import (
    curve_grid,
    curve_results,
    grid,
    sweep_grid,
    sweep_points,
    with_preferential,
)


def points_by_label(axes: Any) -> dict[str, np.ndarray]:
    """Return the (n, 2) points of each line with error bars."""
    return {bars.get_label(): bars.lines[0].get_xydata() for bars in axes.containers}


def legend_of(axes: Any) -> set[str]:
    return {text.get_text() for text in axes.get_legend().get_texts()}


def test_the_plot_shows_every_row_with_its_deviation(results):
    figure = plot_comparison(results, grid(title="MNIST"))
    [axes] = figure.axes
    assert legend_of(axes) == {"teacher", "original", "pu", "random"}
    errors = points_by_label(axes)["pu"][:, 1]
    np.testing.assert_allclose(errors, [9, 4])
    bottom, top = axes.get_ylim()
    assert bottom > top  # the axis holds errors, and better is up
    title = figure._suptitle.get_text()
    assert title == "pu is best at 5 per class with 96.00 %, 1.00 points before random"


def test_rows_of_one_number_of_labeled_images_are_listed_best_first(results):
    one = results[results["labeled_per_class"] != 5]
    [axes] = plot_comparison(one, grid(title="MNIST")).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["original", "random", "pu"]


def test_points_of_a_sweep_are_lines_over_their_axis(results):
    both = pd.concat([results, sweep_points()], ignore_index=True)
    rows, sweep = plot_comparison(both, sweep_grid()).axes
    assert legend_of(rows) == {"teacher", "original", "pu", "random"}
    line = points_by_label(sweep)["random · robust_kd"]
    np.testing.assert_allclose(line, [[10, 15], [100, 5]])
    assert sweep.get_xlabel() == "images"


def test_sweeps_alone_have_no_panel_of_the_grid():
    assert len(plot_comparison(sweep_points(), sweep_grid()).axes) == 1


def test_curves_are_panels_of_means():
    _, two, one = plot_comparison(curve_results(), curve_grid()).axes
    assert two.get_title(loc="left") == "Two"
    lines = {line.get_label(): line.get_xydata() for line in two.get_lines()}
    np.testing.assert_allclose(lines["pu"], [[50, 40], [100, 10]])
    assert {line.get_label() for line in one.get_lines()} == {"other"}


def test_cells_of_versions_without_curves_are_drawn_without_panels(results):
    assert len(plot_comparison(results, curve_grid()).axes) == 1


def test_a_row_without_labeled_images_may_be_the_best(results):
    more = with_preferential(results, accuracy=0.99)
    title = plot_comparison(more, grid(title="MNIST"))._suptitle.get_text()
    assert title == "preferential is best at 5 per class with 99.00 %, 3.00 points before pu"


def axes_height_and_evidence(figure: Any) -> tuple[float, str]:
    """Return the height of the axes in pixels and the text below the title; they do not overlap."""
    figure.draw_without_rendering()
    [axes] = figure.axes
    evidence = figure.texts[-1]
    title_box = figure._suptitle.get_window_extent()
    evidence_box = evidence.get_window_extent()
    assert axes.get_tightbbox().y1 < evidence_box.y0
    assert evidence_box.y1 < title_box.y0
    return axes.get_window_extent().height, evidence.get_text()


def test_a_long_title_takes_a_second_line_and_no_room_of_the_axes(results):
    short = plot_comparison(results, grid(title="MNIST"))
    long = plot_comparison(results, grid(title="Students of one teacher, " * 5))
    short_height, short_text = axes_height_and_evidence(short)
    long_height, long_text = axes_height_and_evidence(long)
    assert short_text.count("\n") == 0
    assert long_text.count("\n") == 1
    assert "updates each" in long_text
    assert long_height == pytest.approx(short_height, rel=0.02)
