"""Cells of a comparison as child runs of the run."""

from __future__ import annotations

import sqlite3
import time

import pytest

from pu_kd_pipeline.tracking.client import Tracker
from pu_kd_pipeline.tracking.config import TrackingConfig
from tests.tracking.stored_runs import rows


def test_each_cell_is_a_child_run_of_the_run(folder):
    config = TrackingConfig(
        enabled=True,
        tracking_uri=None,
        experiment="tests",
        registered_model=None,
        folder="mlflow",
        system_metrics_interval_s=None,
        max_wait_s=60,
    )
    tracker = Tracker(
        config, project_path=folder, stage="comparison", environment="base", parameters={}
    )
    for seed in (0, 1):
        parameters = {"distillation": {"temperature": 1.0}, "seed": seed}
        # NaN and None are numbers that a cell does not have: they are not logged.
        metrics = {"accuracy": 0.5 + seed, "auc": float("nan"), "failure": None}
        tracker.log_child(f"pu, seed {seed}", parameters, metrics)
    tracker.end("FINISHED")
    with sqlite3.connect(folder / "mlflow" / "mlflow.db") as store:
        runs = store.execute("SELECT name, status FROM runs").fetchall()
        parents = store.execute(
            "SELECT DISTINCT value FROM tags WHERE key = 'mlflow.parentRunId'"
        ).fetchall()
        logged = store.execute("SELECT key, value FROM metrics ORDER BY value").fetchall()
        parameters = store.execute("SELECT key, value FROM params").fetchall()
    assert dict(runs) == {
        "comparison (base)": "FINISHED",
        "pu, seed 0": "FINISHED",
        "pu, seed 1": "FINISHED",
    }
    assert parents == [(tracker.open_run_id,)]
    assert logged == [("accuracy", 0.5), ("accuracy", 1.5)]
    assert set(parameters) == {("distillation.temperature", "1.0"), ("seed", "0"), ("seed", "1")}


def test_a_cell_that_a_run_has_logged_is_not_logged_again(new_tracker, folder):
    result = {"seconds": 1.25, "accuracy": 0.5, "test_images": "ab", "failure": None}
    first = new_tracker("comparison")
    first.log_child("pu", {"seed": 0}, {**result, "history": {}})
    first.end("FINISHED")
    second = new_tracker("comparison")
    again = {**result, "n_pool": 3}
    second.log_child("pu", {"seed": 0}, again, ended_at_s=1_000_000.0)
    second.log_child("pu", {"seed": 0}, {**again, "seconds": 1.5}, ended_at_s=1_000_000.0)
    second.end("FINISHED")
    names = rows(folder, "SELECT name, start_time FROM runs WHERE name = 'pu'")
    # The other one is of another computation.
    assert len(names) == 2
    assert ("pu", 999_998_500) in names


def test_a_trial_has_its_own_times_and_its_curves(new_tracker, folder):
    tracker = new_tracker("comparison")
    now_s = time.time()
    history = {"update": [100, 200], "loss": [2.0, float("nan")], "agreement": [0.5, 0.75]}
    tracker.log_child("new", {"seed": 0}, {"seconds": 30.0, "accuracy": 0.5, "history": history})
    curve = {"curve_updates": [100, 400], "curve_accuracy": [0.25, 0.5], "failure": None}
    tracker.log_child("old", {"seed": 1}, {"seconds": 60.0, **curve}, ended_at_s=1_000_000.0)
    tracker.log_child("bad", {"seed": 2}, {"seconds": 1.0, "failure": "nothing is selected"})
    assert tracker.has_child("old")
    assert not tracker.has_child("other")
    tracker.log_note("| variant | accuracy |\n| --- | --- |\n| pu | 50 % |")
    tracker.end("FINISHED")

    found = {}
    for name, status, start, end in rows(
        folder, "SELECT name, status, start_time, end_time FROM runs"
    ):
        found[name] = (status, start, end)
    status, start, end = found["new"]
    assert (status, end - start) == ("FINISHED", 30_000)
    assert end / 1000 == pytest.approx(now_s, abs=30)
    # That of an earlier run was computed then, and not now.
    assert found["old"] == ("FINISHED", 999_940_000, 1_000_000_000)
    assert found["bad"][0] == "FAILED"

    query = "SELECT name, key, step, timestamp, value FROM metrics JOIN runs USING (run_uuid) "
    points = rows(folder, query + "WHERE key LIKE 'curves/%' ORDER BY name, key, step")
    start_ms = found["new"][1]
    assert [(name, key, step, value) for name, key, step, _, value in points] == [
        ("new", "curves/agreement", 100, 0.5),
        ("new", "curves/agreement", 200, 0.75),
        ("new", "curves/loss", 100, 2.0),
        ("old", "curves/watched_accuracy", 100, 0.25),
        ("old", "curves/watched_accuracy", 400, 0.5),
    ]
    assert points[0][3] == pytest.approx(start_ms + 15_000, abs=2)
    assert points[3][3] == 999_955_000
    [(note,)] = rows(
        folder,
        "SELECT value FROM tags WHERE key = 'mlflow.note.content' AND run_uuid = ?",
        str(tracker.open_run_id),
    )
    assert "| pu | 50 % |" in note
