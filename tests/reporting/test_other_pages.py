"""The pages besides the report of `full`, in a real browser: two widths, light and dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, check_layout, quiet_browser
from tests.reporting.toy_pages import critic_page, small_pages
from tests.reporting.toy_run import class_names

EVIL = "</script><img src=x onerror=document.title='broken'>"
NAMES = (EVIL, *class_names(10)[1:])
# Those that have a chart.
N_CHARTS = {"certificate": 1, "pilot": 1, "student_search": 1, "export": 0, "audit_result": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("pages")
    pages = small_pages() | {"critic": critic_page(NAMES)}
    for name, text in pages.items():
        (made / f"{name}.html").write_text(text, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def browser(folder) -> Iterator[Browser]:
    with quiet_browser(folder) as started:
        yield started


@pytest.mark.parametrize("name", sorted(N_CHARTS))
def test_a_page_fits_a_phone_and_a_screen_in_light_and_dark(browser, folder, name: str) -> None:
    browser.open(folder / f"{name}.html")
    assert check_layout(browser) == N_CHARTS[name]
    # A picture of a chart would have neither the size nor the colors of the page.
    assert browser.run("document.querySelectorAll('img').length") == 0


def test_the_page_of_a_critic_has_verdict_curves_and_confusions(browser, folder) -> None:
    browser.open(folder / "critic.html")
    assert check_layout(browser) == 5
    assert browser.run("document.title").startswith("What a student learned")
    header = browser.text("header").replace("\u00a0", " ")
    assert "3.0 points below its teacher" in header
    assert "The critic gained 1.0 points" in header

    browser.click("button[data-pair='3-4']")
    assert not browser.is_visible("#pair-3-4")
    browser.click("button[data-pair='3-4']")
    browser.click("#pair-3-4 .thumb")
    assert browser.run("document.getElementById('detail').open")
    assert "test/3" in browser.text("#detail-facts")
    browser.press("Escape")
    browser.wait_for("!document.getElementById('detail').open")

    table = "#per-class-table"
    browser.click(f"{table} thead th:nth-child(1) button")
    assert browser.text(f"{table} tbody tr:last-child th") == "class 9"


def test_a_name_in_a_legend_shows_its_line_alone(browser, folder) -> None:
    browser.open(folder / "critic.html")
    plot = ".group:last-of-type .plot:last-of-type"
    faded = f"document.querySelectorAll({json.dumps(f'{plot} g.faded')}).length"
    name = f"{plot} .legend span"
    assert browser.run(faded) == 0
    browser.click(name)
    assert browser.run(faded) == 2
    browser.run(f"document.querySelector({json.dumps(name)}).focus()")
    browser.press("Enter")
    assert browser.run(faded) == 0


def test_the_page_of_a_critic_says_how_to_make_it_again() -> None:
    page = critic_page(NAMES)
    option = "--pipelines=data_ingestion,teacher,critic_distillation"
    assert f"kedro run {option} --env=again" in page
    assert "--nodes=critic_distillation.plot_critic" in page
    assert '<p class="doubts">' not in page
    assert "7eac" in page
    other = critic_page(NAMES, student="beef")
    assert "certificate.json is of another student" in other
    assert f"kedro run {option}` again" in other


def test_copies_of_test_images_among_original_images_concern_the_students() -> None:
    page = critic_page(NAMES)
    # The pool has copies of test images, and no student of this pipeline learns from it.
    assert "The students may have learned" not in page
