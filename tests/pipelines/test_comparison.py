"""A comparison through the command line: killed in the middle, continued, and reported."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pu_kd_pipeline.models.model import load_model
from pu_kd_pipeline.storage.table import read_table
from tests.conftest import PROJECT, QUICK, run_kedro

pytestmark = pytest.mark.xdist_group("finished_run")

REMOVED_VARIANTS = ("kd_original", "all", "confident", "random_s2")
GRID = [
    "comparison.labeled_per_class=[2]",
    "comparison.seeds=[0]",
]
for _variant in REMOVED_VARIANTS:
    # null removes a variant of conf/base.
    GRID.append(f"comparison.variants.{_variant}=null")
N_CELLS = 8


@pytest.fixture
def data(finished_run: Path, folder: Path) -> Path:
    """A data folder with what a comparison reads, and an empty MLflow store."""
    for layer in ("02_intermediate", "04_feature", "05_model_input", "06_models"):
        (folder / layer).symlink_to(finished_run / layer)
    return folder


def cell_times(folder: Path) -> dict[Path, int]:
    """Return when the table of each finished cell was written."""
    times = {}
    for path in sorted(folder.glob("*.parquet")):
        times[path] = path.stat().st_mtime_ns
    return times


def test_a_killed_comparison_continues_with_what_is_left(data):
    folder = data / "07_model_output" / "comparison_cells"
    params = ",".join([f"data={data}", *QUICK, *GRID, "tracking=false"])
    process = subprocess.Popen(
        [sys.executable, "-m", "kedro", "run", "--pipeline=comparison", f"--params={params}"],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(cell_times(folder)) < 2:
        assert process.poll() is None, f"exit code {process.returncode} before the second cell"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)

    assert process.wait(timeout=30) == -signal.SIGKILL

    finished = cell_times(folder)

    assert not (data / "08_reporting").exists()

    result = run_kedro("--pipeline=comparison", data=data, params=("tracking=true", *GRID))

    assert result.returncode == 0, result.stdout + result.stderr

    times = cell_times(folder)

    assert len(times) == N_CELLS
    assert finished.items() <= times.items()

    results = read_table(data / "08_reporting" / "comparison_results.parquet")

    assert len(finished) < len(results) == N_CELLS
    assert results["failure"].isna().all()
    assert f"cell {len(finished) + 1} of {N_CELLS}" in result.stdout
    assert f"cell {len(finished)} of {N_CELLS}" not in result.stdout

    page = (data / "08_reporting" / "comparison_table.md").read_text()
    # Without the asterisks of bold text.
    page = page.replace("*", "")
    for name in results["variant"]:
        assert f"| {name} | " in page

    html = (data / "08_reporting" / "comparison.html").read_text()
    assert load_model(data / "06_models" / "teacher_model").fingerprint() in html
    assert "missing: run" not in html
    assert f"Comparison: {data / '08_reporting' / 'comparison.html'}" in result.stdout

    assert (data / "08_reporting" / "comparison_plot.png").stat().st_size > 10_000

    with sqlite3.connect(data / "mlflow" / "mlflow.db") as store:
        runs = dict(store.execute("SELECT name, status FROM runs").fetchall())
        curves = store.execute(
            "SELECT DISTINCT key FROM metrics WHERE key LIKE 'distillation/%'"
        ).fetchall()
        reused = store.execute(
            "SELECT end_time FROM runs JOIN tags USING (run_uuid) "
            "WHERE key = 'computed_by_an_earlier_run'"
        ).fetchall()
        [(note, start)] = store.execute(
            "SELECT value, start_time FROM tags JOIN runs USING (run_uuid) "
            "WHERE key = 'mlflow.note.content' AND name LIKE '%comparison (local)'"
        ).fetchall()

    assert runs.pop("seed 0 · comparison (local)") == "FINISHED"
    assert set(runs.values()) == {"FINISHED"}
    # The killed run was not tracked; its cells are there, at the time when it computed them.
    assert len(runs) == N_CELLS
    assert len(reused) == len(finished)
    assert all(end < start for (end,) in reused)
    # Its tables are on the run's page.
    assert "| --- |" in note
    assert curves == []
