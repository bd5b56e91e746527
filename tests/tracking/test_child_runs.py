"""Cells of a comparison as child runs of the run."""

from __future__ import annotations

import sqlite3

from pu_kd_pipeline.tracking.client import Tracker
from pu_kd_pipeline.tracking.config import TrackingConfig


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
