"""The HTML page of a comparison: one verdict, and the page in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from pu_kd_pipeline.comparison.charts import accuracy_dots, sweep_chart
from pu_kd_pipeline.comparison.differences import students_of_row
from pu_kd_pipeline.comparison.figure import plot_comparison
from pu_kd_pipeline.comparison.gap import measure_gaps
from pu_kd_pipeline.comparison.page import comparison_page
from pu_kd_pipeline.comparison.present import present_results
from pu_kd_pipeline.comparison.report import POOL, TEST, render_comparison
from pu_kd_pipeline.comparison.tables import means_over_seeds
from pu_kd_pipeline.comparison.verdict import Lead, lead_of, lead_sentences, verdict_text
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.paired import paired_difference
from pu_kd_pipeline.params.comparison import ComparisonParams
from pu_kd_pipeline.reporting.sections.origin import note_on_audit
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
        test_images=["test/0"] * n,
        teacher=["7eac"] * n,
        n_pool=[3] * n,
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
    stores = {
        name: Store(images, [f"{part}/{row}" for row in range(3)], [None] * 3)
        for name, part in ((POOL, "pool"), (TEST, "test"))
    }
    card = SimpleNamespace(classes=(EVIL, *class_names(10)[1:]))
    teacher = SimpleNamespace(card=card, fingerprint=lambda: "7eac")
    present = present_results(found, params, BASE)
    gaps = measure_gaps(present.results, params, BASE)
    blocks = {"comparison": params}
    return render_comparison(
        present,
        params,
        BASE,
        gaps,
        teacher,  # type: ignore[arg-type]
        stores,  # type: ignore[arg-type]
        blocks,
    )


def lead_in(found: pd.DataFrame) -> Lead:
    here = found[found["n_updates"] == 300]
    here = here[~here["variant"].str.startswith("size")]
    lead = lead_of(here, means_over_seeds(here), 300, 4)
    assert lead is not None
    return lead


def verdict_of(found: pd.DataFrame) -> tuple[str, str]:
    lead = lead_in(found)
    return lead_sentences(lead, "after 300 updates", N_TEST)[0], verdict_text(lead)


def students_of(**n_right: dict[int, int]) -> pd.DataFrame:
    """Return the results of variants: the number of images that each seed's student gets right."""
    rows = [(name, seed, n) for name, by_seed in n_right.items() for seed, n in by_seed.items()]
    correct = [(np.arange(N_TEST) < n).tolist() for _, _, n in rows]
    return results_of(
        variant=[name for name, _, _ in rows],
        method=["selection"] * len(rows),
        rule=["nnpu"] * len(rows),
        n_updates=[300] * len(rows),
        labeled_per_class=[4] * len(rows),
        seed=[seed for _, seed, _ in rows],
        accuracy=[n / N_TEST for _, _, n in rows],
        is_correct=correct,
        test_images=["test/0"] * len(rows),
    )


def test_the_verdict_is_a_lead_only_where_chance_explains_none_of_it() -> None:
    sentence, text = verdict_of(results())
    assert sentence.startswith("“good” is best: 9")
    assert "after 300 updates. Chance does not explain its lead over any other variant" in sentence
    assert "over “whole”: +7.50 points, 95 %: +" in sentence
    assert text == "best"

    sentence, text = verdict_of(results(whole=368))
    assert sentence.startswith("Which variant is best is not clear: “good” leads with ")
    assert "chance can explain its lead over “whole” (over “whole”: +0.50 points" in sentence
    assert text == "not clear: “whole”"


def test_students_without_a_common_seed_are_not_tested() -> None:
    found = results()
    found = found[(found["variant"] != "good") | (found["seed"] == 1)]
    found = found[(found["variant"] == "good") | (found["seed"] == 0)]
    sentence, text = verdict_of(found)
    assert sentence.startswith("Which variant is best was not tested: “good” leads with ")
    assert text == "not tested"


def test_rows_are_ranked_by_the_seeds_that_all_have() -> None:
    # Seed 1 is hard, and failed for `lucky`.
    found = students_of(lucky={0: 370}, whole={0: 398, 1: 300}, other={0: 300, 1: 250})
    lead = lead_in(found)
    assert (lead.name, lead.second) == ("whole", "lucky")
    sentences = lead_sentences(lead, "", N_TEST)
    assert "“whole” leads with 87.25 % of 400 test images, mean of 2 seeds" in sentences[0]
    assert "over “lucky”: +7.00 points" in sentences[0]
    assert "they are ranked by the one seed that all of them have" in sentences[1]
    assert "Some were compared by one seed" in sentences[2]
    # The same row leads on both pages and in the figure.
    params = grid(labeled_per_class=[4], seeds=[0, 1], title="Students")
    assert "| whole | **87.25 ± 17.32** |" in comparison_page(found, params)
    assert plot_comparison(found, params)._suptitle.get_text().startswith("whole leads with")


