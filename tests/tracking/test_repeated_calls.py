"""Calls whose answers come too late are made again, and nothing is in MLflow twice."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pu_kd_pipeline.tracking import outbox
from pu_kd_pipeline.tracking.worker import WorkerError
from tests.tracking.conftest import LocalWorker
from tests.tracking.stored_runs import rows, statuses
from tests.tracking.test_certificates import certificate_of


class LateWorker(LocalWorker):
    """Makes each call, and is ended before it can say so the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.late_methods: set[str] = set()

    def call(self, method: str, *args: Any, limit_s: float, **options: Any) -> Any:
        answer = super().call(method, *args, limit_s=limit_s, **options)
        if method not in self.late_methods:
            self.late_methods.add(method)
            self.kill()
            raise WorkerError("no complete answer")
        return answer


@pytest.fixture(autouse=True)
def _retry_soon(monkeypatch):
    monkeypatch.setattr(outbox, "SECONDS_BEFORE_RETRY", 0.01)
    monkeypatch.setattr(outbox, "MAX_TIME_SHARE", 1.0)


def wait_for_all(tracker) -> None:
    # Every failure ends the waiting, and the next attempt follows soon.
    while tracker.outbox.wait(60):
        pass


def test_what_is_created_late_is_not_created_twice(new_tracker, new_model, folder):
    import torch

    tracker = new_tracker(worker=LateWorker(), seed=1)
    tracker.log_record("training", 1, {"loss": 1.0})
    tracker.log_child("cell", {"seed": 1}, {"accuracy": 1.0})
    layers = [torch.nn.Flatten(), torch.nn.Linear(4, 2)]
    network = torch.nn.Sequential(*layers)
    model = new_model(network, 2, 2)
    tracker.log_model("student_model", model, None)
    tracker.log_certificate("certificate", certificate_of(model))
    wait_for_all(tracker)
    tracker.end("FINISHED")
    assert statuses(folder) == ["FINISHED", "FINISHED"]
    model_versions = rows(folder, "SELECT * FROM model_versions")
    assert len(model_versions) == 1
    logged_models = rows(folder, "SELECT * FROM logged_models")
    assert len(logged_models) == 1
    assert len(list((folder / "mlflow").rglob("certificate.json"))) == 1
    params = rows(folder, "SELECT key, value FROM params")
    # Of the run and of its child.
    assert params == [("seed", "1"), ("seed", "1")]


def test_a_registered_name_that_mlflow_refuses_costs_only_the_registration(
    config, new_tracker, new_model, folder, caplog
):
    import torch

    tracker = new_tracker()
    tracker.config = config.model_copy(update={"registered_model": "a/b:c"})
    tracker.log_model("student_model", new_model(torch.nn.Flatten(), 2, 4), None)
    metrics = {"student": {"accuracy": 0.5}}
    tracker.log_metrics(metrics)
    tracker.end("FINISHED")
    assert caplog.text.count("WARNING") == 1
    assert "refused `log_model`" in caplog.text
    logged_models = rows(folder, "SELECT * FROM logged_models")
    assert len(logged_models) == 1
    keys = rows(folder, "SELECT key FROM metrics")
    assert keys == [("student/accuracy",)]
    assert statuses(folder) == ["FINISHED"]


def test_many_and_long_parameters_are_logged(new_tracker, folder):
    many = {}
    for number in range(2500):
        many[f"key {number}"] = number
    long = "x" * 1_000_000
    odd = {"a$b\n\x1b": "\x00 ü"}
    tracker = new_tracker(many=many, long=long, odd=odd)
    metrics = {
        "nan": math.nan,
        "inf": math.inf,
        "text": "x",
        "number": 1.0,
    }
    tracker.log_metrics(metrics)
    tracker.end("FINISHED")
    keys = rows(folder, "SELECT key FROM metrics")
    assert keys == [("number",)]
    params = rows(folder, "SELECT * FROM params")
    assert len(params) == 2502
    assert statuses(folder) == ["FINISHED"]
