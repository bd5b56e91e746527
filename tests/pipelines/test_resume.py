"""Stages that are killed while they train and then run again, and trainings that diverge."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from pu_kd_pipeline.errors import ExitCode
from pu_kd_pipeline.storage.table import read_table
from tests.conftest import PROJECT, QUICK, run_kedro

pytestmark = pytest.mark.xdist_group("faults")

OFTEN = ("tracking=false", "checkpoint_every_s=0")


@dataclass(frozen=True)
class Stage:
    """A stage that trains: its node, what it reads of a finished run, and what it writes."""

    node: str
    reads: tuple[str, ...]
    model: str
    history: str


STAGES = {
    "teacher": Stage(
        node="teacher.prepare_teacher",
        reads=("02_intermediate",),
        model="06_models/teacher_model",
        history="07_model_output/teacher_history.parquet",
    ),
    "pu_training": Stage(
        node="pu_training.train_pu_classifier",
        reads=("02_intermediate", "04_feature", "06_models/teacher_model"),
        model="06_models/pu_classifier",
        history="07_model_output/pu_history.parquet",
    ),
    "distillation": Stage(
        node="distillation.distill_student",
        reads=("02_intermediate", "05_model_input", "06_models/teacher_model"),
        model="06_models/student_model",
        history="07_model_output/distillation_history.parquet",
    ),
}


@pytest.fixture
def data_of(finished_run: Path, tmp_path: Path):
    """A function that makes a data folder with what a stage reads."""

    def make(stage: str) -> Path:
        for name in STAGES[stage].reads:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).symlink_to(finished_run / name)
        return tmp_path

    return make


def kill_in_the_middle(stage: str, data: Path) -> None:
    """Run a stage, and end it by SIGKILL after its checkpoint was replaced a few times."""
    params = ",".join([f"data={data}", *QUICK, *OFTEN])
    process = subprocess.Popen(
        [sys.executable, "-m", "kedro", "run", f"--pipeline={stage}", f"--params={params}"],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # The previous checkpoint gets another time whenever a new one takes its place.
    times: set[int] = set()
    deadline = time.monotonic() + 120
    while len(times) < 8:
        exit_code = process.poll()
        assert exit_code is None, f"exit code {exit_code} after {len(times)} checkpoints"
        assert time.monotonic() < deadline
        for file in (data / "checkpoints").glob("*/*.previous.ckpt"):
            times.add(file.stat().st_mtime_ns)
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_killed_and_run_again_writes_what_one_run_writes(
    stage, data_of, finished_run
):
    data = data_of(stage)
    model = STAGES[stage].model
    history = STAGES[stage].history
    kill_in_the_middle(stage, data)

    assert not (data / model).exists()
    assert list((data / "checkpoints" / STAGES[stage].node).glob("*.ckpt"))

    result = run_kedro(f"--pipeline={stage}", data=data)

    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"resumes after update \d+, from", result.stdout)

    for file in ("weights.safetensors", "card.json"):
        resumed = (data / model / file).read_bytes()
        uninterrupted = (finished_run / model / file).read_bytes()
        assert resumed == uninterrupted, file

    resumed_history = read_table(data / history)
    uninterrupted_history = read_table(finished_run / history)
    pd.testing.assert_frame_equal(resumed_history, uninterrupted_history, check_exact=True)
    # Checkpoints are removed after the outputs are saved.
    assert not (data / "checkpoints").exists()


def test_what_was_trained_is_not_lost_where_saving_fails(data_of, finished_run):
    data = data_of("teacher")
    obstacle = data / "06_models"
    obstacle.write_text("a file where a folder should be")
    failed = run_kedro("--pipeline=teacher", data=data)

    assert failed.returncode == ExitCode.USER_ERROR
    assert f"Error: {obstacle} is a file, and a folder of this name has to be made" in failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr

    # The training was finished: the second run only has to save its result.
    obstacle.unlink()
    result = run_kedro("--pipeline=teacher", data=data)

    assert "teacher: resumes after update 150" in result.stdout

    weights = "06_models/teacher_model/weights.safetensors"

    assert (data / weights).read_bytes() == (finished_run / weights).read_bytes()
    assert not (data / "checkpoints").exists()


def test_a_training_that_diverges_is_one_sentence_and_leaves_its_last_good_checkpoint(data_of):
    data = data_of("distillation")
    # With `kd`, because the losses of other objectives stay finite for long after the logits.
    steep = ("distillation.optimizer.learning_rate=1e9", "distillation.objective=kd")
    result = run_kedro("--pipeline=distillation", data=data, params=(*OFTEN, *steep))

    assert result.returncode == ExitCode.USER_ERROR
    assert "Traceback" not in result.stdout + result.stderr

    checkpoint = data / "checkpoints" / "distillation.distill_student" / "distillation.ckpt"

    assert re.fullmatch(
        r"Error: distillation: the loss is (nan|inf) between update \d+ and \d+ of 60: "
        r"lower the learning rate, or look for constant or corrupt images\. "
        r"The last good checkpoint, of update \d+, is kept in "
        + re.escape(str(checkpoint))
        + r": the same command resumes from there, and one with other parameters starts over\.\n",
        result.stderr,
    ), result.stderr
    assert checkpoint.is_file()
    assert not (data / "06_models" / "student_model").exists()

    params = ("distillation.objective=kd",)
    fixed = run_kedro("--pipeline=distillation", data=data, params=params)

    assert fixed.returncode == 0, fixed.stdout + fixed.stderr
    assert "(optimizer.learning_rate 1000000000.0 → 0.1): training starts over" in fixed.stdout

    card = json.loads((data / "06_models" / "student_model" / "card.json").read_text())

    assert card["origin"]["n_updates"] == 60
