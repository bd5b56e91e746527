"""`kedro` in processes that are forked from one that has imported the libraries.

Their import takes a third to a half of the time of a short run. Modules of this project are
imported by each process anew.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_LIBRARIES = [
    "kedro.framework.cli.cli",
    "kedro.framework.session",
    "matplotlib.backends.backend_agg",
    "mlflow.pytorch",
    "pandas",
    "pyarrow.parquet",
    "scipy.optimize",
    "scipy.stats",
    "torch",
    "torch._dynamo",
]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(_LIBRARIES)


def run_forked(
    arguments: Sequence[str], *, folder: Path, environment: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Return what `python -m kedro ARGUMENTS` returned and printed.

    Args:
        arguments: of the command.
        folder: the working directory.
        environment: all variables; those that Python reads at its start have no effect.
        timeout_s: after this time the process is killed.
    """
    command = [sys.executable, "-m", "kedro", *arguments]
    with tempfile.TemporaryDirectory() as place:
        output, errors = Path(place) / "stdout", Path(place) / "stderr"
        process = _FORKS.Process(
            target=_run, args=(list(arguments), folder, dict(environment), output, errors)
        )
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout_s, output.read_bytes())
        said = (output.read_text(encoding="utf-8"), errors.read_text(encoding="utf-8"))
        return subprocess.CompletedProcess(command, process.exitcode, *said)


def _run(
    arguments: list[str], folder: Path, environment: dict[str, str], output: Path, errors: Path
) -> None:
    for number, file in ((1, output), (2, errors)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    assert "pu_kd_pipeline" not in sys.modules
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = ["kedro", *arguments]
    try:
        runpy.run_module("kedro", run_name="__main__", alter_sys=True)
    finally:
        # A forked process ends without them.
        atexit._run_exitfuncs()
