"""Runs `kedro run` many times in one process: starting it anew for every case would cost most of the time.

`python run_cases.py CONF CASES`: CASES is JSON, name -> further arguments; each prints one line of JSON.
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

PROJECT = Path(__file__).resolve().parents[2]


def main(conf: str, cases: dict[str, list[str]]) -> None:
    """Run the cases in turn."""
    os.chdir(PROJECT)
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(PROJECT)
    from pu_kd_pipeline.cli.commands import run

    for name, arguments in cases.items():
        said, started = io.StringIO(), time.monotonic()
        code: object = 0
        with redirect_stdout(said), redirect_stderr(said):
            try:
                run.main(
                    args=[f"--conf-source={conf}", f"--env={name}", *arguments],
                    standalone_mode=False,
                )
            except SystemExit as stop:
                code = stop.code
            except BaseException:
                code = "traceback"
                traceback.print_exc()
        print(
            json.dumps(
                {
                    "name": name,
                    "code": code,
                    "said": said.getvalue(),
                    "seconds": time.monotonic() - started,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
