"""`kedro run` again: nothing where nothing changed, what changed and what follows, and one run at a time."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PROJECT, QUICK, run_kedro

pytestmark = pytest.mark.xdist_group("finished_run")


@pytest.fixture(scope="module")
def data(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, which counts as finished there too."""
    folder = tmp_path_factory.mktemp("again") / "data"
    shutil.copytree(finished_run, folder, copy_function=shutil.copy2)
    return folder


def nodes_that_ran(text: str) -> dict[str, str]:
    """Return node -> why, as the log of a run says."""
    flat = re.sub(
        r"\s+", " ", re.sub(r"(INFO|WARNING) +", "@", re.sub(r"\[[\d/]+ [\d:]+\] ", "", text))
    )
    return dict(re.findall(r"@([\w.]+) runs: ([^@]+?)(?= @|$)", flat))


def contents(data: Path) -> dict[str, str]:
    return {
        path.relative_to(data).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for layer in data.glob("0*")
        for path in sorted(layer.rglob("*"))
        if path.is_file()
    }


def test_a_second_full_run_runs_nothing_and_says_so(data):
    before = contents(data)
    result = run_kedro("--pipeline=full", data=data)
    assert result.returncode == 0, result.stdout + result.stderr
    assert nodes_that_ran(result.stdout) == {}
    assert "Nothing to do: all" in result.stdout
    assert "selection gain" in result.stdout  # what the run was worth is told all the same
    assert contents(data) == before
    with sqlite3.connect(data / "mlflow" / "mlflow.db") as store:
        notes = store.execute(
            "SELECT value FROM tags JOIN runs USING (run_uuid) WHERE key = 'mlflow.note.content' "
            "ORDER BY start_time DESC"
        ).fetchall()
    assert "**Nothing to do:**" in notes[0][0]
    assert "**Nothing to do:**" not in notes[1][0]


@pytest.mark.parametrize(
    ("victim", "node"),
    [
        ("02_intermediate/pool_images/*.npy", "data_ingestion.ingest_pool_images"),
        ("04_feature/pool_features/*.parquet", "feature_extraction.extract_pool_features"),
        ("05_model_input/manifest.parquet", "subset_materialization.materialize_subset"),
    ],
)
def test_a_damaged_part_of_an_output_is_made_again_and_nothing_else(data, victim, node):
    before = contents(data)
    file = sorted(data.glob(victim))[0]
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    file.write_bytes(damaged)
    result = run_kedro("--pipeline=full", data=data)
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(ran := nodes_that_ran(result.stdout)) == [node]
    assert "is not what was written" in ran[node]
    assert contents(data) == before


def test_a_changed_parameter_runs_what_reads_it_and_what_follows(data):
    from kedro.framework.project import configure_project, pipelines

    configure_project("pu_kd_pipeline")
    full = pipelines["full"]
    readers = {node.name for node in full.nodes if "params:class_weighting" in node.inputs}
    following = {node.name for node in full.from_nodes(*readers).nodes}
    planned = subprocess.run(
        [sys.executable, "-m", "kedro", "explain", "--pipeline=full",
         f"--params={','.join((f'data={data}', *QUICK, 'class_weighting.epsilon=0.3'))}"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rows = [line.split(maxsplit=1) for line in planned.splitlines() if re.match(r"\w+\.\w+ ", line)]
    would_run = {name for name, why in rows if why.strip() != "-"}
    assert would_run == following | {"reporting.report_run"}  # which reads all parameters
    result = run_kedro("--pipeline=full", data=data, params=("class_weighting.epsilon=0.3",))
    assert result.returncode == 0, result.stdout + result.stderr
    ran = nodes_that_ran(result.stdout)
    assert readers <= set(ran) <= would_run
    assert all(ran[name] == "parameter class_weighting.epsilon 0.1 → 0.3" for name in readers)
    assert ran["distillation.distill_student"] == "input weight_vectors changed"


def test_force_runs_every_node(data):
    result = run_kedro("--pipeline=pool_scoring", "--force", data=data)
    assert result.returncode == 0, result.stdout + result.stderr
    assert nodes_that_ran(result.stdout) == {"pool_scoring.score_pool": "it was asked for (force)"}
    result = run_kedro("--pipeline=pool_scoring", "--force", "--runner=SequentialRunner", data=data)
    assert result.returncode == 1
    assert "leave one of them out" in result.stderr


def test_two_runs_at_once_on_one_folder_the_second_is_refused(data):
    params = ",".join((f"data={data}", *QUICK, "distillation.n_updates=100000", "tracking=false"))
    command = [
        sys.executable,
        "-m",
        "kedro",
        "run",
        "--pipeline=distillation",
        f"--params={params}",
    ]
    first = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        assert first.stdout is not None
        for line in first.stdout:
            if "distillation:" in line:  # it learns
                break
        second = run_kedro("--pipeline=full", data=data)
        assert second.returncode == 1
        told = re.sub(r"\s+", " ", second.stderr)
        assert "Error: another run" in told
        assert f"process {first.pid} on" in told
        assert "Traceback" not in second.stdout + second.stderr
        reading_alone = run_kedro("--pipeline=pool_scoring", data=data)
        assert reading_alone.returncode == 0, reading_alone.stderr
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=30)
    deadline = time.monotonic() + 10
    while (
        after := run_kedro("--pipeline=pool_scoring", data=data)
    ).returncode and time.monotonic() < deadline:
        time.sleep(0.2)
    assert after.returncode == 0  # the lock went with its process
