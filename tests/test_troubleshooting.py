"""The messages that the page of troubleshooting quotes are those of the code."""

from __future__ import annotations

import ast
import re

from tests.documentation import PROJECT

PAGE = PROJECT / "docs" / "troubleshooting.md"


def texts_of_the_code() -> list[str]:
    """Return every text in src/; those of an f-string without its values."""
    texts = []
    for path in sorted((PROJECT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def quoted_messages() -> list[str]:
    return re.findall(r'^### "(.+)"$', PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_every_quoted_message_is_one_of_the_code() -> None:
    texts = texts_of_the_code()
    quoted = quoted_messages()

    assert 20 <= len(quoted) <= 35

    for message in quoted:
        found = [text for text in texts if message in text]
        assert found, message
        # Part of a longer text, such as a docstring, would say nothing of a message.
        assert any(len(text) < 1000 for text in found), message


def test_every_heading_below_a_section_is_a_message_with_an_answer() -> None:
    text = PAGE.read_text(encoding="utf-8")
    headings = re.findall(r"^### .+$", text, flags=re.MULTILINE)
    answers = re.findall(r"^### .+\n\n(\S.+)$", text, flags=re.MULTILINE)

    assert len(headings) == len(quoted_messages()) == len(answers)
