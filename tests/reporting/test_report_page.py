"""The report of a run, driven in a real browser as a person would: one page for all tests."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import yaml

from tests.browser import TIMEOUT_S, Browser, check_layout, quiet_browser
from tests.reporting.toy_run import class_names, report, scored_pool

EVIL = "</script><img src=x onerror=document.title='broken'>"
NAMES = (EVIL, *class_names(10)[1:])


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("report")
    page = folder / "report.html"
    page.write_text(report(names=NAMES)["report"], encoding="utf-8")
    with quiet_browser(folder) as started:
        started.open(page)
        yield started


@pytest.fixture
def toy_scores() -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of the toy pool, and which images are relevant."""
    scores, _, store = scored_pool()
    truth = store.index.set_index("id")["relevant"].reindex(scores["id"])
    return scores["pu_score"].to_numpy(np.float64), truth.to_numpy(bool)


def text_of(browser: Browser, selector: str) -> str:
    return browser.text(selector).replace("\u00a0", " ")


def facts(browser: Browser) -> dict[str, str]:
    """Return what the open detail says of its image."""
    pairs = browser.run(
        "Array.from(document.querySelectorAll('#detail-facts div')).map("
        "(each) => [each.children[0].textContent, each.children[1].textContent])"
    )
    return dict(pairs)


def is_open(browser: Browser) -> bool:
    return bool(browser.run("document.getElementById('detail').open"))


def test_nothing_is_wider_than_the_window_and_charts_can_be_read(browser) -> None:
    assert check_layout(browser) > 4
    assert browser.run("document.querySelectorAll('.thumb, .matrix, input, pre').length") > 50


def test_markup_in_a_class_name_is_text(browser) -> None:
    assert browser.run("document.title") == "A run"
    assert browser.run("document.querySelectorAll('img[onerror]').length") == 0
    named = browser.run(
        "Array.from(document.querySelectorAll('.class h3')).map((each) => each.textContent)"
    )
    assert EVIL in named
    assert set(named) <= set(NAMES)


def test_an_image_opens_by_click_and_key_and_closes_by_escape(browser) -> None:
    assert not is_open(browser)
    browser.click(".strip.selected .thumb")
    assert is_open(browser)
    found = facts(browser)
    assert found["id"].startswith("pool/")
    assert found["source"] == "toy"
    assert found["teacher's class"] in NAMES
    assert found["reason"] == "nnpu"
    assert found["selected"] == "yes"
    assert float(found["PU score"].replace("−", "-")) > 0
    assert found["teacher's confidence"].endswith("%")
    assert "times an even draw" in found["sampling probability"]
    assert browser.run("document.getElementById('detail-picture').naturalWidth") == 8

    # The arrow keys go through the images of the row, and stop at its ends.
    browser.press("ArrowRight")
    other = facts(browser)
    assert other["id"] != found["id"]
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    assert facts(browser) == found

    # The key that closes it gives the focus back, and Enter opens it again.
    browser.press("Escape")
    browser.wait_for("!document.getElementById('detail').open")
    browser.wait_for("document.activeElement.classList.contains('thumb')")
    browser.press("Enter")
    assert is_open(browser)
    assert facts(browser) == found
    browser.click("#close")
    assert not is_open(browser)


def test_rejected_neighbors_and_labeled_images_stand_next_to_the_selected(browser) -> None:
    browser.click(".strip.rejected .thumb")
    found = facts(browser)
    assert found["selected"] == "no"
    assert "reason" not in found
    assert float(found["PU score"].replace("−", "-")) <= 0
    browser.press("Escape")
    browser.wait_for("!document.getElementById('detail').open")
    browser.click(".strip.labeled .thumb")
    found = facts(browser)
    assert found["id"].startswith("labeled/")
    assert found["image"] == "labeled image"
    browser.press("Escape")
    browser.wait_for("!document.getElementById('detail').open")


def test_all_images_of_the_page_are_shown(browser) -> None:
    n_broken = browser.run(
        "Array.from(document.querySelectorAll('.thumb img'))"
        ".filter((each) => !each.src.startsWith('data:image/png')).length"
    )
    assert n_broken == 0