def test_a_row_that_is_better_on_common_seeds_is_not_beaten() -> None:
    # No seed has all rows, so that each counts with its own.
    found = students_of(lucky={0: 370}, whole={0: 398, 1: 300}, other={1: 250})
    lead = lead_in(found)
    assert lead.name == "lucky"
    assert lead.ahead == ["whole"]
    assert not lead.is_clear
    sentence, limit, *_ = lead_sentences(lead, "", N_TEST)
    assert sentence.startswith("Which variant is best is not clear: “lucky” leads with 92.50 %")
    assert "on the seeds that both have, “whole” is better (over “whole”: −7.00" in sentence
    assert "ranked by their own seeds" in limit
    assert verdict_text(lead) == "not clear: “whole”"


def test_one_seed_leads_and_is_not_best() -> None:
    found = results(seeds=(0,))
    sentence, text = verdict_of(found)
    assert sentence.startswith("“good” leads: 9")
    assert "Which images are in the test set does not explain its lead, other seeds may" in sentence
    assert text == "leads (one seed)"
    page = page_of(comparison_of(seeds=[0]), found).replace("\u00a0", " ")
    assert "does not explain its lead, other seeds may" in page
    assert "One seed was compared" in page
    assert "is best" not in page
    assert ">best<" not in page


def test_the_least_number_of_seeds_counts() -> None:
    # The second has two seeds, and a row further back has one.
    found = students_of(best={0: 390, 1: 391}, second={0: 360, 1: 361}, third={0: 200})
    lead = lead_in(found)
    assert lead.to_second is not None
    assert lead.to_second.n_seeds == 2
    assert lead.is_clear
    assert verdict_text(lead) == "leads (one seed)"
    assert "Some were compared by one seed" in lead_sentences(lead, "", N_TEST)[-1]


def test_a_row_whose_rivals_failed_is_the_only_one_with_a_result() -> None:
    found = students_of(good={0: 390}, other={0: 300})
    is_failed = found["variant"] == "other"
    found.loc[is_failed, "accuracy"] = np.nan
    found.loc[is_failed, "failure"] = "the loss is not finite"
    lead = lead_in(found)
    [sentence] = lead_sentences(lead, "", N_TEST)
    assert sentence.startswith("“good” is the only one with a result that is no reference: 97.50")
    assert verdict_text(lead) == "the only one with a result"


def test_of_twenty_equal_rows_more_than_one_is_bold_on_average() -> None:
    # What both pages write below their tables of differences.
    rng = np.random.default_rng(0)
    n_bold = 0
    n_draws = 40
    for _ in range(n_draws):
        is_correct = rng.random((20, N_TEST)) < 0.9
        best = is_correct.mean(axis=1).argmax()
        for row in np.delete(np.arange(20), best):
            n_bold += paired_difference(is_correct[row], is_correct[best]).is_significant
    assert n_bold / n_draws > 2


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
    assert "of an earlier grid, which the present parameters do not have, are left out" in page


def test_a_removed_variant_is_no_longer_the_best() -> None:
    params = comparison_of(gap=None, variants={**VARIANTS, "good": None}, curves=None)
    page = page_of(params, results())
    assert "8 students (good, kd, 2 per class, 100 updates, seed 0; " in page
    assert "“good”" not in page
    assert "“whole” is best" in page


def test_lengths_of_an_earlier_grid_do_not_mix() -> None:
    params = comparison_of(n_updates=None, gap=None, curves=None)
    base = replace(BASE, distillation=BASE.distillation.model_copy(update={"n_updates": 300}))
    found = present_results(results(), params, base)
    assert set(found.results["n_updates"]) == {300}
    assert not found.missing
    assert {key[3] for key in found.others} == {100}
    # Without that, rows of the same name are compared with those of their own length.
    both = results(seeds=(0,))
    both = both[both["variant"].isin(["good", "whole"]) & (both["labeled_per_class"] == 4)]
    means = means_over_seeds(both)
    for _, row in means.iterrows():
        [(_, is_correct)] = students_of_row(both, row).items()
        assert 100 * is_correct.mean() == pytest.approx(row["mean"])


def test_results_of_another_grid_alone_are_refused() -> None:
    with pytest.raises(InputError, match="no saved result belongs to the grid of the present"):
        present_results(results(), comparison_of(seeds=[7]), BASE)


def test_a_changed_variant_is_left_out() -> None:
    changed = {**VARIANTS, "good": {**VARIANTS["good"], "rule": "confident"}}
    found = present_results(results(), comparison_of(variants=changed), BASE)
    assert {key[0] for key in found.changed} == {"good"}
    assert not found.missing
    assert "good" not in set(found.results["variant"])
    [doubt] = found.doubts()
    assert "are of another method, rule, criterion or features than the present" in doubt
    # As is one of another criterion.
    of_criterion = results()
    of_criterion.loc[of_criterion["variant"] == "good", "criterion"] = "quantile"
    found = present_results(of_criterion, comparison_of(), BASE)
    assert {key[0] for key in found.changed} == {"good"}


