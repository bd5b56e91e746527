"""The page of Markdown that a comparison writes."""

from __future__ import annotations

import pandas as pd

from pu_kd_pipeline.comparison.page import comparison_page
from tests.comparison.builders import (
    curve_grid,
    curve_results,
    grid,
    sweep_grid,
    sweep_points,
    with_preferential,
)


def test_the_page_has_mean_and_deviation_over_seeds_and_marks_the_best(results):
    page = comparison_page(results, grid(title="MNIST"))
    start = "# MNIST\n\nTest accuracy in percent, mean ± standard deviation over 2 seeds"
    assert page.startswith(start)
    assert "|  | 1 | 5 |" in page
    # A reference is never the best.
    assert "| *original* | 98.50 ± 0.00 | 98.50 ± 0.00 |" in page
    assert "| pu | 91.00 ± 1.41 | **96.00 ± 0.00** |" in page
    assert "| random | **94.00 ± 1.41** | 95.00 (1) |" in page
    assert "| pu | 1 | 700 | 0.900 | – | – | – | – | – |" in page


def test_points_of_a_sweep_are_a_table_of_their_own(results):
    both = pd.concat([results, sweep_points()], ignore_index=True)
    page = comparison_page(both, sweep_grid())
    assert "## By images\n\n|  | 10 | 100 |\n" in page
    assert "| random · kd | 80.00 | 90.00 |\n| random · robust_kd | 85.00 | 95.00 |\n" in page
    assert "| nnpu | 70.00 | – |" in page
    grid_table = page.split("##")[0]
    assert "| small |" not in grid_table
    assert "nothing" not in page  # the sweep without a point


def test_curves_are_tables_of_means_and_notes_are_listed():
    page = comparison_page(curve_results(), curve_grid())
    assert "## Accuracy by updates: Two\n\nIn percent, of training images of the teacher" in page
    table = "|  | 50 | 100 |\n| --- | ---: | ---: |\n| pu | 60.00 | 90.00 |\n"
    assert table + "| random | 60.00 | 80.00 |\n" in page
    assert "## Notes\n\n- pu, kd (2 of 3 students): it won\n" in page


def test_a_row_without_labeled_images_competes_in_every_column(results):
    page = comparison_page(with_preferential(results, accuracy=0.955), grid(title="MNIST"))
    assert "| preferential | **95.50 (1)** | 95.50 (1) |" in page
    assert "| pu | 91.00 ± 1.41 | **96.00 ± 0.00** |" in page
    assert "| preferential | – | 700 |" in page
