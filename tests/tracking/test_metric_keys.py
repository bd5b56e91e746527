"""The keys of metrics: names of classes in them, and one source for each."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pu_kd_pipeline.tracking.keys import class_keys, metric_values
from pu_kd_pipeline.tracking.pending_metrics import PendingMetrics
from tests.pipelines.finished_run import REPORTING
from tests.tracking.stored_runs import rows


def test_metrics_of_classes_have_their_names():
    metrics = {
        "student": {"accuracy": 0.5, "per_class_accuracy": [0.25, None], "curve": [1, 2]},
        "classes": ["cat", "tabby, or: d/g"],
    }
    assert list(metric_values(metrics)) == [
        ("student/accuracy", 0, 0.5),
        ("student/per_class_accuracy/cat", 0, 0.25),
        ("student/per_class_accuracy/tabby_ or: d_g", 0, None),
        # As many values as classes, and not one for each of them.
        ("student/curve", 0, 1),
        ("student/curve", 1, 2),
        ("classes", 0, "cat"),
        ("classes", 1, "tabby, or: d/g"),
    ]


def test_values_without_names_of_classes_are_steps():
    metrics = {"student": {"per_class_accuracy": [0.25, 0.5]}}
    key = "student/per_class_accuracy"
    assert list(metric_values(metrics)) == [(key, 0, 0.25), (key, 1, 0.5)]


def test_classes_that_mlflow_cannot_tell_apart_have_different_keys():
    names = ["a#", "a@", "A_", "", "..", "x" * 200, "x" * 200 + "y", "a__1"]
    keys = class_keys(names)
    assert keys[:2] == ["a_", "a__1"]
    folded = {key.casefold() for key in keys}
    assert len(folded) == len(names)


@given(st.lists(st.text(max_size=300), max_size=8))
def test_mlflow_accepts_every_key_of_a_class(names):
    from mlflow.utils.validation import _validate_metric_name

    keys = class_keys(names)
    for key in keys:
        _validate_metric_name(f"student/per_class_accuracy/{key}")
    assert len({key.casefold() for key in keys}) == len(names)


def test_a_second_source_of_a_key_gets_another_one(caplog):
    pending = PendingMetrics()
    for step in (1, 2):
        pending.add("teacher/accuracy", 1.0, step, source="teacher")
    for step in (0, 1):
        pending.add("teacher/accuracy", 0.9, step, source="results")
    [metrics] = pending.taken_in_batches(10)
    keys = [(key, step) for key, _, _, step in metrics]
    assert keys == [
        ("teacher/accuracy", 1),
        ("teacher/accuracy", 2),
        ("results/teacher/accuracy", 0),
        ("results/teacher/accuracy", 1),
    ]
    [message] = caplog.messages
    assert "teacher/accuracy of results is logged to MLflow as results/teacher/accuracy" in message


def test_metrics_of_a_failed_request_are_sent_again():
    pending = PendingMetrics()
    for step in range(5):
        pending.add("loss", 1.0, step, source="training")
    batches = pending.taken_in_batches(2)
    assert [step for *_, step in next(batches)] == [0, 1]
    assert [step for *_, step in next(batches)] == [2, 3]
    # The request of the second batch failed.
    batches.close()
    steps = []
    for batch in pending.taken_in_batches(10):
        steps += [step for *_, step in batch]
    assert steps == [2, 3, 4]
    assert len(pending) == 0


@pytest.mark.xdist_group("finished_run")
def test_a_run_logs_the_results_that_its_file_has(finished_run):
    metrics = json.loads((finished_run / REPORTING / "metrics.json").read_text())
    with closing(sqlite3.connect(finished_run / "mlflow" / "mlflow.db")) as store:
        logged = dict(store.execute("SELECT key, value FROM latest_metrics").fetchall())
    results = {}
    for key, _, value in metric_values(metrics):
        if isinstance(value, int | float):
            results[key] = float(value)  # MLflow stores true as 1
    assert {key: logged[key] for key in results} == pytest.approx(results)
    for name in ("teacher", "student", "random_student"):
        for digit, value in enumerate(metrics[name]["per_class_accuracy"]):
            assert logged[f"{name}/per_class_accuracy/{digit}"] == pytest.approx(value)

    # Every result is one value, so nothing else was logged by its name.
    query = "SELECT key, count(*) FROM metrics GROUP BY key"
    counts = dict(rows(finished_run, query))
    assert {counts[key] for key in results} == {1}
    # What is not a result has the name of its loop, of the stages, or of the system.
    loops = {key.partition("/")[0] for key in counts if key not in results}
    assert loops == {
        "teacher_training",
        "pu_training",
        "distillation",
        "random_baseline",
        "stages",
        "system",
    }
    # No record of a loop was moved to another key.
    assert "is logged to MLflow as" not in (finished_run / "output.txt").read_text()