def test_the_threshold_moves_with_exact_counts(browser, toy_scores) -> None:
    scores, is_relevant = toy_scores
    thresholds = browser.run("JSON.parse(document.getElementById('data').textContent).cut")
    values = thresholds["thresholds"]
    start = thresholds["start"]
    # The page begins with the run's own cut, F > 0, and its selection.
    assert values[start] == 0
    assert text_of(browser, "#cut-threshold") == "> 0"
    check_readout(browser, scores > 0, is_relevant)

    browser.run("document.getElementById('threshold').focus()")
    browser.press("ArrowRight")
    check_readout(browser, scores > values[start + 1], is_relevant)
    browser.press("Home")
    check_readout(browser, scores > values[0], is_relevant)
    browser.press("End")
    assert not (scores > values[-1]).any()
    assert text_of(browser, "#cut-precision") == "–"
    line = browser.run("document.getElementById('cut-line').getAttribute('x1')")
    assert line == "1"
    browser.click("#cut-reset")
    check_readout(browser, scores > 0, is_relevant)
    # Counts are exact at all thresholds that the page has.
    for value, passing, relevant in zip(
        values, thresholds["passing"], thresholds["relevant"], strict=True
    ):
        assert passing == (scores > value).sum()
        assert relevant == (is_relevant & (scores > value)).sum()


def check_readout(browser: Browser, is_passing: np.ndarray, is_relevant: np.ndarray) -> None:
    n = int(is_passing.sum())
    assert text_of(browser, "#cut-passing") == f"{n} ({100 * n / len(is_passing):.1f} %)"
    hits = (is_passing & is_relevant).sum()
    assert text_of(browser, "#cut-precision") == f"{100 * hits / n:.1f} %"
    assert text_of(browser, "#cut-recall") == f"{100 * hits / is_relevant.sum():.1f} %"


def column(browser: Browser, table: str, place: int) -> list[str]:
    script = (
        f"Array.from(document.querySelector({json.dumps(table)}).tBodies[0].rows)"
        f".map((row) => row.cells[{place}].dataset.key)"
    )
    keys: list[str] = browser.run(script)
    return keys


def sorted_as(browser: Browser, table: str) -> list[str]:
    states: list[str] = browser.run(
        f"Array.from(document.querySelectorAll({json.dumps(table + ' thead th')}))"
        ".map((cell) => cell.getAttribute('aria-sort'))"
    )
    return states


def test_a_table_is_sorted_by_click_and_by_key(browser) -> None:
    table = "#balance-table"
    assert set(sorted_as(browser, table)) == {"none"}
    browser.click(f"{table} thead th:nth-child(3) button")
    counts = [float(key) for key in column(browser, table, 2)]
    assert counts == sorted(counts)
    assert sorted_as(browser, table)[2] == "ascending"
    assert sorted_as(browser, table).count("none") == 4
    # The button has the focus.
    browser.press("Enter")
    assert [float(key) for key in column(browser, table, 2)] == sorted(counts, reverse=True)
    assert sorted_as(browser, table)[2] == "descending"
    browser.click(f"{table} thead th:nth-child(1) button")
    assert column(browser, table, 0)[-1] == "class 9"


def test_a_class_without_test_images_is_last_in_either_order(browser) -> None:
    table = "#per-class-table"
    for _ in range(2):
        browser.click(f"{table} thead th:nth-child(3) button")
        keys = column(browser, table, 2)
        assert keys[-1] == ""
        assert "" not in keys[:-1]


def test_a_cell_of_the_matrix_shows_its_images(browser) -> None:
    # Every twentieth test image, from the fourth: of the teacher's class 3, and the student's 4.
    assert browser.is_visible("#pair-3-4")
    browser.click("button[data-pair='3-4']")
    assert not browser.is_visible("#pair-3-4")
    assert browser.text("button[data-pair='3-4']") == "20"
    browser.click("button[data-pair='3-4']")
    assert browser.is_visible("#pair-3-4")
    assert browser.run("document.querySelector(\"[data-pair='3-4']\").ariaExpanded") == "true"
    browser.click("#pair-3-4 .thumb")
    found: dict[str, Any] = facts(browser)
    assert found["id"] == "test/3"
    assert found["teacher's class"] == "class 3"
    assert found["student's class"] == "class 4"
    browser.press("Escape")


def test_quarantined_images_are_named(browser) -> None:
    text = browser.run("document.querySelector('main').textContent")
    assert "a.jpg (toy), b.jpg (toy)" in text


def test_the_parameters_are_saved_as_a_file(browser) -> None:
    browser.run("document.getElementById('save-parameters').closest('details').open = true")
    browser.click("#save-parameters")
    file = browser.downloads / "parameters.yml"
    deadline = time.monotonic() + TIMEOUT_S
    while not file.exists():
        assert time.monotonic() < deadline, "the page saved nothing"
        time.sleep(0.05)
    saved = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert saved["pu_training"] == {"epochs": 20, "note": "<b>"}
    assert saved["subset_materialization"]["rule"] == "nnpu"
