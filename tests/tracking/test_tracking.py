"""Tracking in a real store: of runs that finish, fail, are stopped, and lose their server."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline.errors import ExitCode
from pu_kd_pipeline.tracking import outbox
from pu_kd_pipeline.tracking.worker import WorkerError
from tests.tracking.conftest import LocalWorker
from tests.tracking.stored_runs import of_run, rows, runs, statuses


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text() == text):
        assert time.monotonic() < deadline, f"{path} never contained {text!r}"
        time.sleep(0.05)


def test_a_finished_run_has_parameters_metrics_tags_and_files(kedro, folder):
    params = f"data={folder},training.diary={folder / 'diary'},training.epochs=5"
    process = kedro("run", f"--params={params}")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    [(run_id, status)] = runs(folder).items()
    assert status == "FINISHED"

    parameters = of_run(folder, "params", run_id)
    assert parameters["training.optimizer.learning_rate"] == "0.1"
    assert parameters["training.epochs"] == "5"

    query = "SELECT step, value FROM metrics WHERE key = 'training/loss' ORDER BY step"
    losses = rows(folder, query)
    assert losses == [(epoch, pytest.approx(1 / epoch)) for epoch in range(1, 6)]
    latest = dict(rows(folder, "SELECT key, value FROM latest_metrics"))
    assert latest["student/accuracy"] == 0.955
    assert latest["selection/gain"] == -0.012
    assert latest["teacher/per_class_accuracy/odd"] == 1.0
    assert latest["teacher/per_class_accuracy/even_other"] == 0.98

    tags = of_run(folder, "tags", run_id)
    assert tags["pipeline"] == "full"
    assert tags["env"] == "local"
    assert "| accuracy | 99.0 % | 95.5 % |" in tags["mlflow.note.content"]
    [artifact] = (folder / "mlflow").glob("artifacts/*/artifacts/08_reporting/*")
    assert artifact.name == "metrics.json"

    # The same numbers are printed, and nothing by MLflow itself.
    assert "95.5 %" in out
    assert "−1.2 points (not tested)" in out
    assert "alembic" not in out + err
    assert err == ""


def test_errors_and_signals_end_the_run_with_their_status(kedro, empty_store, tmp_path):
    # All three at once, because starting a process takes seconds.
    processes = {}
    modes = {"fail": "fail", "interrupt": "wait", "terminate": "wait"}
    for name, mode in modes.items():
        folder = tmp_path / name
        (folder / "mlflow").mkdir(parents=True)
        shutil.copy(empty_store, folder / "mlflow")
        params = f"data={folder},training.diary={folder}.txt,training.mode={mode}"
        processes[name] = kedro("run", "--pipeline=pu_training", f"--params={params}")

    signals = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
    for name, signal_number in signals.items():
        # A signal before the node runs would not reach its `finally` block.
        wait_for(tmp_path / f"{name}.txt", "started")
        processes[name].send_signal(signal_number)

    errors = {}
    exit_codes = {}
    for name, process in processes.items():
        _, errors[name] = process.communicate(timeout=120)
        exit_codes[name] = process.returncode
        # Also the code in `finally` blocks ran.
        diary = tmp_path / f"{name}.txt"
        assert diary.read_text() == "tidied up"

    assert "Traceback" in errors["fail"]
    # 128 and the number of the signal, as shells expect.
    assert exit_codes == {"fail": ExitCode.FAILURE, "interrupt": 130, "terminate": 143}
    assert statuses(tmp_path / "fail") == ["FAILED"]
    assert statuses(tmp_path / "interrupt") == ["KILLED"]
    assert statuses(tmp_path / "terminate") == ["KILLED"]

    kept = "what finished nodes wrote is kept.\n"
    assert errors["interrupt"] == f"Stopped by Ctrl-C; {kept}"
    assert errors["terminate"] == f"Stopped by SIGTERM; {kept}"
    assert "ZeroDivisionError: a bug" in errors["fail"]
    [run_id] = runs(tmp_path / "fail")
    tags = of_run(tmp_path / "fail", "tags", run_id)
    assert "**Failed:** a bug" in tags["mlflow.note.content"]


def test_an_unreachable_server_costs_one_warning(kedro, tmp_path):
    started = time.monotonic()
    params = f"data={tmp_path},training.diary={tmp_path / 'diary'}"
    # Nothing listens on port 9.
    process = kedro("run", f"--params={params}", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    # MLflow itself would retry for minutes.
    seconds = time.monotonic() - started
    assert seconds < 60

    metrics = json.loads((tmp_path / "08_reporting" / "metrics.json").read_text())
    assert metrics["student"]["accuracy"] == 0.955
    assert (out + err).count("WARNING") == 1
    assert "MLflow at http://127.0.0.1:9 failed; the run continues without tracking" in out


class FakeStore:
    fingerprint = "0123456789abcdef"

    def __len__(self) -> int:
        return 42


def test_a_data_set_that_two_nodes_read_is_logged_once(new_tracker, folder):
    tracker = new_tracker()
    for _ in range(2):
        tracker.log_dataset("pool_images", FakeStore())
    tracker.end("FINISHED")
    logged = rows(folder, "SELECT name, digest, dataset_profile FROM datasets")
    assert logged == [("pool_images", "0123456789abcdef", '{"num_rows": 42}')]


class FlakyWorker(LocalWorker):
    """Fails while `is_down`, and notes the time of each call that failed."""

    is_down = False

    def __init__(self) -> None:
        super().__init__()
        self.failure_times: list[float] = []

    def call(self, method: str, *args: Any, limit_s: float, **options: Any) -> Any:
        if self.is_down:
            self.failure_times.append(time.monotonic())
            raise WorkerError("connection refused")
        return super().call(method, *args, limit_s=limit_s, **options)


def test_a_server_that_comes_back_gets_what_it_missed(new_tracker, folder, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(outbox, "SECONDS_BEFORE_RETRY", 1.0)
    worker = FlakyWorker()
    tracker = new_tracker(worker=worker, seed=1)
    tracker.log_record("training", 1, {"loss": 1.0})
    tracker.flush()
    assert tracker.outbox.wait(60) == 0

    worker.is_down = True
    for step in range(2, 6):
        tracker.log_record("training", step, {"loss": 1.0 / step})
        tracker.flush()
        tracker.log_metrics({"student": {"accuracy": 0.1 * step}})
    time.sleep(2.0)
    # One second passes before the second try, and two before the third.
    assert len(worker.failure_times) == 2
    assert worker.failure_times[1] - worker.failure_times[0] >= 1.0

    worker.is_down = False
    tracker.log_record("training", 6, {"loss": 0.5})
    tracker.flush()
    deadline = time.monotonic() + 60
    while tracker.is_lost:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    tracker.end("FINISHED")

    # One message when the server is lost, one when it is back.
    messages = [record for record in caplog.records if "MLflow at" in record.message]
    assert [message.levelname for message in messages] == ["WARNING", "INFO"]
    steps = rows(folder, "SELECT step FROM metrics WHERE key = 'training/loss' ORDER BY step")
    assert steps == [(1,), (2,), (3,), (4,), (5,), (6,)]
    accuracies = rows(folder, "SELECT value FROM metrics WHERE key = 'student/accuracy'")
    assert len(accuracies) == 4
    assert statuses(folder) == ["FINISHED"]


def test_a_call_that_always_fails_does_not_block_the_others(new_tracker, folder):
    tracker = new_tracker()
    # Queued before the records, and this file does not exist.
    tracker.log_file(folder / "nowhere.txt", "files")
    for step in range(4):
        tracker.log_record("training", step, {"loss": 1.0})
        tracker.flush()
    tracker.end("FINISHED")
    steps = rows(folder, "SELECT step FROM metrics")
    assert len(steps) == 4
    assert statuses(folder) == ["FINISHED"]


def test_a_slow_server_is_asked_less_often(new_tracker, folder):
    class SlowWorker(LocalWorker):
        n_calls = 0

        def call(self, method: str, *args: Any, limit_s: float, **options: Any) -> Any:
            if method == "log_metrics":
                SlowWorker.n_calls += 1
                time.sleep(0.2)
            return super().call(method, *args, limit_s=limit_s, **options)

    tracker = new_tracker(worker=SlowWorker())
    tracker.log_record("training", 0, {"loss": 1.0})
    tracker.flush()
    assert tracker.outbox.wait(60) == 0
    tracker._flushed_at = 0.0
    start = time.monotonic()
    for step in range(1, 1000):
        tracker.log_record("training", step, {"loss": 1.0})
        if time.monotonic() - start > 1.5:
            break
        time.sleep(0.01)
    # Once more than the first time, and then not for twenty times as long as it took.
    assert SlowWorker.n_calls == 2
    tracker.end("FINISHED")
    assert len(rows(folder, "SELECT step FROM metrics")) == step + 1


def test_a_server_that_never_answers_does_not_stop_the_run(kedro, tmp_path):
    # It accepts connections and never answers.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        address = f"http://127.0.0.1:{port}"
        process = kedro(
            "run",
            f"--params=data={tmp_path},training.diary={tmp_path / 'diary'}",
            MLFLOW_TRACKING_URI=address,
            MLFLOW_HTTP_REQUEST_TIMEOUT="1",
        )
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert (tmp_path / "08_reporting" / "metrics.json").exists()
    log, _, repeated = out.partition("Warnings of this run:")
    assert log.count("the run continues without tracking") == 1
    assert repeated.count("the run continues without tracking") <= 1


def test_a_network_that_cannot_be_exported_costs_only_the_model(
    new_tracker, new_model, folder, caplog
):
    import torch

    class DataDependent(torch.nn.Module):
        def forward(self, images):
            # A branch on a value, which torch.export cannot trace.
            if images.sum().item() > 0:
                return images.flatten(1)
            return images.flatten(1) * 2

    tracker = new_tracker()
    tracker.log_model("student_model", new_model(DataDependent(), 2, 4), None)
    tracker.log_metrics({"student": {"accuracy": 0.5}})
    tracker.end("FINISHED")
    assert "student_model cannot be exported" in caplog.text
    assert rows(folder, "SELECT key, value FROM metrics") == [("student/accuracy", 0.5)]
    assert statuses(folder) == ["FINISHED"]
