"""Headroom and gap closed: who is compared with whom, and what the page and the plot show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.comparison.differences import RowDifference
from pu_kd_pipeline.comparison.figure import plot_comparison
from pu_kd_pipeline.comparison.gap import Gap, measure_gaps
from pu_kd_pipeline.comparison.page import comparison_page
from pu_kd_pipeline.learning.paired import gap_closed, paired_mean_difference
from pu_kd_pipeline.params.comparison import ComparisonParams
from tests.comparison.builders import BASE, grid, results_of

N_TEST = 400
SEEDS = (0, 1)

VARIANTS: dict[str, Any] = {
    "oracle": {"rule": "oracle"},
    "whole": {"rule": "all"},
    "random_small": {"rule": "random", "budget": 50},
    "random_large": {"rule": "random", "budget": 200},
    "small": {"rule": "nnpu", "criterion": "budget", "budget": 50},
    "large": {"rule": "nnpu", "criterion": "budget", "budget": 200},
    "labeled": {"method": "labeled_only"},
}
GAP = {"random": ["random_small", "random_large"], "whole_pool": "whole", "goal": "oracle"}
SHARED = {"distillation": {"temperature": 4, "labeled_share": 0.15}}

# Number of test images that the students get right, and of pool images that they learn from.
N_RIGHT = {
    "oracle": (360, 60),
    "whole": (330, 1000),
    "random_small": (280, 50),
    "random_large": (300, 200),
    "small": (340, 48),
    "large": (370, 180),
    "labeled": (240, 0),
}


def gap_grid(**changes: Any) -> ComparisonParams:
    given = {
        "labeled_per_class": [2],
        "seeds": SEEDS,
        "objectives": ["kd"],
        "every_variant": SHARED,
        "variants": VARIANTS,
        "gap": GAP,
        **changes,
    }
    return grid(**given)


def answers(n_right: int, seed: int) -> list[bool]:
    """Return which test images a student gets right: the easy ones, and a few of its seed's."""
    is_right = np.arange(N_TEST) < n_right
    is_right[seed::97] = ~is_right[seed::97]
    return is_right.tolist()


def gap_results(n_updates: int = 100, **changes: tuple[int, int]) -> pd.DataFrame:
    """Return the results of two seeds, with changes of the numbers of `N_RIGHT`."""
    rows = []
    for name, (n_right, n_selected) in {**N_RIGHT, **changes}.items():
        for seed in SEEDS:
            is_correct = answers(n_right, seed)
            rows.append((name, seed, np.mean(is_correct), is_correct, n_selected))
    names = [row[0] for row in rows]
    methods = ["labeled_only" if name == "labeled" else "selection" for name in names]
    return results_of(
        variant=names,
        method=methods,
        rule=[VARIANTS[name].get("rule") for name in names],
        labeled_per_class=[2] * len(rows),
        seed=[row[1] for row in rows],
        n_updates=[n_updates] * len(rows),
        accuracy=[row[2] for row in rows],
        is_correct=[row[3] for row in rows],
        test_images=["t"] * len(rows),
        n_selected=[row[4] for row in rows],
        is_reference=[name == "oracle" for name in names],
    )


def measured(results: pd.DataFrame, params: ComparisonParams) -> Gap:
    [gap] = measure_gaps(results, params, BASE)
    return gap


def matrix(name: str) -> np.ndarray:
    return np.array([answers(N_RIGHT[name][0], seed) for seed in SEEDS])


def test_each_row_is_compared_with_the_random_images_of_the_nearest_number() -> None:
    gap = measured(gap_results(), gap_grid())
    control_by_row = {row.name: row.control for row in gap.rows}
    assert control_by_row == {
        "whole": "random_large",
        "small": "random_small",
        "large": "random_large",
        "labeled": "random_small",
    }
    for row in gap.rows:
        assert row.control is not None
        student, control, goal = matrix(row.name), matrix(row.control), matrix("oracle")
        assert row.to_control == RowDifference(paired_mean_difference(student, control), 2)
        assert row.closed == gap_closed(student, control, goal)
        to_whole = None
        if row.name != "whole":
            to_whole = RowDifference(paired_mean_difference(student, matrix("whole")), 2)
        assert row.to_whole_pool == to_whole
    assert [(each.control, each.kind) for each in gap.headrooms] == [
        ("random_small", "open"),
        ("random_large", "open"),
    ]
    assert gap.reasons == []


def test_the_page_shows_headroom_and_gap_closed() -> None:
    results = gap_results()
    params = gap_grid()
    page = comparison_page(results, params, measure_gaps(results, params, BASE))
    assert "## Headroom and gap closed" in page
    assert "| control | images | headroom: oracle − control |" in page
    assert "|  | images | control | − control | − whole | gap closed |" in page
    # About 70 images more than its control, whose gap is one of 60.
    [large] = [line for line in page.splitlines() if line.startswith("| large | 180 | random")]
    assert "| 117 % (" in large
    [labeled] = [line for line in page.splitlines() if line.startswith("| labeled | 0 | random")]
    assert "| −51 % (−" in labeled
    assert "gains less than" not in page
    assert "labeled_share` is null" not in page


