"""Results of single runs in a JSON lines file, so that a stopped benchmark resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def read_runs(file: Path) -> list[Result]:
    """Return the results in a file; none if there is no file yet."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def add_run(file: Path, result: Result) -> None:
    """Append a result to a file."""
    with file.open("a") as opened:
        opened.write(json.dumps(result) + "\n")
