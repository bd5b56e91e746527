"""The end of a run whose time for MLflow is over: its status comes before everything else."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pu_kd_pipeline.tracking import client
from tests.tracking.conftest import LocalWorker
from tests.tracking.stored_runs import statuses


class SlowFilesWorker(LocalWorker):
    """Takes two seconds for every file."""

    def call(self, method: str, *args: Any, limit_s: float, **options: Any) -> Any:
        if method == "log_file":
            time.sleep(2.0)
        return super().call(method, *args, limit_s=limit_s, **options)


@pytest.fixture
def late_tracker(new_tracker, config, folder):
    """A tracker with more files than it has time for, while one of them is being sent."""
    tracker = new_tracker(worker=SlowFilesWorker())
    tracker.config = config.model_copy(update={"max_wait_s": 0.1})
    tracker.flush()
    assert tracker.outbox.wait(60) == 0
    file = folder / "report.html"
    file.write_text("report")
    for _ in range(5):
        tracker.log_file(file, "08_reporting")
    return tracker


def test_a_run_whose_time_is_over_has_its_status(late_tracker, folder, monkeypatch, caplog):
    # A new process would first import MLflow for seconds.
    monkeypatch.setattr(client, "SECONDS_FOR_STATUS_OF_NEW_PROCESS", 0.0)
    late_tracker.end("FINISHED")
    assert statuses(folder) == ["FINISHED"]
    assert caplog.text.count("WARNING") == 1
    assert "calls are lost" in caplog.text


def test_calls_that_the_end_of_the_run_stops_are_no_failure_of_mlflow(late_tracker, caplog):
    outbox = late_tracker.outbox
    [call, *_] = outbox._waiting
    outbox.clear()
    outbox._handle_failure(call, OSError("the process that talks to it ended"), seconds=0.0)
    assert not outbox.is_lost
    assert caplog.text == ""
    late_tracker._finish()
