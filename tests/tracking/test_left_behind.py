"""Runs whose processes were killed, and what the next run does about them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from pu_kd_pipeline.tracking import processes
from pu_kd_pipeline.tracking.processes import ProcessIdentity, identity_of, is_known_dead
from tests.tracking.conftest import LocalWorker
from tests.tracking.stored_runs import of_run, rows, runs


@pytest.fixture
def dead_process() -> ProcessIdentity:
    """A process that ran a moment ago."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = identity_of(process.pid)
    process.kill()
    process.communicate()
    return identity


def test_only_a_process_that_certainly_ended_is_dead(dead_process):
    assert is_known_dead(dead_process)
    own = identity_of(os.getpid())
    assert not is_known_dead(own)
    # The number was used again by another process.
    assert is_known_dead(replace(own, started="1"))
    # The machine was started again, or has another name or another container.
    assert not is_known_dead(replace(dead_process, boot="b", host="elsewhere"))
    assert not is_known_dead(replace(dead_process, boot="b", machine="m"))
    assert not is_known_dead(replace(dead_process, namespace="pid:[1]"))
    assert not is_known_dead(replace(dead_process, namespace="pid:[1]", boot="b"))
    assert ProcessIdentity.from_text(own.to_text()) == own
    for text in ("", "[]", "{}", '{"host": 1}', "\x00"):
        assert ProcessIdentity.from_text(text) is None


def test_a_process_from_before_a_restart_of_the_machine_is_dead(monkeypatch, tmp_path):
    machine_id = tmp_path / "machine-id"
    machine_id.write_text("0123\n")
    monkeypatch.setattr(processes, "MACHINE_ID", machine_id)
    monkeypatch.setattr(processes, "_namespace", lambda: processes.OUTSIDE_OF_CONTAINERS)
    own = identity_of(os.getpid())
    assert own.host == socket.gethostname()
    # The identifier of the machine is confidential.
    assert "0123" not in own.machine
    # The identifier of the machine is confidential.
    assert "0123" not in own.machine
    before = replace(own, boot="another", started="1")
    assert is_known_dead(before)
    # Without an identifier, another machine may have the same name.
    machine_id.write_text("")
    assert not is_known_dead(replace(before, machine=""))


def test_a_zombie_has_ended():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = identity_of(process.pid)
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert is_known_dead(identity)
    process.communicate()


def killed_tracker(new_tracker, monkeypatch, identity: ProcessIdentity, *stages: str) -> str:
    """Open a run as a process that ends without closing it; return its identifier."""
    with monkeypatch.context() as patches:
        patches.setattr("pu_kd_pipeline.tracking.run_log.identity_of", lambda _: identity)
        for stage in stages:
            tracker = new_tracker(stage)
            tracker.flush()
            assert tracker.outbox.wait(60) == 0
            tracker._finish()
    return tracker.open_run_id


def test_the_next_run_closes_what_a_dead_process_left(
    new_tracker, folder, monkeypatch, dead_process
):
    living = identity_of(os.getpid())
    elsewhere = replace(living, host="elsewhere", boot="b", machine="m")
    of_dead = killed_tracker(new_tracker, monkeypatch, dead_process, "full")
    of_living = killed_tracker(new_tracker, monkeypatch, living, "full")
    of_other = killed_tracker(new_tracker, monkeypatch, elsewhere, "full")
    tracker = new_tracker("full")
    tracker.end("FINISHED")
    assert runs(folder) == {
        of_dead: "KILLED",
        of_living: "RUNNING",
        of_other: "RUNNING",
        tracker.open_run_id: "FINISHED",
    }


def test_a_shared_run_stays_open_while_one_of_its_stages_runs(
    new_tracker, folder, monkeypatch, dead_process
):
    first = new_tracker("ingestion")
    first.end("FINISHED")
    shared = first.open_run_id
    with monkeypatch.context() as patches:
        patches.setenv("MLFLOW_RUN_ID", shared)
        killed_tracker(new_tracker, patches, dead_process, "training")
        killed_tracker(new_tracker, patches, identity_of(os.getpid()), "scoring")
    new_tracker("other").end("FINISHED")
    assert runs(folder)[shared] == "RUNNING"
    tags = of_run(folder, "tags", shared)
    assert tags["stage.training"] == "KILLED"
    assert tags["stage.scoring"] == "RUNNING"

    monkeypatch.setenv("MLFLOW_RUN_ID", shared)
    scoring = new_tracker("scoring")
    scoring.end("FINISHED")
    assert runs(folder)[shared] == "KILLED"


def test_a_child_run_that_was_left_is_closed(new_tracker, folder, monkeypatch, dead_process):
    class DyingWorker(LocalWorker):
        """Its process ends after it created a child run."""

        def call(self, method, *args, limit_s, **options):
            if method == "log_child":
                with monkeypatch.context() as patches:
                    patches.setattr(self.log.client, "log_batch", None)
                    patches.setattr(
                        "pu_kd_pipeline.tracking.run_log.identity_of", lambda _: dead_process
                    )
                    return super().call(method, *args, limit_s=limit_s, **options)
            return super().call(method, *args, limit_s=limit_s, **options)

    tracker = new_tracker(worker=DyingWorker())
    tracker.log_child("cell", {}, {"accuracy": 1.0})
    tracker.end("FINISHED")
    assert sorted(runs(folder).values()) == ["FINISHED", "RUNNING"]
    new_tracker().end("FINISHED")
    assert sorted(runs(folder).values()) == ["FINISHED", "FINISHED", "KILLED"]


def test_a_run_that_is_killed_is_closed_by_the_process_that_logs_it(kedro, folder):
    params = f"data={folder},training.diary={folder / 'diary'},training.mode=wait"
    process = kedro("run", "--pipeline=pu_training", f"--params={params}")
    deadline = time.monotonic() + 60
    # The first record opens the run.
    while not rows(folder, "SELECT * FROM metrics"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    [worker] = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running()
    assert list(runs(folder).values()) == ["KILLED"]
