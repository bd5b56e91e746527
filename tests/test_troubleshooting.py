"""The messages that the page of troubleshooting quotes are those of the code."""

from __future__ import annotations

import ast
import re

from tests.documentation import PROJECT

PAGE = PROJECT / "docs" / "troubleshooting.md"


def code_texts(source: str) -> list[str]:
    """Return every text in a module but docstrings; those of an f-string without its values."""
    tree = ast.parse(source)
    # A text that stands alone is a docstring, of a module, class, function or attribute.
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = []
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and node not in docstrings:
            texts.append(node.value)
    return texts


def all_code_texts() -> list[str]:
    """Return the texts of all modules in src/."""
    texts = []
    for path in sorted((PROJECT / "src").rglob("*.py")):
        texts += code_texts(path.read_text(encoding="utf-8"))
    return texts


def quoted_messages() -> list[str]:
    return re.findall(r'^### "(.+)"$', PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_texts_of_docstrings_are_no_messages() -> None:
    source = (
        '"""Module."""\ndef f(x):\n    """Function."""\n    raise ValueError(f"no {x} there")\n'
    )

    assert code_texts(source) == ["no ", " there"]


def test_every_quoted_message_is_one_of_the_code() -> None:
    texts = all_code_texts()
    quoted = quoted_messages()

    assert 20 <= len(quoted) <= 35

    for message in quoted:
        assert any(message in text for text in texts), message


def test_every_heading_below_a_section_is_a_message_with_an_answer() -> None:
    text = PAGE.read_text(encoding="utf-8")
    headings = re.findall(r"^### .+$", text, flags=re.MULTILINE)
    answers = re.findall(r"^### .+\n\n(\S.+)$", text, flags=re.MULTILINE)

    assert len(headings) == len(quoted_messages()) == len(answers)
