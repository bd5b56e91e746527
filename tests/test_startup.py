"""Kedro's commands start quickly: nothing heavy is imported before a node needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
CHECK = """
import sys

HEAVY = {"torch", "torchvision", "mlflow", "sklearn", "matplotlib", "scipy", "ray", "onnx"}
import pu_kd_pipeline
assert not {"pandas", "kedro", *HEAVY} & set(sys.modules), "import pu_kd_pipeline"

import contextlib
import io
from pathlib import Path
from kedro.framework.cli.cli import KedroCLI

kedro = KedroCLI(Path.cwd())
for command in (["registry", "list"], ["registry", "describe", "full"], ["run", "--help"]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        kedro.main(command)
    assert out.getvalue(), command
    assert not HEAVY & set(sys.modules), (command, HEAVY & set(sys.modules))

from pu_kd_pipeline import datasets, progress, settings
from pu_kd_pipeline.params import comparison, environment, validation
from pu_kd_pipeline.tracking import client
assert not HEAVY & set(sys.modules), HEAVY & set(sys.modules)
"""

STATISTICS = """
import sys

from pu_kd_pipeline.learning import class_order, paired, proportions
assert "scipy" not in sys.modules
proportions.mcnemar_p_value(3, 1)
assert "scipy.stats" in sys.modules
"""

FIRST_NODE = """
import os
import sys
from pathlib import Path
from kedro.framework.cli.cli import KedroCLI
from kedro.pipeline.node import Node

HEAVY = {"torch", "torchvision", "mlflow", "sklearn", "matplotlib", "scipy", "ray", "onnx"}


def stop(self, *_, **__):
    print("reached", self.name, sorted(HEAVY & set(sys.modules)), flush=True)
    os._exit(0)


Node.run = stop
KedroCLI(Path.cwd()).main(["run", *sys.argv[1:]])
"""


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process, where nothing is imported yet."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_commands_import_neither_torch_nor_mlflow():
    result = run_script(CHECK)
    output = result.stdout + result.stderr

    # The assertions are in the script: it fails with the modules that were imported.
    assert result.returncode == 0, output


def test_statistics_import_scipy_where_they_compute():
    result = run_script(STATISTICS)

    assert result.returncode == 0, result.stderr


def test_a_run_reaches_its_first_node_before_anything_heavy_is_imported(tmp_path):
    result = run_script(FIRST_NODE, f"--params=data={tmp_path}")
    printed = result.stdout.rstrip()

    assert "reached data_ingestion." in printed, result.stderr
    # The list of heavy modules that were imported is empty.
    assert printed.endswith("[]"), printed
