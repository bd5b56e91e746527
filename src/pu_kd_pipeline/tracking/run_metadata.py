"""Run metadata for experiment trackers."""

from __future__ import annotations

import contextlib
import getpass
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pu_kd_pipeline.reporting.summary import model_rows, selection_rows


def git_commit(folder: Path) -> str | None:
    """Return the commit that `folder` stands at; None outside a repository and without git."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    return None


def user_name() -> str | None:
    """Return who runs this; None for a user id without a name, as in containers."""
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return None


def requirement(package: str) -> str:
    """Return "package==version" without a local part such as +cpu, which no index offers."""
    return f"{package}=={version(package).split('+')[0]}"


def markdown_note(*sentences: str, metrics: Mapping[str, Any]) -> str:
    """Return the sentences, each a paragraph, and the metrics table where there is one."""
    parts = [*sentences]
    if metrics:
        parts += [
            _markdown_table(model_rows(metrics)),
            _markdown_table([["selection", ""], *selection_rows(metrics)]),
        ]
    return "\n\n".join(part for part in parts if part)


def _markdown_table(rows: list[list[str]]) -> str:
    header, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([header, "|" + " --- |" * len(rows[0]), *body])
