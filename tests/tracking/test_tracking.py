"""What MLflow keeps of a run, asked of a real store after real processes ended well, badly, and by signals."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pu_kd_pipeline.tracking import outbox
from pu_kd_pipeline.tracking.client import Tracker
from pu_kd_pipeline.tracking.config import TrackingConfig
from pu_kd_pipeline.tracking.run import open_shared_run


def rows(folder: Path, query: str, *values: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "mlflow" / "mlflow.db")) as store:
        return store.execute(query, values).fetchall()


def runs(folder: Path) -> dict[str, str]:
    return dict(rows(folder, "SELECT run_uuid, status FROM runs"))


def of_run(folder: Path, table: str, run_id: str) -> dict[str, str]:
    return dict(rows(folder, f"SELECT key, value FROM {table} WHERE run_uuid = ?", run_id))


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text() == text):
        assert time.monotonic() < deadline, f"{path} never said {text!r}"
        time.sleep(0.05)


def test_a_finished_run_tells_what_was_run_and_what_came_out(kedro, folder):
    process = kedro(
        "run", f"--params=data={folder},training.diary={folder / 'diary'},training.epochs=5"
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    [(run_id, status)] = runs(folder).items()
    assert status == "FINISHED"
    parameters = of_run(folder, "params", run_id)
    assert parameters["training.optimizer.learning_rate"] == "0.1"
    assert parameters["training.epochs"] == "5"
    losses = rows(
        folder, "SELECT step, value FROM metrics WHERE key = 'training/loss' ORDER BY step"
    )
    assert losses == [(epoch, pytest.approx(1 / epoch)) for epoch in range(1, 6)]
    latest = dict(rows(folder, "SELECT key, value FROM latest_metrics"))
    assert latest["student/accuracy"] == 0.955
    assert latest["selection/gain"] == -0.012
    assert rows(
        folder, "SELECT value FROM metrics WHERE key = 'teacher/per_class_accuracy' AND step = 1"
    ) == [(0.98,)]
    tags = of_run(folder, "tags", run_id)
    assert tags["pipeline"] == "full"
    assert tags["env"] == "local"
    assert "| accuracy | 99.0 % | 95.5 % |" in tags["mlflow.note.content"]
    assert [
        path.name for path in (folder / "mlflow").glob("artifacts/*/artifacts/08_reporting/*")
    ] == ["metrics.json"]
    # the same numbers on the screen, and no chatter of MLflow's
    assert "95.5 %" in out
    assert "-1.2 points of accuracy over random images" in out
    assert "alembic" not in out + err
    assert err == ""


def test_errors_and_signals_end_the_run_with_their_status(kedro, empty_store, tmp_path):
    folders = {mode: tmp_path / mode for mode in ("fail", "interrupt", "terminate")}
    for folder in folders.values():
        (folder / "mlflow").mkdir(parents=True)
        shutil.copy(empty_store, folder / "mlflow")
    processes = {
        mode: kedro(
            "run",
            "--pipeline=pu_training",
            f"--params=data={folder},training.diary={folder}.txt,training.mode={'fail' if mode == 'fail' else 'wait'}",
        )
        for mode, folder in folders.items()
    }
    for mode, signum in (("interrupt", signal.SIGINT), ("terminate", signal.SIGTERM)):
        wait_for(tmp_path / f"{mode}.txt", "started")
        processes[mode].send_signal(signum)
    ends = {mode: process.communicate(timeout=120) for mode, process in processes.items()}
    assert {mode: process.returncode for mode, process in processes.items()} == {
        "fail": 1,
        "interrupt": 130,
        "terminate": 143,
    }
    assert {mode: list(runs(folder).values()) for mode, folder in folders.items()} == {
        "fail": ["FAILED"],
        "interrupt": ["KILLED"],
        "terminate": ["KILLED"],
    }
    assert all((tmp_path / f"{mode}.txt").read_text() == "tidied up" for mode in folders)
    assert ends["interrupt"][1] == "Stopped by Ctrl-C; what finished nodes wrote is kept.\n"
    assert ends["terminate"][1] == "Stopped by SIGTERM; what finished nodes wrote is kept.\n"
    assert "ZeroDivisionError: a bug" in ends["fail"][1]
    [run_id] = runs(folders["fail"])
    assert (
        "**Failed:** a bug"
        in of_run(folders["fail"], "tags", run_id)["mlflow.note.content"]
    )


def test_an_unreachable_server_costs_one_warning(kedro, tmp_path):
    started = time.monotonic()
    process = kedro(
        "run",
        f"--params=data={tmp_path},training.diary={tmp_path / 'diary'}",
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert time.monotonic() - started < 60
    assert (
        json.loads((tmp_path / "08_reporting" / "metrics.json").read_text())["student"]["accuracy"]
        == 0.955
    )
    assert (out + err).count("WARNING") == 1
    assert "MLflow at http://127.0.0.1:9 failed; the run continues without tracking" in out


@pytest.fixture
def config():
    return TrackingConfig(
        enabled=True,
        tracking_uri=None,
        folder="mlflow",
        experiment="tests",
        registered_model="student",
        system_metrics_interval_s=None,
    )


def test_stages_share_a_run_and_its_status_is_that_of_all_of_them(config, folder, monkeypatch):

    def stage(name: str, **parameters: object) -> Tracker:
        return Tracker(
            config, project_path=folder, stage=name, environment="base", parameters=parameters
        )

    first = stage("ingestion", seed=0)
    first.end("FINISHED")
    assert first.open_run_id is not None
    monkeypatch.setenv("MLFLOW_RUN_ID", first.open_run_id)

    training, scoring = stage("pu_training", epochs=20), stage("pool_scoring")
    for tracker in (training, scoring):
        tracker.flush()
    assert list(runs(folder).values()) == ["RUNNING"]
    training.end("FAILED")
    assert list(runs(folder).values()) == ["RUNNING"]  # scoring is still at work
    scoring.end("FINISHED")
    assert list(runs(folder).values()) == ["FAILED"]  # and does not gloss over the other's failure
    again = stage("pu_training", epochs=30)
    again.flush()
    assert list(runs(folder).values()) == ["RUNNING"]
    again.end("FINISHED")
    assert runs(folder) == {first.open_run_id: "FINISHED"}
    assert of_run(folder, "params", first.open_run_id) == {"seed": "0", "epochs": "20"}
    tags = of_run(folder, "tags", first.open_run_id)
    assert tags["changed.epochs"] == "30"
    assert {key: value for key, value in tags.items() if key.startswith("stage.")} == dict.fromkeys(
        ("stage.ingestion", "stage.pu_training", "stage.pool_scoring"), "FINISHED"
    )


def test_a_run_opened_for_the_stages_is_theirs_through_a_file(config, folder, monkeypatch):
    run_id = open_shared_run(config, project_path=folder, environment="base")
    assert runs(folder) == {run_id: "RUNNING"}
    assert of_run(folder, "tags", run_id)["mlflow.runName"] == "full (base)"
    (folder / "run_id").write_text(f"{run_id}\n")
    monkeypatch.setenv("PU_KD_RUN_ID_FILE", str(folder / "run_id"))
    tracker = Tracker(
        config, project_path=folder, stage="pu_training", environment="base", parameters={}
    )
    tracker.flush()
    tracker.end("FINISHED")
    assert runs(folder) == {run_id: "FINISHED"}


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_without_a_run_to_share_a_stage_has_its_own(text, config, folder, monkeypatch):
    if text is not None:
        (folder / "run_id").write_text(text)
    monkeypatch.setenv("PU_KD_RUN_ID_FILE", str(folder / "run_id"))
    tracker = Tracker(
        config, project_path=folder, stage="pu_training", environment="base", parameters={}
    )
    tracker.flush()
    tracker.end("FINISHED")
    assert list(runs(folder).values()) == ["FINISHED"]


def test_no_server_no_run_to_share_and_one_warning(config, folder, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert open_shared_run(config, project_path=folder, environment="base") == ""
    assert "MLflow at http://127.0.0.1:9 failed, there is no run to share" in caplog.text


def test_the_command_that_opens_a_run_prints_its_identifier_alone(kedro, tmp_path):
    store = tmp_path / "store.db"
    process = kedro("containers", "open-run", MLFLOW_TRACKING_URI=f"sqlite:///{store}")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    with closing(sqlite3.connect(store)) as opened:
        assert opened.execute("SELECT run_uuid FROM runs").fetchall() == [(out.splitlines()[-1],)]
    assert len(out.split()) == 1


class Store:
    fingerprint = "0123456789abcdef"

    def __len__(self) -> int:
        return 42


def test_the_student_is_registered_without_a_pickle_and_takes_any_batch(config, folder):
    import mlflow
    import torch

    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()
    )
    network.train()
    tracker = Tracker(config, project_path=folder, stage="full", environment="base", parameters={})
    tracker.log_model("student_model", network, (1, 5, 5))
    for _ in range(2):
        tracker.log_dataset("pool_images", Store())
    tracker.end("FINISHED")

    assert network.training  # what was logged is a copy
    assert rows(folder, "SELECT name, version FROM model_versions") == [("student", 1)]
    assert rows(folder, "SELECT name, digest, dataset_profile FROM datasets") == [
        ("pool_images", "0123456789abcdef", '{"num_rows": 42}')
    ]
    files = [path for path in (folder / "mlflow").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"MLmodel", "model.pt2", "requirements.txt"}
    assert not [path for path in files if path.suffix in {".pkl", ".pth"}]
    [model_folder] = [path.parent for path in files if path.name == "MLmodel"]
    images = np.random.default_rng(0).random((7, 1, 5, 5), dtype=np.float32)
    loaded = mlflow.pyfunc.load_model(str(model_folder))
    assert loaded.metadata.signature.inputs.inputs[0].shape == (-1, 1, 5, 5)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(loaded.predict(images), expected, atol=1e-5)


def test_a_server_that_comes_back_hears_what_it_missed(config, folder, monkeypatch, caplog):
    caplog.set_level("INFO")
    clock = [0.0]
    monkeypatch.setattr(outbox.time, "monotonic", lambda: clock[0])
    tracker = Tracker(
        config, project_path=folder, stage="full", environment="base", parameters={"seed": 1}
    )
    tracker.log_record("training", 1, {"loss": 1.0})
    tracker.flush()
    answer, calls = tracker.client.log_batch, []

    def gone(*args, **kwargs):
        calls.append(clock[0])
        raise ConnectionError("connection refused")

    monkeypatch.setattr(tracker.client, "log_batch", gone)
    for step in range(2, 6):
        tracker.log_record("training", step, {"loss": 1.0 / step})
        tracker.flush()
        tracker.log_metrics({"student": {"accuracy": 0.1 * step}})
        clock[0] += 5.0
    assert calls == [0.0]  # it is left alone for a while
    monkeypatch.setattr(tracker.client, "log_batch", answer)
    clock[0] += 100.0
    tracker.log_record("training", 6, {"loss": 0.5})
    tracker.flush()
    tracker.end("FINISHED")
    assert [record.levelname for record in caplog.records if "MLflow at" in record.message] == [
        "WARNING",
        "INFO",
    ]
    assert rows(folder, "SELECT step FROM metrics WHERE key = 'training/loss' ORDER BY step") == [
        (step,) for step in range(1, 7)
    ]
    assert len(rows(folder, "SELECT value FROM metrics WHERE key = 'student/accuracy'")) == 4
    assert list(runs(folder).values()) == ["FINISHED"]


def test_what_is_refused_again_and_again_does_not_stop_the_rest(config, folder, monkeypatch):
    monkeypatch.setattr(outbox, "SECONDS_BEFORE_RETRY", 0.0)
    tracker = Tracker(config, project_path=folder, stage="full", environment="base", parameters={})
    tracker.log_file(folder / "nowhere.txt", "files")
    for step in range(4):
        tracker.log_record("training", step, {"loss": 1.0})
        tracker.flush()
    tracker.end("FINISHED")
    assert len(rows(folder, "SELECT step FROM metrics")) == 4
    assert list(runs(folder).values()) == ["FINISHED"]


def test_a_slow_server_is_asked_less_often(config, folder, monkeypatch):
    tracker = Tracker(config, project_path=folder, stage="full", environment="base", parameters={})
    tracker.log_record("training", 0, {"loss": 1.0})
    tracker.flush()
    answer, calls = tracker.client.log_batch, []
    monkeypatch.setattr(
        tracker.client,
        "log_batch",
        lambda *a, **k: (calls.append(1), time.sleep(0.2), answer(*a, **k)),
    )
    started = time.monotonic()
    tracker.flushed_at = 0.0
    for step in range(1, 1000):
        tracker.log_record("training", step, {"loss": 1.0})
        if time.monotonic() - started > 1.5:
            break
        time.sleep(0.01)
    assert len(calls) == 1
    tracker.end("FINISHED")
    assert len(rows(folder, "SELECT step FROM metrics")) == step + 1


def test_a_server_that_never_answers_does_not_stop_the_run(kedro, tmp_path):
    with socket.create_server(
        ("127.0.0.1", 0)
    ) as listening:  # it takes connections, and says nothing
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        process = kedro(
            "run",
            f"--params=data={tmp_path},training.diary={tmp_path / 'diary'}",
            MLFLOW_TRACKING_URI=address,
            MLFLOW_HTTP_REQUEST_TIMEOUT="1",
        )
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert (tmp_path / "08_reporting" / "metrics.json").exists()
    assert out.count("the run continues without tracking") == 1


def test_a_network_that_cannot_be_exported_costs_the_model_not_the_log(config, folder, caplog):
    import torch

    class Moody(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1) * (1 if images.sum().item() > 0 else 2)

    tracker = Tracker(config, project_path=folder, stage="full", environment="base", parameters={})
    tracker.log_model("student_model", Moody(), (1, 2, 2))
    tracker.log_metrics({"student": {"accuracy": 0.5}})
    tracker.end("FINISHED")
    assert "student_model cannot be exported" in caplog.text
    assert rows(folder, "SELECT key, value FROM metrics") == [("student/accuracy", 0.5)]
    assert list(runs(folder).values()) == ["FINISHED"]
