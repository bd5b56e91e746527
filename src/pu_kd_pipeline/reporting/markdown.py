"""Text from data and parameters as Markdown that shows it as it is."""

from __future__ import annotations

import re

from pu_kd_pipeline.masking import visible

# A table would have another cell, and a page another font, a link or an element of HTML.
_MEANINGFUL = re.compile(r"[\\`|*<\[]")


def markdown_text(text: str) -> str:
    """Return Markdown for a text: on one line, with what Markdown would obey escaped."""
    one_line = " ".join(text.split())
    return _MEANINGFUL.sub(r"\\\g<0>", visible(one_line))
