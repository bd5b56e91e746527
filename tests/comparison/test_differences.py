"""Whether the rows of a comparison differ by more than chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.comparison.differences import RowDifference, best_row, differences_to_best
from pu_kd_pipeline.comparison.figure import plot_comparison
from pu_kd_pipeline.comparison.page import comparison_page
from pu_kd_pipeline.comparison.tables import means_over_seeds
from pu_kd_pipeline.learning.paired import paired_difference, paired_mean_difference
from tests.comparison.builders import grid, results_of

N_TEST = 500
# Easy images first: all students are right on these, and only few images tell them apart.
BASE = np.arange(N_TEST) < 460
BETTER = np.arange(N_TEST) < 480
EQUAL = np.where(np.arange(N_TEST) == 459, False, BASE) | (np.arange(N_TEST) == 470)


def results(correct: dict[str, list[Any]], **changes: Any) -> pd.DataFrame:
    """Return the results of variants: for each seed, which test images its student gets right."""
    rows = []
    for variant, of_seeds in correct.items():
        for seed, is_correct in enumerate(of_seeds):
            accuracy = np.mean(is_correct) if is_correct is not None else 0.9
            answers = None if is_correct is None else list(map(bool, is_correct))
            rows.append((variant, seed, accuracy, answers))
    columns: dict[str, Any] = {
        "variant": [row[0] for row in rows],
        "method": ["selection"] * len(rows),
        "rule": ["nnpu"] * len(rows),
        "labeled_per_class": [5] * len(rows),
        "seed": [row[1] for row in rows],
        "accuracy": [row[2] for row in rows],
        "is_correct": [row[3] for row in rows],
        "test_images": ["t"] * len(rows),
        "n_selected": [10] * len(rows),
    }
    return results_of(**{**columns, **changes})


def found_in(table: pd.DataFrame) -> dict[str, Any]:
    return differences_to_best(table, means_over_seeds(table), 5)


def test_rows_of_one_seed_are_tested_exactly() -> None:
    found = found_in(results({"best": [BETTER], "other": [BASE]}))
    assert found == {"other": RowDifference(paired_difference(BASE, BETTER), 1)}
    assert found["other"].accuracy.is_significant


def test_rows_of_several_seeds_are_tested_over_images_and_seeds() -> None:
    flipped = np.roll(BETTER, 3)
    found = found_in(results({"best": [BETTER, BETTER], "other": [BASE, flipped]}))
    expected = paired_mean_difference(np.stack([BASE, flipped]), np.stack([BETTER, BETTER]))
    assert found == {"other": RowDifference(expected, 2)}


def test_only_students_of_the_same_seed_and_test_images_are_paired() -> None:
    # The other row lacks a seed, and its second student saw other test images.
    table = results({"best": [BETTER] * 3, "other": [BASE, BASE]})
    table.loc[(table["variant"] == "other") & (table["seed"] == 1), "test_images"] = "u"
    assert found_in(table) == {"other": RowDifference(paired_difference(BASE, BETTER), 1)}
    table.loc[table["variant"] == "other", "test_images"] = "u"
    assert found_in(table) == {"other": None}


def test_results_of_earlier_versions_are_reported_as_not_tested() -> None:
    table = results({"best": [None], "other": [None]}, accuracy=[0.96, 0.92])
    assert found_in(table) == {"other": None}
    page = comparison_page(table, grid(title="MNIST"))
    assert "Whether chance explains a difference is not known" in page
    figure = plot_comparison(table, grid(title="MNIST"))
    assert figure._suptitle.get_text().endswith("points before other (not tested)")


def test_a_column_without_results_has_no_best_row() -> None:
    table = results({"best": [None]}, accuracy=[None])
    means = means_over_seeds(table)
    assert best_row(table, means, 5) is None
    assert differences_to_best(table, means, 5) == {}


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        (BASE, "(chance in the test images does not explain it; one seed)"),
        (EQUAL, "(chance can explain it)"),
    ],
)
def test_the_title_says_whether_chance_explains_the_lead(other: np.ndarray, verdict: str) -> None:
    best = BETTER if other is BASE else BASE | (np.arange(N_TEST) == 465)
    figure = plot_comparison(results({"best": [best], "other": [other]}), grid(title="MNIST"))
    # A long finding is wrapped.
    assert figure._suptitle.get_text().replace("\n", " ").endswith(verdict)


def test_the_page_lists_the_differences_to_the_best_row() -> None:
    table = results({"best": [BETTER], "clear": [BASE], "close": [BETTER & (np.arange(500) != 7)]})
    page = comparison_page(table, grid(title="MNIST"))
    assert "## How certain the order is" in page
    clear = paired_difference(BASE, BETTER)
    interval = f"({100 * clear.lower:+.2f} to {100 * clear.upper:+.2f})".replace("-", "−")
    assert f"| clear | **−4.00 {interval}**, one seed |" in page
    assert "other seeds may turn the order around" in page
    assert "| best | leads |" in page
    [close] = [line for line in page.splitlines() if line.startswith("| close | −0.20 (")]
    assert "**" not in close


def test_several_seeds_are_covered_by_the_test() -> None:
    page = comparison_page(
        results({"best": [BETTER] * 3, "other": [BASE] * 3}), grid(title="MNIST", seeds=(0, 1, 2))
    )
    assert "How certain" in page
    assert "other seeds may turn" not in page


def test_a_single_row_has_no_order() -> None:
    page = comparison_page(results({"best": [BETTER]}), grid(title="MNIST"))
    assert "How certain" not in page
