"""What browsers show of stored data: JSON values for tables, and pages without their styles."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.storage.previews import page_preview, table_preview


def test_a_table_has_values_that_json_has():
    vectors = [np.arange(6, dtype=np.float32) / 3, np.array([1, 2])]
    table = pd.DataFrame(
        {
            "id": ["a", None],
            "score": np.array([1 / 3, np.nan], dtype=np.float32),
            "n": [2, 3],
            "kept": [True, False],
            "vector": vectors,
            "time": [pd.Timestamp(2026, 1, 2), pd.NaT],
            7: [np.inf, -np.inf],
        }
    )
    preview = table_preview(table)
    assert json.loads(json.dumps(preview, allow_nan=False)) == preview
    assert preview["columns"] == ["id", "score", "n", "kept", "vector", "time", "7"]
    first, second = preview["data"]
    assert first[1:4] == [0.333333, 2, True]
    assert first[4] == "[0, 0.3333, 0.6667, 1, … 6 values]"
    assert second[4] == "[1, 2]"
    assert second[1] is None
    assert (first[6], second[6]) == ("inf", "-inf")


def test_an_empty_table_has_no_rows():
    assert table_preview(pd.DataFrame()) == {"index": [], "columns": [], "data": []}


@pytest.mark.parametrize(
    ("text", "is_html", "shown"),
    [
        (
            "<html><head><style>p {}</style></head><body class='x'><style>b {}</style>"
            '<p style="color: red">a<script>alert(1)</script></p></body></html>',
            True,
            "<p>a</p>",
        ),
        ("<p>no body</p>", True, "<p>no body</p>"),
        ("a | <b>", False, "<pre>a | &lt;b&gt;</pre>"),
    ],
)
def test_a_page_is_shown_without_its_styles(text, is_html, shown):
    assert page_preview(text, is_html=is_html) == shown
