"""Run metadata for experiment trackers."""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pu_kd_pipeline.provenance.commits import git_output
from pu_kd_pipeline.reporting.findings import doubts_of, findings_of
from pu_kd_pipeline.reporting.markdown import markdown_text
from pu_kd_pipeline.reporting.summary import model_rows, selection_rows


def git_commit(folder: Path) -> str | None:
    """Return the commit checked out in `folder`; None outside a repository and without git."""
    return git_output(folder, "rev-parse", "HEAD")


def user_name() -> str | None:
    """Return the user's name; None for a user id without a name, as in containers."""
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return None


def requirement(package: str) -> str:
    """Return "package==version", without a local part such as +cpu, which no index offers."""
    installed_version = version(package)
    public_version, _, _ = installed_version.partition("+")
    return f"{package}=={public_version}"


def markdown_note(*sentences: str, metrics: Mapping[str, Any]) -> str:
    """Return the sentences, then what the metrics say in sentences and tables, if there are any."""
    parts = [sentence for sentence in sentences if sentence]
    if metrics:
        parts += [markdown_text(sentence) for sentence in findings_of(metrics)]
        parts += [f"**Doubtful:** {markdown_text(sentence)}" for sentence in doubts_of(metrics)]
        of_models = model_rows(metrics)
        parts.append(_markdown_table(of_models))
        # The first row of a Markdown table is its header, which these rows lack.
        of_selection = [["selection", ""], *selection_rows(metrics)]
        parts.append(_markdown_table(of_selection))
    return "\n\n".join(parts)


def _markdown_table(rows: list[list[str]]) -> str:
    lines = []
    for row in rows:
        cells = " | ".join(markdown_text(cell) for cell in row)
        lines.append(f"| {cells} |")
    ruler = "|" + " --- |" * len(rows[0])
    lines.insert(1, ruler)
    return "\n".join(lines)
