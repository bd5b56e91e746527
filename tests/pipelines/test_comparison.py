"""A comparison through the command line: killed in the middle, continued, and told."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pu_kd_pipeline.storage.table import read_table
from tests.conftest import PROJECT, QUICK, run_kedro

pytestmark = pytest.mark.xdist_group("finished_run")

LEFT_OUT = ("kd_original", "all", "confident", "random_s2")
GRID = (
    "comparison.labeled_per_class=[2]",
    "comparison.seeds=[0]",
    *(f"comparison.variants.{name}=null" for name in LEFT_OUT),
)
N_CELLS = 8


@pytest.fixture
def data(finished_run: Path, folder: Path) -> Path:
    """A data folder that has what a comparison reads, and an empty MLflow store."""
    for layer in ("02_intermediate", "04_feature", "06_models"):
        (folder / layer).symlink_to(finished_run / layer)
    return folder


def test_a_killed_comparison_continues_with_what_is_left(data):
    folder = data / "07_model_output" / "comparison_cells"
    params = ",".join((f"data={data}", *QUICK, *GRID, "tracking=false"))
    process = subprocess.Popen(
        [sys.executable, "-m", "kedro", "run", "--pipeline=comparison", f"--params={params}"],
        cwd=PROJECT,
        env={**os.environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(finished := sorted(folder.glob("*.parquet"))) < 2:
        assert process.poll() is None, (
            f"it ended with {process.returncode} before a second cell was there"
        )
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in sorted(folder.glob("*.parquet"))}
    assert not (data / "08_reporting").exists()

    result = run_kedro("--pipeline=comparison", data=data, params=GRID)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    results = read_table(data / "08_reporting" / "comparison_results.parquet")
    assert len(finished) < len(results) == len(list(folder.glob("*.parquet"))) == N_CELLS
    assert results["failure"].isna().all()
    assert f"cell {len(finished) + 1} of {N_CELLS}" in result.stdout
    assert f"cell {len(finished)} of {N_CELLS}" not in result.stdout
    # what a person reads
    page = (data / "08_reporting" / "comparison_table.md").read_text()
    assert all(f"| {name} | " in page.replace("*", "") for name in results["variant"])
    assert (data / "08_reporting" / "comparison_plot.png").stat().st_size > 10_000
    with sqlite3.connect(data / "mlflow" / "mlflow.db") as store:
        runs = dict(store.execute("SELECT name, status FROM runs").fetchall())
        curves = store.execute(
            "SELECT DISTINCT key FROM metrics WHERE key LIKE 'distillation/%'"
        ).fetchall()
    assert runs.pop("comparison (local)") == "FINISHED"
    assert set(runs.values()) == {"FINISHED"}
    assert len(runs) == N_CELLS - len(
        finished
    )  # the first run told of the others before it was killed
    assert curves == []
