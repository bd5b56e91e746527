"""The tables of a comparison, and its page of Markdown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.comparison.figure import plot_comparison
from pu_kd_pipeline.comparison.page import comparison_page
from pu_kd_pipeline.comparison.tables import means_over_seeds
from tests.comparison.builders import grid, results_of


def test_the_page_has_mean_and_deviation_over_seeds_and_marks_the_best(results):
    page = comparison_page(results, grid(title="MNIST"))
    assert page.startswith(
        "# MNIST\n\nTest accuracy in percent, mean ± standard deviation over 2 seeds"
    )
    assert "|  | 1 | 5 |" in page
    assert "| *original* | 98.50 ± 0.00 | 98.50 ± 0.00 |" in page
    assert "| pu | 91.00 ± 1.41 | **96.00 ± 0.00** |" in page
    assert "| random | **94.00 ± 1.41** | 95.00 (1) |" in page
    assert "| pu | 1 | 700 | 0.900 | – | – | – | – | – |" in page
    means = means_over_seeds(results).set_index(["row", "labeled_per_class"])
    assert means.loc[("pu", 1.0), "std"] == pytest.approx(100 * np.std([0.90, 0.92], ddof=1))


def test_points_of_a_sweep_are_lines_over_their_axis_and_no_rows(results):
    points = results_of(
        variant=["small", "large", "small", "large", "top"], method=["selection"] * 5,
        rule=["random"] * 4 + ["nnpu"], objective=["kd", "kd", "robust_kd", "robust_kd", "kd"],
        labeled_per_class=[1] * 5, seed=[0] * 5, accuracy=[0.8, 0.9, 0.85, 0.95, 0.7],
        n_selected=[10, 100, 10, 100, 10],
    )  # fmt: skip

    def variant(line: str, at: int) -> dict[str, Any]:
        return {
            "rule": "random",
            "budget": at,
            "labeled_per_class": [1],
            "sweep": {"name": "size", "line": line, "at": at},
        }

    params = grid(
        title="Sizes", labeled_per_class=[1, 5], sweeps={"size": "images", "unused": "nothing"},
        variants={"small": variant("random", 10), "large": variant("random", 100), "top": variant("nnpu", 10)},
    )  # fmt: skip
    both = pd.concat([results, points], ignore_index=True)
    page = comparison_page(both, params)
    assert "## By images\n\n|  | 10 | 100 |\n" in page
    assert "| random · kd | 80.00 | 90.00 |\n| random · robust_kd | 85.00 | 95.00 |\n" in page
    assert "| nnpu | 70.00 | – |" in page
    assert "| small |" not in page.split("##")[0]
    assert "nothing" not in page
    rows, sweep = plot_comparison(both, params).axes
    assert {text.get_text() for text in rows.get_legend().get_texts()} == {
        "teacher",
        "original",
        "pu",
        "random",
    }
    lines = {
        container.get_label(): container.lines[0].get_xydata() for container in sweep.containers
    }
    np.testing.assert_allclose(lines["random · robust_kd"], [[10, 15], [100, 5]])
    assert sweep.get_xlabel() == "images"
    assert len(plot_comparison(points, params).axes) == 1  # sweeps alone


def test_curves_are_panels_and_tables_of_means(results):
    updates, shares = (
        [[50, 100]] * 2 + [None] + [[50, 100]] * 3,
        [[0.5, 0.9], [0.7, 0.9], None] + [[0.6, 0.8]] * 3,
    )
    with_curves = results_of(
        variant=["pu", "pu", "pu", "random", "random", "other"], method=["selection"] * 6, rule=["nnpu"] * 6,
        labeled_per_class=[1] * 6, seed=[0, 1, 2, 0, 1, 0], accuracy=[0.9, 0.9, None, 0.8, 0.8, 0.7],
        curve_updates=updates, curve_accuracy=shares, note=[None, "it won", "it won again", None, None, None],
    )  # fmt: skip
    variants = {name: {"rule": "random", "budget": 10} for name in ("pu", "random", "other")}
    params = grid(
        title="Curves", labeled_per_class=[1], variants={**variants, "left_out": None},
        curves={"n_images": 10, "panels": {"Two": ["pu", "random", "left_out"], "One": ["other"], "No": ["left_out"]}},
    )  # fmt: skip
    page = comparison_page(with_curves, params)
    assert "## Accuracy by updates: Two\n\nIn percent, of training images of the teacher" in page
    assert (
        "|  | 50 | 100 |\n| --- | ---: | ---: |\n| pu | 60.00 | 90.00 |\n| random | 60.00 | 80.00 |\n"
        in page
    )
    assert "## What to know of them\n\n- pu, kd (2 of 3 students): it won\n" in page
    _, two, one = plot_comparison(with_curves, params).axes
    assert two.get_title(loc="left") == "Two"
    lines = {line.get_label(): line.get_xydata() for line in two.get_lines()}
    np.testing.assert_allclose(lines["pu"], [[50, 40], [100, 10]])
    assert {line.get_label() for line in one.get_lines()} == {"other"}
    assert (
        len(plot_comparison(results, params).axes) == 1
    )  # cells that were computed before there were curves


def test_a_row_without_labeled_images_competes_in_every_column(results):
    results = pd.concat(
        [results, results_of(variant=["preferential"], method=["preferential"], rule=[None], labeled_per_class=[None],
                             seed=[0], accuracy=[0.955], n_selected=[700])],
        ignore_index=True,
    )  # fmt: skip
    page = comparison_page(results, grid(title="MNIST"))
    assert "| preferential | **95.50 (1)** | 95.50 (1) |" in page
    assert "| pu | 91.00 ± 1.41 | **96.00 ± 0.00** |" in page
    assert "| preferential | – | 700 |" in page
    results.loc[results["variant"] == "preferential", "accuracy"] = 0.99
    title = plot_comparison(results, grid(title="MNIST"))._suptitle.get_text()
    assert title == "preferential is best at 5 per class with 99.00 %, 3.00 points before pu"


def test_several_objectives_are_rows_of_their_own(results):
    results["objective"] = ["kd"] * 2 + ["kd", "kd", "robust_kd", "robust_kd"] + ["kd"] * 3
    assert list(means_over_seeds(results)["row"].unique()) == [
        "original",
        "pu · kd",
        "pu · robust_kd",
        "random",
    ]
