"""Ids, class names and titles from hostile data are text on the page, and never markup."""

from __future__ import annotations

import html
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from pu_kd_pipeline.masking import visible
from pu_kd_pipeline.reporting.html import render_report

EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    # Jinja must not expand what it inserts.
    "{{ 7*7 }}",
    "{% include '/etc/passwd' %}",
    "</table>",
    "\u202egnp",  # text after this mark runs from right to left
    "a\nb",
    "&amp;",
    "javascript:alert(1)",
    "\0",
    "]]>",
    "<!--",
]


class Tags(HTMLParser):
    """Counts the tags and attributes that a browser would see."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}


def page_with(text: str) -> str:
    """Return a report in which everything from data or configuration is this text."""
    model = {
        "accuracy": 0.5,
        "parameters": 10,
        "size_bytes": 100,
        "per_class_accuracy": {text: 0.5},
    }
    selection = {
        "rule": text,
        "n_selected": 1,
        "n_pool": 2,
        "class_prior": 0.5,
        "gain": None,
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
    # "$" starts a formula in matplotlib, and no font has a glyph for NUL.
    figure.suptitle(text.replace("$", "").replace("\0", ""))
    return render_report(
        title=text,
        metrics={
            "teacher": model,
            "student": {**model, "agreement": 0.5},
            "selection": selection,
        },
        ingestion_report={text: store, "exact_duplicates": {f"{text} and test_images": 1}},
        class_prior={"method": text, "note": text},
        selection_facts={"fingerprints": {text: text}},
        figures={"contact_sheet": figure},
        parameters={text: {text: text}, "teacher": {"classes": [text]}},
    )


@pytest.mark.parametrize("text", EVIL)
def test_markup_in_data_is_text_on_the_page(text: str) -> None:
    content = page_with(text)
    harmless = Tags(page_with("harmless"))
    evil = Tags(content)

    assert evil.counts == harmless.counts
    assert evil.attributes == harmless.attributes
    assert evil.counts["script"] == 2  # the data of the page, and its script
    assert "root:" not in content  # the first line of /etc/passwd

    # Line breaks and quotation marks have several forms of escape.
    has_one_form = not set("\n\"'") & set(text)
    if has_one_form:
        assert html.escape(visible(text)) in content
    # Not even where it is no markup: it would reorder what follows.
    assert "\u202e" not in content


def test_the_page_shows_escaped_text_in_all_places() -> None:
    content = page_with("<b>id</b>")
    assert content.count("&lt;b&gt;id&lt;/b&gt;") >= 8
    assert "<b>id</b>" not in content
