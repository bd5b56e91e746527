"""What a log wants to know of a run, without knowing any log: flat parameters, the commit, a table's digest, a note."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pu_kd_pipeline.infra.summary import model_rows, selection_rows

if TYPE_CHECKING:
    import pandas as pd


def flatten(tree: Any, separator: str = ".", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (joined key, leaf) of nested mappings and models; lists of mappings are counted through."""
    if isinstance(tree, BaseModel):
        tree = tree.model_dump(mode="json")
    if isinstance(tree, list | tuple) and any(isinstance(item, Mapping | BaseModel) for item in tree):
        tree = dict(enumerate(tree))
    if isinstance(tree, Mapping) and (tree or not prefix):
        for key, value in tree.items():
            yield from flatten(value, separator, f"{prefix}{separator if prefix else ''}{key}")
    else:
        yield prefix, tree


def git_commit(folder: Path) -> str | None:
    """Return the commit that `folder` stands at; None outside a repository and without git."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return None


def user_name() -> str | None:
    """Return who runs this; None for a user id without a name, as in containers."""
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return None


def requirement(package: str) -> str:
    """Return "package==version" without a local part such as +cpu, which no index offers."""
    return f"{package}=={version(package).split('+')[0]}"


def table_digest(table: pd.DataFrame) -> str:
    """Return a hash of a table's rows, in order."""
    from pandas.util import hash_pandas_object

    return hashlib.sha256(hash_pandas_object(table).to_numpy().tobytes()).hexdigest()


def markdown_note(*sentences: str, metrics: Mapping[str, Any]) -> str:
    """Return the sentences, each a paragraph, and the metrics table where there is one."""
    parts = [*sentences]
    if metrics:
        parts += [_markdown_table(model_rows(metrics)), _markdown_table([["selection", ""], *selection_rows(metrics)])]
    return "\n\n".join(part for part in parts if part)


def _markdown_table(rows: list[list[str]]) -> str:
    header, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([header, "|" + " --- |" * len(rows[0]), *body])
