"""Stages that are killed in the middle of their training and run again, and trainings that cannot go on, by command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from pu_kd_pipeline.storage.table import read_table
from tests.conftest import PROJECT, QUICK, run_kedro

pytestmark = pytest.mark.xdist_group("faults")

OFTEN = ("tracking=false", "checkpoint_every_s=0")
# stage -> its node, and what it reads of a finished run
STAGES = {
    "teacher": ("teacher.prepare_teacher", ("02_intermediate",)),
    "pu_training": (
        "pu_training.train_pu_classifier",
        ("02_intermediate", "04_feature", "06_models/teacher_model"),
    ),
    "distillation": (
        "distillation.distill_student",
        ("02_intermediate", "05_model_input", "06_models/teacher_model"),
    ),
}
WRITTEN = {
    "teacher": ("06_models/teacher_model", "07_model_output/teacher_history.parquet"),
    "pu_training": ("06_models/pu_classifier", "07_model_output/pu_history.parquet"),
    "distillation": ("06_models/student_model", "07_model_output/distillation_history.parquet"),
}


@pytest.fixture
def data_of(finished_run: Path, tmp_path: Path):
    """Return a function that makes a data folder with what a stage reads."""

    def make(stage: str) -> Path:
        for name in STAGES[stage][1]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).symlink_to(finished_run / name)
        return tmp_path

    return make


def kill_in_the_middle(stage: str, data: Path) -> None:
    """Run a stage, and end it by SIGKILL once a checkpoint was replaced a few times."""
    params = ",".join((f"data={data}", *QUICK, *OFTEN))
    process = subprocess.Popen(
        [sys.executable, "-m", "kedro", "run", f"--pipeline={stage}", f"--params={params}"],
        cwd=PROJECT,
        env={**os.environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen: set[int] = set()
    deadline = time.monotonic() + 120
    while len(seen) < 8:
        assert process.poll() is None, (
            f"it ended with {process.returncode} after {len(seen)} checkpoints"
        )
        assert time.monotonic() < deadline
        seen.update(
            file.stat().st_mtime_ns for file in (data / "checkpoints").glob("*/*.previous.ckpt")
        )
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_killed_and_run_again_writes_what_one_run_writes(
    stage, data_of, finished_run
):
    data, (node, _), (model, history) = data_of(stage), STAGES[stage], WRITTEN[stage]
    kill_in_the_middle(stage, data)
    assert not (data / model).exists()
    assert list((data / "checkpoints" / node).glob("*.ckpt"))

    result = run_kedro(f"--pipeline={stage}", data=data, params=("tracking=false",))
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"resumes after update \d+, from", result.stdout)
    for file in ("weights.safetensors", "card.json"):
        assert (data / model / file).read_bytes() == (finished_run / model / file).read_bytes()
    pd.testing.assert_frame_equal(
        read_table(data / history), read_table(finished_run / history), check_exact=True
    )
    assert not (data / "checkpoints").exists()  # the outputs are saved


def test_what_was_trained_is_not_lost_where_saving_fails(data_of, finished_run):
    data = data_of("teacher")
    (data / "06_models").write_text("a file where a folder should be")
    failed = run_kedro("--pipeline=teacher", data=data, params=("tracking=false",))
    assert failed.returncode == 1
    (data / "06_models").unlink()
    result = run_kedro("--pipeline=teacher", data=data, params=("tracking=false",))
    assert "teacher: resumes after update 150" in result.stdout
    weights = "06_models/teacher_model/weights.safetensors"
    assert (data / weights).read_bytes() == (finished_run / weights).read_bytes()
    assert not (data / "checkpoints").exists()


def test_a_training_that_diverges_is_one_sentence_and_leaves_its_last_good_checkpoint(data_of):
    data = data_of("distillation")
    # the objectives' losses stay finite for long where the logits do not
    steep = ("distillation.optimizer.learning_rate=1e9", "distillation.objective=kd")
    result = run_kedro("--pipeline=distillation", data=data, params=(*OFTEN, *steep))
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    checkpoint = data / "checkpoints" / "distillation.distill_student" / "distillation.ckpt"
    assert re.fullmatch(
        r"Error: distillation: the loss is (nan|inf) between update \d+ and \d+ of 60: lower the learning rate, or "
        r"look for constant or corrupt images\. The last good checkpoint, of update \d+, is kept in "
        + re.escape(str(checkpoint))
        + r": the same command resumes from there, and one with other parameters starts over\.\n",
        result.stderr,
    ), result.stderr
    assert checkpoint.is_file()
    assert not (data / "06_models" / "student_model").exists()

    mended = run_kedro(
        "--pipeline=distillation", data=data, params=("tracking=false", "distillation.objective=kd")
    )
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "(optimizer.learning_rate 1000000000.0 → 0.1): training starts over" in mended.stdout
    assert (
        json.loads((data / "06_models" / "student_model" / "card.json").read_text())["origin"][
            "n_updates"
        ]
        == 60
    )
