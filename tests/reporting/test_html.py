"""The HTML page: complete, self-contained, the same for equal runs."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from html.parser import HTMLParser

import pytest

from pu_kd_pipeline.params.data_ingestion import ImageSource
from pu_kd_pipeline.reporting.figures import REPORT_FIGURES
from pu_kd_pipeline.reporting.html import _parameter_rows, _texts, render_report
from tests.reporting.toy_run import INGESTION, PRIOR, metrics_of, report


class Page(HTMLParser):
    """Collects the tags of a page and checks that they close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []

        # Fails in `handle_endtag` where tags close in another order than they opened.
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        # HTML has tags that never close.
        if tag not in ("meta", "img", "br", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        innermost = self._open.pop()
        assert innermost == tag

    def attributes_of(self, wanted_tag: str) -> list[dict[str, str]]:
        """Return the attributes of each such tag; one without a value has an empty one."""
        found = []
        for tag, attributes in self.tags:
            if tag == wanted_tag:
                found.append({name: value or "" for name, value in attributes.items()})
        return found


def test_the_page_refers_to_nothing_outside_of_it() -> None:
    text = report()["report"]
    # Base64 may hold any of these strings by chance.
    without_pixels = re.sub(r"base64,[^\"]+", "", text)
    assert not re.search(r"https?:|//|@import|url\(|<link|<base|<iframe", without_pixels)
    assert len(text) < 3_000_000


def test_a_browser_may_run_the_script_of_the_page_and_no_other() -> None:
    text = report()["report"]
    page = Page(text)
    # No file, and besides the script only data.
    scripts = page.attributes_of("script")
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [meta for meta in page.attributes_of("meta") if "http-equiv" in meta]
    assert policy["content"] == (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        "style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    # No handler in an attribute, which the policy would refuse.
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]


def test_finding_and_evidence_of_every_figure_are_on_the_page() -> None:
    outputs = report()
    text = html.unescape(outputs["report"]).replace("\u00a0", " ")
    names = [figure.name for figure in REPORT_FIGURES]
    assert len(names) == 6
    # The contact sheet is shown as images; its legend is about the figure.
    names.remove("contact_sheet")
    for name in names:
        for sentence in _texts(outputs[name]):
            assert " ".join(sentence.split())[1:] in text


def test_figures_without_a_section_are_embedded_with_an_alternative_text() -> None:
    figures = {figure.name: report()[figure.name] for figure in REPORT_FIGURES}
    content = render_report("A run", metrics_of(), INGESTION, PRIOR, {}, figures, {})
    page = Page(content)
    images = [image for image in page.attributes_of("img") if "id" not in image]
    assert len(images) == len(REPORT_FIGURES) == 6
    for image in images:
        # Finding and evidence, not just a name.
        assert len(image["alt"]) > 30
        encoded = image["src"].removeprefix("data:image/png;base64,")
        assert base64.b64decode(encoded).startswith(b"\x89PNG")
    # Only photos keep their colors on a dark page.
    kinds = {figure["id"]: figure["class"] for figure in page.attributes_of("figure")}
    assert kinds.pop("contact_sheet") == "photos"
    assert set(kinds.values()) == {"chart"}
    assert "prefers-color-scheme: dark" in content


def test_every_image_is_embedded_once_and_has_a_text() -> None:
    page = Page(report()["report"])
    images = [image for image in page.attributes_of("img") if "id" not in image]
    numbers = [image["data-picture"] for image in images if "src" in image]
    assert len(numbers) == len(set(numbers)) > 20
    copies = {image["data-copy"] for image in images if "src" not in image}
    assert copies <= set(numbers)
    for image in images:
        assert image["alt"]


@pytest.mark.parametrize(
    "text",
    [
        "60 of 300",
        "BBE, 90 % interval, from 100 positives and 300 unlabeled",
        "truncated 2",
        "8 × 8 px, gray, bicubic, center of 9 px",
        "Copies of test images among the pool images: 3 exact, 1 near.",
        "pu_training.epochs",
        "&lt;b&gt;",  # a parameter, escaped
        "kedro run --pipeline=full",
        "3fa9",  # a fingerprint
        "7eac",  # the hash of the teacher
        "57d7",  # and of the student
    ],
)
def test_the_page_reports_selection_data_and_parameters(text: str) -> None:
    assert text in report()["report"]


def test_a_title_is_escaped() -> None:
    text = report(title="<script>alert(1)</script>")["report"]
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_no_credentials_of_titles_and_typed_parameters_are_on_the_page() -> None:
    options = {"password": "hunter2", "url": "https://user:hunter3@host/x?token=hunter4"}
    source = ImageSource(type="torchvision", dataset="MNIST", options=options)
    folder = ImageSource(type="folder", path="s3://AKIA:hunter5@bucket")
    rows = dict(
        _parameter_rows(
            {"source": source, "folder": folder, "teacher": {"output": {"key": "logits"}}}
        )
    )
    assert "hunter" not in str(rows)
    assert rows["teacher.output.key"] == "logits"
    assert "hunter" not in report(title="https://user:hunter6@host")["report"]


def test_equal_runs_give_an_equal_page() -> None:
    uncached = report.__wrapped__()
    assert uncached["report"] == report()["report"]


def test_a_run_without_random_student_or_truth_has_a_page() -> None:
    text = report(gain=None, has_truth=False, n=50)["report"]
    assert "No student was distilled from random images" in text
    assert "hidden truth" not in text
    assert "Precision and recall need the truth of all pool images" in text


@pytest.mark.parametrize(
    ("names", "is_excluded", "text"),
    [
        ("pool and test", True, "No student learned from these copies"),
        ("pool and test", False, "The students may have learned from copies of test images"),
        ("labeled and test", False, "The students may have learned from copies of test images"),
        ("teacher_training and test", False, "its test accuracy may be too high"),
        ("labeled and pool", False, "No image is a copy of a test image."),
    ],
)
def test_the_page_reports_what_copies_of_test_images_mean(
    names: str, is_excluded: bool, text: str
) -> None:
    page = render_report(
        title="Copies",
        metrics=metrics_of(),
        ingestion_report={"duplicates": {names: {"exact": 1, "near": None}}},
        class_prior=PRIOR,
        selection_facts={"exclude_test_duplicates": is_excluded},
        figures={},
        parameters={},
    )
    assert text in page
