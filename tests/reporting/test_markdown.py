"""Names from data in Markdown."""

from __future__ import annotations

import pytest

from pu_kd_pipeline.reporting.markdown import markdown_text


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("plain_name, 5 % ± 1", "plain_name, 5 % ± 1"),
        ("a|b", r"a\|b"),
        ("a\n\n| b", r"a \| b"),
        ("`code` *bold*", r"\`code\` \*bold\*"),
        ("[x](y) <b>", r"\[x](y) \<b>"),
        ("a\\", r"a\\"),
        ("\x1b[31m", r"\\x1b\[31m"),
    ],
)
def test_what_markdown_would_obey_is_escaped(text: str, markdown: str) -> None:
    assert markdown_text(text) == markdown
