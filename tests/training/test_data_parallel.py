"""Two processes train what one trains, and none of them outlives a failure.

Every test that starts processes has a time limit of its own: the faults that it looks for show as
processes that wait forever.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pu_kd_pipeline import progress
from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.params.compute import TrainingWorkersParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.provenance.loaded_code import recorder
from pu_kd_pipeline.training import worker_teams
from pu_kd_pipeline.training.checkpoints import disable_checkpoints, set_checkpoint_folder
from pu_kd_pipeline.training.distillation import distill
from pu_kd_pipeline.training.pu_classifier import check_pool_divides
from pu_kd_pipeline.training.worker_files import task_folder
from pu_kd_pipeline.training.worker_group import LostWorkerError, worker_group
from pu_kd_pipeline.training.worker_teams import by_workers
from tests.training import worker_trainings
from tests.training.scene import COMPUTE, Scene
from tests.training.worker_trainings import SGD, STUDENTS, Trained

LIMIT_S = 420  # for a machine that is busy; on a quiet one, each test takes some ten seconds
TWO = TrainingWorkersParams(n=2, timeout_s=100)
# Rounding alone, over some ten updates.
RTOL = 1e-3
ATOL = 1e-4

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals end the workers")


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    """End the whole test run with the stacks of all threads where a test hangs."""
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    disable_checkpoints()


def pu_params() -> PUTrainingParams:
    return PUTrainingParams.model_validate(
        {
            "seed": 2,
            "class_prior": 0.4,
            "prior_estimation": {
                "method": "dedpul",
                "n_folds": 2,
                "epochs": 1,
                "n_bootstrap": 20,
                "level": 0.9,
            },
            "estimator": "nnpu",
            "beta": 0.0,
            "gamma": 1.0,
            "backbone": "full",
            "features": "descriptor",
            "attention_reduction": 4,
            "epochs": 2,
            "positive_batch_size": 16,
            "unlabeled_batch_size": 32,
            "max_unlabeled": 1_000_000,
            "held_out_folds": 2,
            "optimizer": SGD,
            "augmentation": {"padding_px": 1, "horizontal_flip": True},
            "compute": COMPUTE,
        }
    )


def assert_close(found: Trained, expected: Trained) -> None:
    assert found.keys() == expected.keys()
    for name, (history, state) in found.items():
        expected_history, expected_state = expected[name]
        pd.testing.assert_frame_equal(
            history, expected_history, rtol=RTOL, atol=ATOL, obj=f"the history of {name}"
        )
        assert state.keys() == expected_state.keys()
        for key, value in state.items():
            torch.testing.assert_close(
                value, expected_state[key], rtol=RTOL, atol=ATOL, msg=lambda m, k=key: f"{k}: {m}"
            )


def test_two_processes_train_the_students_of_one(scene_of: Callable[[str], Scene]) -> None:
    scene = scene_of("resnet")  # with BatchNorm
    published: list[tuple[str, int]] = []

    def publish(name: str, step: int, record: object) -> None:
        published.append((name, step))

    progress.records.add(publish)
    try:
        found = by_workers(worker_trainings.students, TWO, COMPUTE, "students")(scene)
    finally:
        progress.records.remove(publish)
    assert published == [("student", step) for _ in STUDENTS for step in (4, 8)]
    assert_close(found, worker_trainings.students(scene))


def test_two_processes_train_the_teacher_and_the_pu_classifier_of_one(
    scene_of: Callable[[str], Scene],
) -> None:
    scene = scene_of("resnet")
    train = by_workers(worker_trainings.teacher_and_pu_classifier, TWO, COMPUTE, "both")
    found = train(scene, pu_params())
    assert_close(found, worker_trainings.teacher_and_pu_classifier(scene, pu_params()))


@pytest.mark.slow
def test_a_killed_worker_ends_the_training_and_one_process_resumes_it(
    digits: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_checkpoint_folder(tmp_path, every_s=0)
    train = by_workers(worker_trainings.student_of_a_lost_worker, TWO, COMPUTE, "student")
    message = r"student: worker 2 of 2 was ended by SIGKILL.*The same command resumes"
    with pytest.raises(UnavailableError, match=message):
        train(digits, 16)

    # As the same command does, here with one process: the result is that of no interruption.
    with caplog.at_level(logging.INFO, "pu_kd_pipeline"):
        resumed = {"kd": worker_trainings.trained_student(digits, "kd", n_updates=16)}
    assert any("resumes after update 8" in text for text in caplog.messages)
    disable_checkpoints()
    expected = {"kd": worker_trainings.trained_student(digits, "kd", n_updates=16)}
    assert_close(resumed, expected)


@pytest.mark.slow
def test_a_worker_that_does_not_answer_ends_the_training_in_time() -> None:
    params = TrainingWorkersParams(n=2, timeout_s=5)
    started = time.monotonic()
    train = by_workers(worker_trainings.sums_with_a_stopped_worker, params, COMPUTE, "sums")
    with pytest.raises(LostWorkerError, match="sums: worker 1 of 2: another worker does not"):
        train()
    assert time.monotonic() - started < LIMIT_S / 2


def test_workers_that_do_not_meet_are_lost_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        # Where another program listens already, and somewhere that no worker comes to.
        taken = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        for rendezvous in (taken, "tcp://127.0.0.1:0"):
            with (
                pytest.raises(LostWorkerError, match="did not find each other at tcp://127"),
                worker_group(COMPUTE, 1, rendezvous),
            ):
                pass


@pytest.mark.slow
def test_workers_refuse_to_compute_in_another_number_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_teams, "arithmetic", lambda *_: "cpu bf16")
    train = by_workers(worker_trainings.fails_in_one_worker, TWO, COMPUTE, "sums")
    message = "^compute.precision: .* compute with cpu float32, and .* was started for cpu bf16"
    with pytest.raises(InputError, match=message):
        train()


@pytest.mark.slow
def test_an_error_in_one_worker_is_raised_with_its_traceback() -> None:
    train = by_workers(worker_trainings.fails_in_one_worker, TWO, COMPUTE, "sums")
    with pytest.raises(RuntimeError, match="worker 2 of 2 failed:(.|\n)*a bug of the second"):
        train()


@pytest.mark.slow
def test_a_message_that_cannot_be_read_ends_the_training() -> None:
    train = by_workers(worker_trainings.publishes_what_cannot_be_read, TWO, COMPUTE, "sums")
    with pytest.raises(RuntimeError, match="worker 1 of 2 failed:(.|\n)*no number"):
        train()


def test_workers_meet_in_a_folder_of_any_name_and_refuse_in_their_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a b[1]+%20 ü"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    train = by_workers(worker_trainings.refuses_by_an_error_of_its_own, TWO, COMPUTE, "sums")
    # That of the first worker, where both refuse.
    with pytest.raises(InputError, match="^file 0, line 7, is wrong$"):
        train()
    assert not list(folder.iterdir())


def test_folders_of_processes_that_were_killed_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with task_folder() as first:
        # What a process leaves behind that was killed: nobody holds its lock.
        left = first.with_name(f"{first.name}-left")
        shutil.copytree(first, left)
        other = first.with_name("of another program")
        shutil.copytree(first, other)
        with task_folder() as second:
            assert set(tmp_path.iterdir()) == {first, second, other}
    assert set(tmp_path.iterdir()) == {other}


def test_code_that_was_loaded_again_is_refused_before_workers_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "reloaded", {"pu_kd_pipeline.learning.workers"})
    train = by_workers(worker_trainings.fails_in_one_worker, TWO, COMPUTE, "sums")
    message = r"sums: 2 workers load.*learning\.workers, which was changed.*Restart this process"
    with pytest.raises(InputError, match=message):
        train()


def is_running(process_id: int) -> bool:
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return False
    # A zombie has ended, and waits for whoever inherited it.
    return status.rpartition(")")[2].split()[0] != "Z"


STARTS_WORKERS = """
import sys
from pathlib import Path
from pu_kd_pipeline.params.compute import TrainingWorkersParams
from pu_kd_pipeline.training.worker_teams import by_workers
from tests.training.scene import COMPUTE
from tests.training.worker_trainings import waits_forever
by_workers(waits_forever, TrainingWorkersParams(n=2), COMPUTE, "waiting")(Path(sys.argv[1]))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.slow
def test_no_worker_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", STARTS_WORKERS, str(tmp_path)])
    deadline = time.monotonic() + LIMIT_S / 2
    files = [tmp_path / "0", tmp_path / "1"]
    try:
        while not all(file.exists() and file.read_text() for file in files):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    workers = [int(file.read_text()) for file in files]
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_batch_that_cannot_be_divided_is_refused_by_its_key(digits: Scene) -> None:
    params = digits.params(batch_size=33, n_updates=2)
    vectors = pd.DataFrame(np.ones((1, digits.teacher.n_classes)))
    args = (digits.manifest, digits.labeled, digits.pool, digits.teacher, vectors, params)
    message = r"student.batch_size: 33 images cannot be divided among 2 workers \(training_workers"
    with pytest.raises(InputError, match=message):
        by_workers(distill, TWO, COMPUTE, "student")(*args, "student")


def test_a_pool_smaller_than_a_batch_is_refused_with_both_numbers() -> None:
    params = pu_params().model_copy(update={"unlabeled_batch_size": 150})
    message = r"the 70 unlabeled.*are all .*of the pool \(unlabeled_batch_size is 150\).*3 workers"
    with pytest.raises(InputError, match=message):
        check_pool_divides(params, 70, 3)
    check_pool_divides(params, 69, 3)
    check_pool_divides(params, 151, 3)
    check_pool_divides(params, 70, 1)


def test_workers_that_would_share_a_device_are_refused_before_they_start(digits: Scene) -> None:
    compute = COMPUTE.model_copy(update={"device": "cuda:0"})
    with pytest.raises(InputError, match="cuda:0"):
        by_workers(worker_trainings.fails_in_one_worker, TWO, compute, "sums")()


def test_one_worker_is_the_function_itself() -> None:
    assert by_workers(distill, TrainingWorkersParams(), COMPUTE, "student") is distill
