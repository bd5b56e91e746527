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
    points = {}
    for bars in axes.containers:
        # The first line has the points, the others are caps.
        line = bars.lines[0]
        points[bars.get_label()] = line.get_xydata()
    return points


def legend_of(axes: Any) -> set[str]:
    texts = axes.get_legend().get_texts()
    return {text.get_text() for text in texts}


def title_of(figure: Any) -> str:
    return figure._suptitle.get_text()


def test_the_plot_shows_every_row_with_its_deviation(results):
    figure = plot_comparison(results, grid(title="MNIST"))
    [axes] = figure.axes
    assert legend_of(axes) == {"teacher", "original", "pu", "random"}

    # Means over both seeds, in percent.
    points = points_by_label(axes)["pu"]
    errors = points[:, 1]
    np.testing.assert_allclose(errors, [9, 4])
    # The axis holds errors, and better is up.
    bottom, top = axes.get_ylim()
    assert bottom > top


def test_the_title_names_the_best_row_and_its_lead(results):
    figure = plot_comparison(results, grid(title="MNIST"))
    expected = "pu leads at 5 per class with 96.00 %, 1.00 points before random (not tested)"
    assert title_of(figure) == expected


def test_rows_of_one_number_of_labeled_images_are_listed_best_first(results):
    # With one number of labeled images there is nothing to draw a line over.
    is_kept = results["labeled_per_class"] != 5
    figure = plot_comparison(results[is_kept], grid(title="MNIST"))
    [axes] = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["original", "random", "pu"]


def test_points_of_a_sweep_are_lines_over_their_axis(results):
    both = pd.concat([results, sweep_points()], ignore_index=True)
    figure = plot_comparison(both, sweep_grid())
    rows, sweep = figure.axes
    # The points of the sweep are no rows of the grid.
    names = legend_of(rows)
    assert names == {"teacher", "original", "pu", "random"}
    lines = points_by_label(sweep)
    line = lines["random · robust_kd"]
    np.testing.assert_allclose(line, [[10, 15], [100, 5]])
    assert sweep.get_xlabel() == "images"


def test_sweeps_alone_have_no_panel_of_the_grid():
    figure = plot_comparison(sweep_points(), sweep_grid())
    assert len(figure.axes) == 1


def test_curves_are_panels_of_means():
    figure = plot_comparison(curve_results(), curve_grid())
    _, two, one = figure.axes
    assert two.get_title(loc="left") == "Two"

    curves = {line.get_label(): line for line in two.get_lines()}
    pu_curve = curves["pu"]
    points = pu_curve.get_xydata()
    # The means of two seeds: the third failed and must not count as zero.
    expected = [[50, 40], [100, 10]]
    np.testing.assert_allclose(points, expected)

    labels_of_one = {line.get_label() for line in one.get_lines()}
    assert labels_of_one == {"other"}


def test_cells_of_versions_without_curves_are_drawn_without_panels(results):
    figure = plot_comparison(results, curve_grid())
    assert len(figure.axes) == 1


def test_a_row_without_labeled_images_may_be_the_best(results):
    more = with_preferential(results, accuracy=0.99)
    figure = plot_comparison(more, grid(title="MNIST"))
    # It is compared at the largest number of labeled images of the others.
    expected = "preferential leads at 5 per class with 99.00 %, 3.00 points before pu (not tested)"
    assert title_of(figure) == expected


def axes_height_and_evidence(figure: Any) -> tuple[float, str]:
    """Return the height of the axes in pixels and the text below the title; they do not overlap."""
    # Extents are known once the layout has been computed.
    figure.draw_without_rendering()
    [axes] = figure.axes
    evidence = figure.texts[-1]
    title_box = figure._suptitle.get_window_extent()
    evidence_box = evidence.get_window_extent()
    axes_box = axes.get_tightbbox()
    assert axes_box.y1 < evidence_box.y0
    assert evidence_box.y1 < title_box.y0

    plot_area = axes.get_window_extent()
    return plot_area.height, evidence.get_text()


def test_a_long_title_takes_a_second_line_and_no_room_of_the_axes(results):
    long_title = "Students of one teacher, " * 5
    short = plot_comparison(results, grid(title="MNIST"))
    long = plot_comparison(results, grid(title=long_title))

    short_height, short_text = axes_height_and_evidence(short)
    long_height, long_text = axes_height_and_evidence(long)
    n_breaks_of_short = short_text.count("\n")
    n_breaks_of_long = long_text.count("\n")
    assert n_breaks_of_short == 0
    assert n_breaks_of_long == 1
    # The end of the evidence is still there.
    assert "updates each" in long_text
    assert long_height == pytest.approx(short_height, rel=0.02)
