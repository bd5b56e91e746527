"""A second `kedro run` runs only what changed and what depends on it, and one run at a time."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pu_kd_pipeline.errors import ExitCode
from tests.conftest import PROJECT, QUICK, run_kedro
from tests.incremental.projects import planned_reasons
from tests.run_log import nodes_that_ran

pytestmark = pytest.mark.xdist_group("finished_run")

TRACKED = ("tracking=true",)


@pytest.fixture(scope="module")
def data(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, which is up to date there, too."""
    folder = tmp_path_factory.mktemp("again") / "data"
    shutil.copytree(finished_run, folder, copy_function=shutil.copy2)
    return folder


def contents(data: Path) -> dict[str, str]:
    """Return file -> digest of all outputs."""
    digests = {}
    for layer in data.glob("0*"):
        for path in sorted(layer.rglob("*")):
            if path.is_file():
                name = path.relative_to(data).as_posix()
                digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


def logged_runs(data: Path) -> list[tuple[str, str, str]]:
    """Return (run, name, note) of the runs in MLflow, the newest first."""
    with sqlite3.connect(data / "mlflow" / "mlflow.db") as store:
        return store.execute(
            "SELECT run_uuid, name, value FROM tags JOIN runs USING (run_uuid) "
            "WHERE key = 'mlflow.note.content' ORDER BY start_time DESC"
        ).fetchall()


def test_a_second_full_run_runs_nothing_and_reports_that(data):
    before = contents(data)
    n_runs = len(logged_runs(data))
    result = run_kedro("--pipeline=full", data=data, params=TRACKED)

    assert result.returncode == 0, result.stdout + result.stderr
    assert nodes_that_ran(result.stdout) == {}
    assert "Nothing to do: all" in result.stdout
    # The results are printed all the same.
    assert "selection gain" in result.stdout
    assert contents(data) == before

    # A command that did nothing is no run.
    assert len(logged_runs(data)) == n_runs


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
    file = min(data.glob(victim))
    # One byte in the middle is flipped.
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    file.write_bytes(damaged)
    result = run_kedro("--pipeline=full", data=data, params=TRACKED)

    assert result.returncode == 0, result.stdout + result.stderr

    reasons = nodes_that_ran(result.stdout)

    assert list(reasons) == [node]
    assert "is not what was written" in reasons[node]
    assert contents(data) == before

    # A run of a part has the metrics and the model that still hold.
    run_id, name, note = logged_runs(data)[0]
    assert re.fullmatch(r"mixture, seed 0: \d+\.\d %, gain [+−]\d+\.\d · full \(local\)", name)
    assert "**1 of " in note
    with sqlite3.connect(data / "mlflow" / "mlflow.db") as store:
        keys = {
            key
            for (key,) in store.execute(
                "SELECT key FROM latest_metrics WHERE run_uuid = ?", (run_id,)
            )
        }
        models = store.execute(
            "SELECT name FROM inputs JOIN logged_models ON destination_id = model_id "
            "WHERE source_id = ?",
            (run_id,),
        ).fetchall()
    assert "student/accuracy" in keys
    assert {key for key in keys if key.endswith("/seconds")} == {
        f"stages/{node.partition('.')[0]}/seconds"
    }
    assert sorted(models) == [("student_model",), ("student_model_files",)]


@pytest.mark.parametrize(
    ("victim", "list_of_shards", "node"),
    [
        ("04_feature/pool_features/*.parquet", "shards.json", "extract_pool_features"),
        ("02_intermediate/pool_images/*.npy", "store.json", "ingest_pool_images"),
    ],
)
def test_a_damaged_shard_is_made_again_where_its_list_and_its_record_are_gone(
    data, victim, list_of_shards, node
):
    before = contents(data)
    file = min(data.glob(victim))
    damaged = bytearray(file.read_bytes())
    middle = len(damaged) // 2
    for position in range(middle, middle + 400):
        damaged[position] ^= 0xFF
    file.write_bytes(damaged)
    # As after a kill between two writes: nothing else knows what the shard should be.
    file.with_name(list_of_shards).unlink()
    [record] = (data / "node_records").glob(f"*{node}*.json")
    record.unlink()
    result = run_kedro("--pipeline=full", data=data)

    assert result.returncode == 0, result.stdout + result.stderr
    assert [name.partition(".")[2] for name in nodes_that_ran(result.stdout)] == [node]
    assert contents(data) == before


