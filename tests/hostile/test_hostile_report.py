"""Ids, class names and titles from hostile data are text on the page of the report, and never markup."""

from __future__ import annotations

import html
from html.parser import HTMLParser
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from pu_kd_pipeline.reporting.html import render_report

EVIL = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7*7 }}", "{% include '/etc/passwd' %}",
        "</table>", "\u202egnp", "a\nb", "&amp;", "javascript:alert(1)", "\0", "]]>", "<!--"]  # fmt: skip


class Tags(HTMLParser):
    """Counts what a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}


def page(text: str) -> str:
    """Return a report in which everything that comes from data or configuration is this text."""
    mpl.use("agg")
    model = {
        "accuracy": 0.5,
        "parameters": 10,
        "size_bytes": 100,
        "per_class_accuracy": {text: 0.5},
    }
    store = {
        "n_images": 1,
        "size_px": 8,
        "channels": 1,
        "n_per_source": {text: 1},
        "n_quarantined": 1,
        "quarantined": {text: 1},
    }
    figure = Figure()
    figure.suptitle(text.replace("$", "").replace("\0", ""))
    return render_report(
        title=text,
        metrics={"teacher": model, "student": {**model, "agreement": 0.5}, "selection": {"rule": text, "n_selected": 1,
                 "n_pool": 2, "class_prior": 0.5, "gain": None}},
        ingestion_report={text: store, "exact_duplicates": {f"{text} and test_images": 1}},
        class_prior={"method": text, "note": text},
        selection_facts={"fingerprints": {text: text}},
        figures={"contact_sheet": figure},
        parameters={text: {text: text}, "teacher": {"classes": [text]}},
    )  # fmt: skip


@pytest.mark.parametrize("text", EVIL)
def test_whatever_data_say_is_text_on_the_page(text: str) -> None:
    harmless, evil = Tags(), Tags()
    harmless.feed(page("harmless"))
    content = page(text)
    evil.feed(content)
    assert evil.tags == harmless.tags
    assert evil.attributes == harmless.attributes
    assert "script" not in evil.tags
    assert str(html.escape(text)) in content or "\n" in text or '"' in text or "'" in text
    assert "root:" not in content


def test_the_page_has_all_of_it_where_a_reader_looks() -> None:
    content: Any = page("<b>id</b>")
    assert content.count("&lt;b&gt;id&lt;/b&gt;") >= 8
    assert "<b>id</b>" not in content
