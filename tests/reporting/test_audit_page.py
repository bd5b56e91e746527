"""The page of an audit, driven in a real browser by keys and clicks as a person would."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pu_kd_pipeline.images.subset import ImageSubset
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.pool_audit.answers import checked_answers
from pu_kd_pipeline.reporting.audit_page import N_EXAMPLES, render_audit
from tests.browser import TIMEOUT_S, Browser, find_chromium
from tests.pool_audit.conftest import Pool, teacher_of

CLASSES = ("cat", "dog", "owl </script><script>document.title='broken'</script>")
N_IMAGES = 20


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Pool:
    teacher = teacher_of()
    card = teacher.card.model_copy(update={"classes": CLASSES})
    made = Pool.of(
        tmp_path_factory.mktemp("page") / "pool", range(60), Model(teacher.network, card)
    )
    return made


@pytest.fixture(scope="module")
def audit(pool):
    return pool.audit(n_images=N_IMAGES)


@pytest.fixture(scope="module")
def html(pool, audit) -> str:
    labeled = ImageSubset.of(pool.images, np.arange(30))
    return render_audit(audit, pool.images, labeled, pool.teacher)


@pytest.fixture
def page(html, tmp_path) -> Path:
    path = tmp_path / "pool_audit.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture
def browser(page, tmp_path) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium: install the package `chromium`")
    started = Browser(program, tmp_path)
    try:
        started.show_as(1280, 800)
        started.open(page)
        yield started
        faults = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")
        assert [each for each in started.events if each.get("method") in faults] == []
    finally:
        started.close()


def saved(browser: Browser) -> dict:
    """Return what the page saves when its button is clicked."""
    browser.click("#save")
    file = browser.downloads / "pool_audit_answers.json"
    deadline = time.monotonic() + TIMEOUT_S
    while not file.exists():
        assert time.monotonic() < deadline, "the page saved nothing"
        time.sleep(0.05)
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_keys_answer_all_images_and_the_file_is_read_by_the_next_command(browser, audit):
    given = ["yes" if number % 3 == 0 else "no" for number in range(N_IMAGES)]
    given[7] = "cannot tell"
    keys = {"yes": "y", "no": "n", "cannot tell": "c"}
    assert browser.text("#progress-text") == "0 of 20 answered"
    assert not browser.is_visible("#save")
    for number, answer in enumerate(given):
        browser.press(keys[answer])
        assert browser.text("#progress-text") == f"{number + 1} of 20 answered"
    assert browser.text("#counts") == "All images are answered: 7 yes, 12 no, 1 cannot tell."
    assert not browser.is_visible("#asking")

    answered = checked_answers(saved(browser), audit, CLASSES)
    assert answered["answer"].tolist() == given
    assert answered["class"].tolist() == audit["teacher_class"].tolist()


def test_buttons_answer_too_and_another_class_is_saved(browser, audit):
    browser.click("#yes")
    browser.click("#unknown")
    # The class of the third image is corrected; the keys answer again afterwards.
    corrected = (audit["teacher_class"].iloc[2] + 1) % 3
    browser.run(
        f"(() => {{ const s = document.getElementById('class'); s.focus(); s.value = '{corrected}';"
        " s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    browser.press("y")
    for _ in range(N_IMAGES - 3):
        browser.click("#no")
    answered = checked_answers(saved(browser), audit, CLASSES)
    assert answered["answer"].tolist()[:3] == ["yes", "cannot tell", "yes"]
    assert set(answered["answer"].tolist()[3:]) == {"no"}
    assert answered["class"].iloc[2] == corrected


def test_undo_takes_back_answers_one_by_one_also_from_the_end(browser, audit):
    for _ in range(N_IMAGES):
        browser.press("y")
    browser.press("ArrowLeft")
    assert browser.is_visible("#asking")
    browser.press("u")
    assert browser.text("#progress-text") == "18 of 20 answered"
    browser.press("n")
    browser.press("n")
    answered = checked_answers(saved(browser), audit, CLASSES)
    assert answered["answer"].tolist() == ["yes"] * 18 + ["no"] * 2


def test_undo_does_nothing_before_the_first_answer(browser):
    assert browser.run("document.getElementById('undo').disabled")
    browser.press("u")
    assert browser.text("#progress-text") == "0 of 20 answered"


def test_a_reload_loses_nothing(browser):
    for key in "yynyc":
        browser.press(key)
    shown = browser.run("document.getElementById('picture').src")
    browser.reload()
    assert browser.text("#progress-text") == "5 of 20 answered"
    assert browser.run("document.getElementById('picture').src") == shown
    browser.press("u")
    assert browser.text("#progress-text") == "4 of 20 answered"


def test_answers_count_for_another_draw_of_the_same_pool_and_teacher(
    browser, pool, audit, tmp_path
):
    for _ in range(N_IMAGES):
        browser.press("y")
    larger = pool.audit(n_images=30)
    page = tmp_path / "larger.html"
    page.write_text(render_audit(larger, pool.images, pool.images, pool.teacher), encoding="utf-8")
    browser.open(page)
    n_known = len(set(larger["id"]) & set(audit["id"]))
    assert browser.text("#progress-text") == f"{n_known} of 30 answered"
    for _ in range(30 - n_known):
        browser.press("n")
    answered = checked_answers(saved(browser), larger, CLASSES)
    assert (answered["answer"] == "yes").sum() == n_known


def test_answers_to_another_pool_are_not_taken_over(browser, pool, audit, tmp_path):
    browser.press("y")
    other = audit.copy()
    other.attrs = {**audit.attrs, "pool": "another"}
    page = tmp_path / "other.html"
    page.write_text(render_audit(other, pool.images, pool.images, pool.teacher), encoding="utf-8")
    browser.open(page)
    assert browser.text("#progress-text") == "0 of 20 answered"


def test_a_key_that_is_held_or_part_of_a_shortcut_answers_nothing(browser):
    browser.press("y")
    browser.press("y", repeat=True)
    browser.press("n", modifiers=2)
    assert browser.text("#progress-text") == "1 of 20 answered"


def test_typing_in_the_list_of_classes_answers_nothing(browser):
    browser.run("document.getElementById('class').focus()")
    browser.press("n")
    assert browser.text("#progress-text") == "0 of 20 answered"


def keep(browser: Browser, audit, image_id: str, answer: str) -> None:
    """Keep a text as the answer for an image, as another window would."""
    key = f"pool_audit/{audit.attrs['pool']}/{audit.attrs['teacher']}/{image_id}"
    browser.run(f"localStorage.setItem({json.dumps(key)}, {json.dumps(answer)})")


def test_damaged_answers_in_the_browser_are_left_out(browser, audit):
    answers = [
        '{"answer": "yes", "class": 1}',
        '{"answer": "maybe", "class": 1}',
        '{"answer": "no", "class": 99}',
        '{"answer": "no"}',
        "{",
        "null",
        "7",
    ]
    for image_id, answer in zip(audit["id"], answers, strict=False):
        keep(browser, audit, image_id, answer)
    browser.reload()
    assert browser.text("#progress-text") == "1 of 20 answered"


def test_answers_of_another_window_are_not_replaced(browser, audit):
    for image_id in audit["id"][10:]:
        keep(browser, audit, image_id, '{"answer": "no", "class": 1}')
    # This page was opened before, and has not seen them.
    browser.press("y")
    browser.press("y")
    browser.press("u")
    browser.reload()
    assert browser.text("#progress-text") == "11 of 20 answered"


def test_the_teachers_class_and_labeled_images_of_it_are_next_to_the_image(browser, pool, audit):
    number = int(audit["teacher_class"].iloc[0])
    shown = browser.run("document.getElementById('class').selectedOptions[0].textContent")
    assert shown == CLASSES[number]
    n_labeled = int((pool.images.index["label"][:30] == number).sum())
    n_shown = browser.run("document.querySelectorAll('#examples img').length")
    assert n_shown == min(n_labeled, N_EXAMPLES)
    widths = browser.run("[...document.querySelectorAll('img')].map((each) => each.naturalWidth)")
    assert set(widths) == {8}


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width_px", [390, 1280])
def test_the_page_fits_the_window_and_follows_its_colors(browser, width_px, is_dark):
    browser.show_as(width_px, 800, is_dark=is_dark)
    assert browser.run("document.documentElement.scrollWidth") <= width_px
    # Image and keys are there together, without scrolling.
    for selector in ("#picture", "#yes", "#no"):
        bottom = browser.run(f"document.querySelector('{selector}').getBoundingClientRect().bottom")
        assert 0 < bottom <= 800
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(21, 23, 26)" if is_dark else "rgb(255, 255, 255)")


def test_a_class_name_runs_no_script_and_nothing_comes_from_a_network(browser):
    assert browser.run("document.title") == "Audit of the pool"
    for _ in range(N_IMAGES):
        browser.press("y")
    assert browser.run("document.title") == "Audit of the pool"
    requests = [each for each in browser.events if each["method"] == "Network.requestWillBeSent"]
    addresses = {each["params"]["request"]["url"].partition(":")[0] for each in requests}
    assert addresses <= {"file", "data", "blob"}


def test_neither_stratum_nor_score_is_on_the_page(html, audit):
    data = html.partition('id="audit">')[2].partition("</script>")[0]
    images = json.loads(data)["images"]
    assert [each["id"] for each in images] == audit["id"].tolist()
    assert all(set(each) == {"id", "class", "picture"} for each in images)
    assert "stratum" not in html
    assert "http://" not in html
    assert "https://" not in html


def test_equal_inputs_give_an_equal_page(pool, audit, html):
    labeled = ImageSubset.of(pool.images, np.arange(30))
    assert render_audit(audit, pool.images, labeled, pool.teacher) == html


def test_a_pool_without_labeled_images_of_a_class_has_a_page(pool, audit):
    nothing = ImageSubset.of(pool.images, np.arange(0))
    page = render_audit(audit, pool.images, nothing, pool.teacher)
    data = json.loads(page.partition('id="audit">')[2].partition("</script>")[0])
    assert set(map(len, data["examples"].values())) == {0}