def test_a_stage_that_reads_a_damaged_shard_refuses_it(data):
    file = min(data.glob("04_feature/pool_features/*.parquet"))
    intact = file.read_bytes()
    damaged = bytearray(intact)
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    try:
        # Without the runner, which would notice it as well.
        result = run_kedro("--pipeline=pool_scoring", "--runner=SequentialRunner", data=data)
    finally:
        file.write_bytes(intact)

    assert result.returncode == ExitCode.USER_ERROR
    text = " ".join((result.stdout + result.stderr).split())
    assert "its checksum is wrong): delete it, and run the stage that wrote it again" in text
    assert "Traceback" not in text


def test_a_changed_parameter_runs_the_nodes_that_read_it_and_what_depends_on_them(data):
    from kedro.framework.project import configure_project, pipelines

    configure_project("pu_kd_pipeline")
    full = pipelines["full"]
    readers = {node.name for node in full.nodes if "params:class_weighting" in node.inputs}
    following = {node.name for node in full.from_nodes(*readers).nodes}
    params = ",".join([f"data={data}", *QUICK, "class_weighting.n_vectors=5"])
    explanation = subprocess.run(
        [sys.executable, "-m", "kedro", "explain", "--pipeline=full", f"--params={params}"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    would_run = set(planned_reasons(explanation))

    assert would_run == following

    result = run_kedro("--pipeline=full", data=data, params=("class_weighting.n_vectors=5",))

    assert result.returncode == 0, result.stdout + result.stderr

    reasons = nodes_that_ran(result.stdout)

    assert readers <= set(reasons) <= would_run

    for name in readers:
        first_reason, _, others = reasons[name].partition("; ")
        assert first_reason == "parameter class_weighting.n_vectors 8 → 5"
        # Only the report also reads what was made from the new weights.
        assert not others or name == "reporting.report_run"

    assert reasons["distillation.distill_student"] == "input weight_vectors changed"


def test_force_runs_every_node(data):
    result = run_kedro("--pipeline=pool_scoring", "--force", data=data)

    assert result.returncode == 0, result.stdout + result.stderr
    assert nodes_that_ran(result.stdout) == {"pool_scoring.score_pool": "it was asked for (force)"}

    result = run_kedro("--pipeline=pool_scoring", "--force", "--runner=SequentialRunner", data=data)

    assert result.returncode == ExitCode.USER_ERROR
    assert "leave one of them out" in result.stderr


def test_two_runs_at_once_on_one_folder_the_second_is_refused(data):
    params = ",".join([f"data={data}", *QUICK, "distillation.n_updates=100000", "tracking=false"])
    options = ["--pipeline=distillation", f"--params={params}"]
    command = [sys.executable, "-m", "kedro", "run", *options]
    first = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        for line in first.stdout:
            # The first line of progress: the training has started.
            if "distillation:" in line:
                break
        second = run_kedro("--pipeline=full", data=data)
        assert second.returncode == ExitCode.FAILURE
        message = re.sub(r"\s+", " ", second.stderr)
        assert "Error: another run" in message
        assert f"process {first.pid} on" in message
        assert "Traceback" not in second.stdout + second.stderr
        # A run that has nothing to write is allowed.
        reader = run_kedro("--pipeline=pool_scoring", data=data)
        assert reader.returncode == 0, reader.stderr
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=30)
    deadline = time.monotonic() + 10
    # The system releases the lock of a killed process, after a moment.
    while True:
        after = run_kedro("--pipeline=pool_scoring", data=data)
        if after.returncode == 0 or time.monotonic() > deadline:
            break
        time.sleep(0.2)

    assert after.returncode == 0
