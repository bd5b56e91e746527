"""Servers and stores that would hold a run for minutes, or fill its memory."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pu_kd_pipeline.tracking.client import Tracker
from pu_kd_pipeline.tracking.config import TrackingConfig
from pu_kd_pipeline.tracking.worker import Worker, WorkerError
from tests.tracking.hostile_server import BEHAVIORS, serving
from tests.tracking.stored_runs import statuses

LIMIT_S = 1.0


@pytest.fixture
def impatient_tracker(config: TrackingConfig, folder: Path) -> Callable[[str], Tracker]:
    """A function that makes a tracker of a store, with short limits and a process of its own."""

    def make(uri: str) -> Tracker:
        update = {"tracking_uri": uri, "max_wait_s": 2.0}
        return Tracker(
            config.model_copy(update=update),
            project_path=folder,
            stage="full",
            environment="base",
            parameters={},
            call_limit_s=LIMIT_S,
        )

    return make


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_whatever_a_server_does_a_run_ends_in_time(behavior, impatient_tracker, caplog):
    with serving(behavior) as uri:
        tracker = impatient_tracker(uri)
        # Importing MLflow takes longer than all limits here, and asks no server.
        tracker.worker.call("load", limit_s=60)
        start = time.monotonic()
        tracker.log_record("training", 1, {"loss": 1.0})
        tracker.flush()
        logging_seconds = time.monotonic() - start
        tracker.outbox.wait(30)
        tracker.end("FINISHED")
        seconds = time.monotonic() - start
    # The run itself never waits.
    assert logging_seconds < 0.5
    assert seconds < LIMIT_S + 2.0 + 8.0
    warnings = [each for each in caplog.records if each.levelname == "WARNING"]
    assert len(warnings) == 1
    assert not tracker.worker.is_running


def test_an_answer_without_end_does_not_take_the_memory(impatient_tracker, monkeypatch):
    from tests.tracking.hostile_server import endless_body

    with serving(endless_body) as uri:
        tracker = impatient_tracker(uri)
        tracker.worker.call("load", limit_s=60)
        process = psutil.Process(tracker.worker._process.pid)
        most_bytes = 0
        tracker.flush()
        while tracker.outbox.wait(0.05) and not tracker.is_lost:
            try:
                most_bytes = max(most_bytes, process.memory_info().rss)
            except psutil.NoSuchProcess:
                break
        tracker.end("FINISHED")
    assert most_bytes < 3 << 30


def test_a_process_that_hangs_is_ended_and_another_one_started():
    worker = Worker()
    worker.call("load", limit_s=60)
    first = worker._process.pid
    # It neither reads nor answers any more, not even a message larger than the pipe.
    os.kill(first, 19)
    start = time.monotonic()
    with pytest.raises(WorkerError, match="no complete answer within 0.5 seconds"):
        worker.call("load", b"x" * 1_000_000, limit_s=0.5)
    assert time.monotonic() - start < 5
    assert not psutil.pid_exists(first)
    worker.call("load", limit_s=60)
    assert worker.n_starts == 2
    worker.kill()


def test_a_locked_database_does_not_stop_the_run(impatient_tracker, folder):
    database = folder / "mlflow" / "mlflow.db"
    lock = sqlite3.connect(database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    tracker = impatient_tracker(f"sqlite:///{database}")
    tracker.worker.call("load", limit_s=60)
    start = time.monotonic()
    tracker.flush()
    tracker.outbox.wait(30)
    assert tracker.is_lost
    tracker.end("FINISHED")
    assert time.monotonic() - start < LIMIT_S + 10
    lock.close()
    assert statuses(folder) == []


def test_a_database_that_cannot_be_opened_costs_no_retries(impatient_tracker, folder, caplog):
    database = folder / "folder.db"
    database.mkdir()
    tracker = impatient_tracker(f"sqlite:///{database}")
    tracker.worker.call("load", limit_s=60)
    tracker.flush()
    start = time.monotonic()
    tracker.end("FINISHED")
    assert time.monotonic() - start < 5
    assert "unable to open database file (allow writing" in caplog.text


def test_a_thread_of_mlflow_that_hangs_does_not_keep_the_process(impatient_tracker):
    with serving(BEHAVIORS[1]) as uri:
        tracker = impatient_tracker(uri)
        tracker.flush()
        tracker.end("KILLED")
    names = [thread.name for thread in threading.enumerate() if not thread.daemon]
    assert names == ["MainThread"]
