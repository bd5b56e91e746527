"""Run `kedro run` many times in one process, since starting Python is most of the cost of a case.

`python run_cases.py CONF CASES`: CASES is JSON that maps a name to further arguments. Each case
prints one line of JSON: name, code, what it printed, and seconds.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]


def run_case(conf: str, name: str, arguments: list[str]) -> dict[str, Any]:
    """Run one case and return how it ended."""
    from pu_kd_pipeline.cli.commands import run

    output = io.StringIO()
    start = time.monotonic()
    code: object = 0
    with redirect_stdout(output), redirect_stderr(output):
        try:
            command = [f"--conf-source={conf}", f"--env={name}", *arguments]
            run.main(args=command, standalone_mode=False)
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            # A user would see this traceback; the tests then fail on it.
            code = "traceback"
            traceback.print_exc()
    seconds = time.monotonic() - start
    return {"name": name, "code": code, "said": output.getvalue(), "seconds": seconds}


def main(conf: str, cases: dict[str, list[str]]) -> None:
    """Run the cases in turn."""
    os.chdir(PROJECT)
    from kedro.framework.startup import bootstrap_project

    # Before `run_case` imports the command: Kedro must know the project first.
    bootstrap_project(PROJECT)
    for name, arguments in cases.items():
        print(json.dumps(run_case(conf, name, arguments)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