def test_results_of_other_inputs_are_doubted() -> None:
    found = results()
    page = page_of(comparison_of(), found)
    assert "one: run" not in page
    assert "ones: run" not in page
    page = page_of(comparison_of(), found.assign(teacher="0ther", test_images="0ther", n_pool=9))
    assert "are of another teacher than the present one: run" in page
    assert "are of other test images than the present ones: run" in page
    assert "are of a pool of another size than the present one: run" in page
    # The hash on the page is that of the students' teacher.
    assert '<th scope="row">teacher</th><td class="long key">0ther<' in page
    assert "7eac" not in page


def test_a_teacher_that_was_not_recorded_is_not_made_up() -> None:
    found = results()
    found["teacher"] = None
    page = page_of(comparison_of(), found)
    assert "not recorded by an earlier version" in page
    assert '<th scope="row">present teacher</th><td class="long key">7eac</td>' in page
    assert "another teacher than" not in page


def test_images_are_no_networks() -> None:
    page = page_of(comparison_of(), results())
    networks, _, inputs = page.partition("A network is named by the hash")
    networks = networks.partition('id="again"')[2]
    assert "7eac" in networks
    assert "test/0" not in networks
    assert '<th scope="row">test images</th><td class="long key">test/0</td>' in inputs


def test_a_longest_training_without_a_result_is_stated() -> None:
    found = results()
    page = page_of(comparison_of(), found[found["n_updates"] == 100]).replace("\u00a0", " ")
    assert "with 4 labeled images of each class after 100 updates. Chance does" in page
    assert (
        "No variant that is no reference has a result with 4 labeled images of each class after "
        "300 updates." in page
    )
    short = found[found["n_updates"] == 100]
    title = plot_comparison(short, comparison_of())._suptitle.get_text().replace("\n", " ")
    assert title.startswith("good leads at 4 per class after 100 updates with ")
    is_there = (found["n_updates"] == 100) | (found["labeled_per_class"] == 2)
    page = page_of(comparison_of(), found[is_there]).replace("\u00a0", " ")
    assert "with 2 labeled images of each class after 300 updates" in page
    assert "has a result with 4 labeled images of each class after 300 updates." in page
    assert "has a result with" not in page_of(comparison_of(), results())
    # A reference has more labeled images than any other variant, which leads there without any.
    alone = {**VARIANTS, "preferential": {"method": "preferential"}}
    variants = {
        name: {**each, "labeled_per_class": [2]} if name in ("good", "random") else None
        for name, each in alone.items()
    }
    variants |= {"oracle": alone["oracle"], "preferential": alone["preferential"]}
    params = comparison_of(gap=None, curves=None, sweeps={}, variants=variants)
    without = found[found["variant"] == "whole"]
    without = without[without["labeled_per_class"] == 4]
    without = without.assign(
        variant="preferential", method="preferential", rule=None, labeled_per_class=np.nan
    )
    page = page_of(params, pd.concat([found, without], ignore_index=True))
    assert "has a result with" not in page


def test_the_whole_pool_gains_nothing_by_choosing() -> None:
    page = page_of(comparison_of(), results(whole=376)).replace("\u00a0", " ")
    assert "“whole” is best: " in page
    assert "“good” gains 83 % of it (95 %: " in page
    assert "; as the largest of 3 shares, it is rather too large)" in page
    assert "“whole” gains" not in page


def test_objectives_may_differ_between_lengths() -> None:
    params = comparison_of(objectives=["kd", "robust_kd"], gap=None)
    found = results()
    others = found[(found["variant"] == "good") & (found["n_updates"] == 100)]
    both = pd.concat([found, others.assign(objective="robust_kd")], ignore_index=True)
    page = page_of(params, both)
    assert "good · robust_kd" in page


def test_a_teacher_by_an_audit_needs_the_audit_again() -> None:
    assert note_on_audit({"pu_training": {"class_prior": 0.5}}) is None
    note = note_on_audit({"pu_training": {"class_prior": "audit"}})
    assert note is not None
    assert "--pipeline=pool_audit" in note


def test_no_axis_ends_below_zero_percent() -> None:
    # One deviation below the mean of the first is less than 0 %.
    found = students_of(bad={0: 0, 1: 20}, good={0: 24, 1: 28})
    means = means_over_seeds(found).sort_values("mean", ascending=False)
    dots = accuracy_dots("accuracy", means, "good", 99.0)
    assert dots is not None
    assert dots.low == "0 %"
    assert dots.readings[-1].lower == pytest.approx(0)
    means["at"] = [1.0, 2.0]
    chart = sweep_chart("accuracy", "at", means, float("nan"))
    assert chart is not None
    assert chart.y_ticks
    assert all(float(tick.text) >= 0 for tick in chart.y_ticks)


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