def test_without_headroom_the_page_has_no_shares_and_states_it() -> None:
    # The goal is better by 2 images of 400.
    results = gap_results(oracle=(302, 60), random_large=(300, 200), random_small=(300, 50))
    params = gap_grid(gap={**GAP, "least_headroom": 0.05})
    gaps = measure_gaps(results, params, BASE)
    assert {each.kind for each in gaps[0].headrooms} == {"none"}
    assert all(row.closed is None for row in gaps[0].rows)
    assert all(row.to_control is not None for row in gaps[0].rows)
    page = comparison_page(results, params, gaps)
    assert (
        "- **Relatedness gains less than 5 points on this pool (95 %)**: oracle compared with"
        in page
    )
    one = results[results["seed"] == results["seed"].min()]
    of_one_seed = comparison_page(one, params, measure_gaps(one, params, BASE))
    assert "gains less than 5 points on this pool (95 %, one seed)**: oracle" in of_one_seed
    # There is nothing to draw.
    assert len(plot_comparison(results, params, gaps).axes) == 1

    stricter = measure_gaps(results, gap_grid(gap={**GAP, "least_headroom": 0.0}), BASE)
    assert {each.kind for each in stricter[0].headrooms} == {"unclear"}
    unclear_page = comparison_page(results, gap_grid(), stricter)
    assert "is not shown**: chance explains the difference of oracle and random" in unclear_page


def test_a_student_trained_differently_from_its_control_has_no_share() -> None:
    warmer = {**VARIANTS["large"], "distillation": {"temperature": 2}}
    params = gap_grid(variants={**VARIANTS, "large": warmer})
    gap = measured(gap_results(), params)
    [large] = [row for row in gap.rows if row.name == "large"]
    assert (large.control, large.to_control, large.to_whole_pool, large.closed) == (None,) * 4
    expected = "large was trained differently from random_large: temperature 2.0 and 4.0"
    assert expected in gap.reasons
    page = comparison_page(gap_results(), params, [gap])
    assert "Not compared, because a difference would not be that of the images" in page
    # A value that repeats the shared one is no difference.
    same = {**VARIANTS["large"], "distillation": {"temperature": 4}}
    assert measured(gap_results(), gap_grid(variants={**VARIANTS, "large": same})).reasons == []


def test_another_share_of_labeled_images_is_refused_where_it_is_read() -> None:
    other_share = {"distillation": {"labeled_share": 0.5}}
    variants = {**VARIANTS, "small": {**VARIANTS["small"], **other_share}}
    # All images of this student are labeled.
    variants["labeled"] = {**VARIANTS["labeled"], **other_share}
    gap = measured(gap_results(), gap_grid(variants=variants))
    assert {row.name for row in gap.rows if row.control is None} == {"small"}
    assert "labeled_share 0.5 and 0.15" in gap.reasons[0]


def test_shares_that_follow_the_number_of_images_are_stated() -> None:
    of_the_manifest = {"distillation": {"temperature": 4, "labeled_share": None}}
    params = gap_grid(every_variant=of_the_manifest)
    results = gap_results()
    page = comparison_page(results, params, measure_gaps(results, params, BASE))
    assert "`distillation.labeled_share` is null" in page


def test_another_objective_has_no_control() -> None:
    variants = {**VARIANTS, "small": {**VARIANTS["small"], "objectives": ["robust_kd"]}}
    results = gap_results()
    results.loc[results["variant"] == "small", "objective"] = "robust_kd"
    gap = measured(results, gap_grid(variants=variants))
    expected = "small: random_small and random_large has no student with this objective here"
    assert expected in gap.reasons


def test_each_length_has_a_section_and_a_panel() -> None:
    params = gap_grid(n_updates=[300, 100])
    short = gap_results(100)
    long = gap_results(300, large=(310, 180), small=(365, 48))
    results = pd.concat([short, long], ignore_index=True)
    gaps = measure_gaps(results, params, BASE)
    assert [gap.n_updates for gap in gaps] == [100, 300]

    page = comparison_page(results, params, gaps)
    assert "Every student got 100 or 300 updates." in page
    before, of_short, of_long = page.split("\n## ")
    assert "| " not in before
    assert of_short.startswith("After 100 updates\n")
    assert of_long.startswith("After 300 updates\n")
    for part in (of_short, of_long):
        assert "\n### Headroom and gap closed\n" in part
        assert "\n### How certain the order is\n" in part
    # Means of one length alone.
    assert "| large | **91.75 ± 0.00**" in of_short
    assert "| small | **90.50 ± 0.00**" in of_long

    figure = plot_comparison(results, params, gaps)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "100 updates",
        "gap closed, 100 updates",
        "300 updates",
        "gap closed, 300 updates",
    ]
    assert "small leads after 300 updates" in figure._suptitle.get_text()


def test_the_panel_lists_the_largest_share_first() -> None:
    results = gap_results()
    params = gap_grid()
    figure = plot_comparison(results, params, measure_gaps(results, params, BASE))
    _, axes = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["large", "small", "whole", "labeled"]
    shares = [bars.lines[0].get_xdata()[0] for bars in axes.containers]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random": "rndom"}, "gap.random: there is no variant 'rndom'"),
        ({"random": []}, "gap.random must name each variant once"),
        ({"random": ["random_small", "random_small"]}, "must name each variant once"),
        ({"random": "whole"}, "'whole' needs the rule 'random', got 'all'"),
        ({"whole_pool": "oracle"}, "'oracle' needs the rule 'all'"),
        ({"goal": "large"}, "'large' is no reference"),
        ({"goals": "oracle"}, "goals"),
    ],
)
def test_a_gap_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gap_grid(gap={**GAP, **changes})


def test_without_a_gap_nothing_is_measured() -> None:
    params = gap_grid(gap=None)
    assert measure_gaps(gap_results(), params, BASE) == []
    assert "Headroom" not in comparison_page(gap_results(), params)
