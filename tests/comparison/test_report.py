"""The HTML page of a comparison: one verdict, and the page in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from pu_kd_pipeline.comparison.charts import accuracy_dots
from pu_kd_pipeline.comparison.gap import measure_gaps
from pu_kd_pipeline.comparison.report import render_comparison
from pu_kd_pipeline.comparison.tables import means_over_seeds
from pu_kd_pipeline.comparison.verdict import lead_of, lead_sentences, verdict_text
from pu_kd_pipeline.params.comparison import ComparisonParams
from tests.browser import Browser, check_layout, quiet_browser
from tests.comparison.builders import BASE, grid, results_of
from tests.reporting.toy_run import Store, class_names

EVIL = "</script><img src=x onerror=document.title='broken'>"
LONG = "a_name_that_is_much_longer_than_a_phone_is_wide_and_has_no_blank"
N_TEST = 400
SHARED = {"distillation": {"temperature": 4, "labeled_share": 0.15}}
VARIANTS: dict[str, Any] = {
    "oracle": {"rule": "oracle"},
    "whole": {"rule": "all"},
    "random": {"rule": "random", "budget": 50},
    "good": {"rule": "nnpu", "criterion": "budget", "budget": 50},
    LONG: {"rule": "confident", "budget": 50},
    "labeled": {"method": "labeled_only"},
    **{
        f"size_{at}": {
            "rule": "random",
            "budget": at,
            "labeled_per_class": [4],
            "sweep": {"name": "size", "line": "random", "at": at},
        }
        for at in (10, 100)
    },
}
# Of 400 test images, those that the students of the longest training get right.
N_RIGHT = {
    "oracle": 380,
    "whole": 340,
    "random": 320,
    "good": 370,
    LONG: 330,
    "labeled": 300,
    "size_10": 300,
    "size_100": 330,
}


def comparison_of(**changes: Any) -> ComparisonParams:
    given = {
        "title": f"Students {EVIL}",
        "labeled_per_class": [2, 4],
        "seeds": [0, 1],
        "objectives": ["kd"],
        "n_updates": [100, 300],
        "every_variant": SHARED,
        "variants": VARIANTS,
        "sweeps": {"size": "pool images"},
        "gap": {"random": "random", "whole_pool": "whole", "goal": "oracle"},
        "curves": {"n_images": 10, "panels": {"Two": ["good", "random"]}},
        **changes,
    }
    return grid(**given)


def answers(n_right: int, seed: int) -> list[bool]:
    """Return which test images a student gets right: the easy ones, and a few of its seed's."""
    is_right = np.arange(N_TEST) < n_right
    is_right[seed::97] = ~is_right[seed::97]
    return is_right.tolist()


def results(seeds: tuple[int, ...] = (0, 1), **n_right: int) -> pd.DataFrame:
    """Return the results of the grid; n_right replaces numbers of `N_RIGHT`."""
    rows = []
    for name, full in {**N_RIGHT, **n_right}.items():
        for n_updates in (100, 300):
            for labeled in (4,) if name.startswith("size") else (2, 4):
                for seed in seeds:
                    # Fewer updates and labeled images are worse.
                    n_here = full - (300 - n_updates) // 10 - 10 * (4 - labeled)
                    is_correct = answers(n_here, seed)
                    rows.append((name, n_updates, labeled, seed, is_correct))
    names = [row[0] for row in rows]
    correct = [row[4] for row in rows]
    n = len(rows)
    return results_of(
        variant=names,
        method=["labeled_only" if name == "labeled" else "selection" for name in names],
        rule=[VARIANTS[name].get("rule") for name in names],
        n_updates=[row[1] for row in rows],
        labeled_per_class=[row[2] for row in rows],
        seed=[row[3] for row in rows],
        accuracy=[float(np.mean(each)) for each in correct],
        is_correct=correct,
        test_images=["tests"] * n,
        n_test=[N_TEST] * n,
        n_selected=[0 if name == "labeled" else 50 for name in names],
        is_reference=[name == "oracle" for name in names],
        yardstick=["yardstick"] * n,
        n_yardstick=[50] * n,
        yardstick_agreement=[0.9] * n,
        yardstick_kl=[0.1 if name == "good" else 0.2 for name in names],
        per_class_accuracy=[[float(np.mean(each))] * 10 for each in correct],
        curve_updates=[[50, row[1]] for row in rows],
        curve_accuracy=[[0.5, 0.9]] * n,
    )


def page_of(params: ComparisonParams, found: pd.DataFrame) -> str:
    images = np.zeros((3, 1, 8, 8), dtype=np.uint8)
    store = Store(images, [f"pool/{row}" for row in range(3)], [None] * 3)
    card = SimpleNamespace(classes=(EVIL, *class_names(10)[1:]))
    teacher = SimpleNamespace(card=card, fingerprint=lambda: "7eac")
    gaps = measure_gaps(found, params, BASE)
    blocks = {"comparison": params}
    return render_comparison(
        found,
        params,
        BASE,
        gaps,
        teacher,  # type: ignore[arg-type]
        {"pool images": store},  # type: ignore[dict-item]
        blocks,
    )


def verdict_of(found: pd.DataFrame) -> tuple[str, str]:
    here = found[found["n_updates"] == 300]
    here = here[~here["variant"].str.startswith("size")]
    lead = lead_of(here, means_over_seeds(here), 300, 4)
    assert lead is not None
    return lead_sentences(lead, "after 300 updates", N_TEST)[0], verdict_text(lead)


