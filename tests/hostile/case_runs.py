"""The outcomes of many `kedro run`, each with an environment of its own, from one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("run_cases.py")


def outcomes_of(
    cases: Mapping[str, Sequence[str]],
    conf: Path,
    *,
    timeout_s: float,
    columns: int = 250,
    modules: Path | None = None,
    working: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Return for each case what `run_cases.run_case` returns.

    Args:
        cases: environment -> further arguments of `kedro run`.
        conf: the configuration folder with these environments.
        timeout_s: time limit of all cases together.
        columns: of the log, wide enough that it does not break the messages into lines.
        modules: a folder that the process imports modules from.
        working: the working directory of the process; None: that of the tests.
    """
    environment = {**os.environ, "COLUMNS": str(columns)}
    if modules is not None:
        paths = [str(modules), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(conf), json.dumps(cases)],
        env=environment,
        cwd=working,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    found = {}
    for line in result.stdout.splitlines():
        # Kedro prints lines of its own between them.
        if line.startswith('{"name"'):
            outcome = json.loads(line)
            found[outcome["name"]] = outcome
    assert found.keys() == cases.keys(), result.stdout + result.stderr
    return found