def test_the_verdict_is_a_lead_only_where_chance_explains_none_of_it() -> None:
    sentence, text = verdict_of(results())
    assert sentence.startswith("“good” is best: 9")
    assert "after 300 updates. Chance does not explain its lead over any other variant" in sentence
    assert "over “whole”: +7.50 points, 95 %: +" in sentence
    assert text == "best"

    sentence, text = verdict_of(results(whole=368))
    assert sentence.startswith("Which variant is best cannot be told: “good” leads with ")
    assert "chance can explain its lead over “whole” (over “whole”: +0.50 points" in sentence
    assert text == "cannot be told from “whole”"


def test_students_without_a_common_seed_are_not_tested() -> None:
    found = results()
    found = found[(found["variant"] != "good") | (found["seed"] == 1)]
    found = found[(found["variant"] == "good") | (found["seed"] == 0)]
    sentence, text = verdict_of(found)
    assert sentence.startswith("Which variant is best was not tested: “good” leads with ")
    assert text == "not tested"


def test_accuracies_stand_in_their_order_on_the_axis_with_the_teacher() -> None:
    found = results()
    means = means_over_seeds(found[found["n_updates"] == 300]).sort_values("mean", ascending=False)
    dots = accuracy_dots("accuracy", means, "good", 99.0)
    assert dots is not None
    places = [reading.place for reading in dots.readings]
    assert places == sorted(places, reverse=True)
    assert all(0 <= place <= 1 for place in [*places, *dots.marks])
    assert dots.marks[0] > places[0]
    assert {reading.kind for reading in dots.readings} == {"used", "hollow", "other"}
    for reading in dots.readings:
        assert reading.lower is not None
        assert reading.upper is not None
        assert reading.lower <= reading.place <= reading.upper


def test_missing_earlier_and_failed_students_are_named() -> None:
    params = comparison_of(gap=None)
    found = results()
    is_failed = (found["variant"] == "labeled") & (found["seed"] == 1)
    found.loc[is_failed, "accuracy"] = np.nan
    found.loc[is_failed, "failure"] = "the loss is not finite"
    is_missing = (found["variant"] == "whole") & (found["seed"] == 1)
    page = page_of(params, found[~is_missing])
    assert "4 students (whole, kd, 2 per class, 100 updates, seed 1; " in page
    assert "of the present grid are missing: run" in page
    assert "could not be computed; the reasons are below" in page
    assert "the loss is not finite" in page
    page = page_of(comparison_of(gap=None, seeds=[0]), found)
    assert "on this page are of an earlier grid" in page


def test_the_parameters_on_the_page_give_the_same_comparison() -> None:
    params = comparison_of(title="Students")
    page = page_of(params, results())
    text = page.partition('<code id="parameters-file">')[2].partition("</code>")[0]
    block = yaml.safe_load(text)["comparison"]
    assert ComparisonParams.model_validate(block) == params


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    folder: Path = tmp_path_factory.mktemp("comparison")
    page = folder / "comparison.html"
    page.write_text(page_of(comparison_of(), results()), encoding="utf-8")
    with quiet_browser(folder) as started:
        started.open(page)
        yield started


def test_the_page_fits_a_phone_and_a_screen_in_light_and_dark(browser) -> None:
    browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
    # For each length: accuracy by labeled images, the sweep, and the curves.
    assert check_layout(browser) == 6
    assert browser.run("document.querySelectorAll('.dots').length") == 6
    browser.run("for (const each of document.querySelectorAll('details')) each.open = false")


def test_the_verdict_comes_first_and_names_are_text(browser) -> None:
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.title") == f"Students {EVIL}"
    lead = browser.text("header .lead").replace("\u00a0", " ")
    assert lead.startswith("“good” is best: ")
    assert "with 4 labeled images of each class after 300 updates" in lead
    header = browser.text("header").replace("\u00a0", " ")
    assert "“good” gains 83 % of it" in header
    assert "“good” is also closest to its teacher on the yardstick" in header
    assert "What makes these numbers doubtful" not in header


def test_tables_sort_by_numbers_and_by_names(browser) -> None:
    table = "#leads-table"
    keys = (
        f"Array.from(document.querySelector({json.dumps(table)}).tBodies[0].rows)"
        ".map((row) => row.cells[0].dataset.key)"
    )
    assert browser.run(keys) == ["300.0", "300.0", "100.0", "100.0"]
    browser.click(f"{table} thead th:nth-child(1) button")
    assert browser.run(keys) == ["100.0", "100.0", "300.0", "300.0"]
    accuracies = "#accuracy-300-table"
    browser.click(f"{accuracies} thead th:nth-child(1) button")
    assert browser.text(f"{accuracies} tbody tr:first-child th") == LONG
    browser.click(f"{accuracies} thead th:nth-child(3) button")
    assert browser.text(f"{accuracies} tbody tr:first-child th") == "labeled"
    browser.click(f"{accuracies} thead th:nth-child(3) button")
    assert browser.text(f"{accuracies} tbody tr:first-child th") == "oracle"


def test_shorter_trainings_are_folded(browser) -> None:
    is_shown = "document.querySelector('#accuracy-{}-table').checkVisibility()"
    assert browser.run(is_shown.format(300))
    assert not browser.run(is_shown.format(100))
    browser.click("#updates-100 + details > summary")
    assert browser.run(is_shown.format(100))


def test_the_page_names_teacher_command_and_refused_images(browser) -> None:
    text = browser.text("main")
    assert "7eac" in text
    assert "--pipelines=data_ingestion,teacher,feature_extraction,comparison --env=again" in text
    assert "a.jpg (toy), b.jpg (toy)" in text
