"""What tells runs apart in MLflow's list, and what a run has of models that an earlier one made."""

from __future__ import annotations

import json

import pytest

from pu_kd_pipeline.tracking.logged_model import alias_of
from pu_kd_pipeline.tracking.run_names import (
    VIEW_TAG,
    first_name,
    full_name,
    identifying_tags,
    is_given_by_a_run,
)
from tests.tracking.stored_runs import of_run, rows

BLOCKS = {
    "subset_materialization": {"rule": "nnpu", "seed": 3},
    "distillation": {
        "seed": 3,
        "student_architecture": "digits_cnn",
        "student_options": {"width": 4},
    },
}
METRICS = {
    "teacher": {"accuracy": 0.99, "parameters": 1000, "size_bytes": 4000},
    "student": {"accuracy": 0.955, "agreement": 0.97, "parameters": 100, "size_bytes": 400},
    "selection": {
        "n_selected": 7, "n_pool": 35, "class_prior": 0.2, "rule": "nnpu", "gain": -0.0123
    },
}  # fmt: skip


def test_name_and_tags_say_what_a_run_was_and_what_came_out(new_tracker, folder):
    tracker = new_tracker(**BLOCKS)
    tracker.flush()
    assert tracker.outbox.wait(60) == 0
    assert rows(folder, "SELECT name FROM runs") == [("full (base)",)]
    tracker.log_metrics(METRICS)
    tracker.end("FINISHED")
    [(name, run_id)] = rows(folder, "SELECT name, run_uuid FROM runs")
    assert name == "nnpu, seed 3: 95.5 %, gain −1.2 · full (base)"
    tags = of_run(folder, "tags", run_id)
    found = [tags[key] for key in ("rule", "seed", "student")]
    assert found == ["nnpu", "3", "digits_cnn, width 4"]
    assert tags["data"] == "data/a"

    # The list of runs opens with columns that exist, the best run first.
    [(text,)] = rows(folder, "SELECT value FROM experiment_tags WHERE key = ?", VIEW_TAG)
    view = json.loads(text)
    assert view["orderByKey"] in view["selectedColumns"]
    logged = {key for (key,) in rows(folder, "SELECT key FROM latest_metrics")}
    assert {f"metrics.`{key}`" for key in logged} >= {view["orderByKey"]}
    shown = set(view["selectedColumns"])
    assert {"tags.`rule`", "tags.`seed`", "tags.`student`", "tags.`data`"} <= shown


def test_a_name_that_a_person_chose_stays(new_tracker, folder):
    tracker = new_tracker(**BLOCKS)
    tracker.flush()
    assert tracker.outbox.wait(60) == 0
    tracker.worker.log.client.update_run(tracker.open_run_id, name="the good one")
    tracker.log_metrics(METRICS)
    tracker.end("FINISHED")
    assert rows(folder, "SELECT name FROM runs") == [("the good one",)]


def test_runs_of_many_students_have_their_seeds_and_no_rule():
    blocks = {
        "comparison.seeds": "[0, 1]",
        "distillation.seed": "7",
        "subset_materialization.rule": "nnpu",
        "distillation.student_architecture": "cnn",
    }
    assert identifying_tags(blocks) == {"seed": "0, 1"}
    # Blocks with different seeds are a run of both.
    assert identifying_tags({"a.seed": "1", "b.seed": "2", "b.options.seed": "3"}) == {
        "seed": "1, 2"
    }
    # The yardstick is the same for all seeds of the run.
    assert identifying_tags({"a.seed": "1", "yardstick.seed": "0"}) == {"seed": "1"}
    assert identifying_tags({}) == {}
    assert full_name("teacher (local)", {}, {}) == "teacher (local)"
    assert full_name("scores (local)", {"seed": "1"}, {}) == "seed 1 · scores (local)"


def test_a_run_without_a_selection_has_no_rule():
    rule = {"subset_materialization.rule": "mixture"}
    students = {"distillation.student_architecture": "cnn"}
    unlabeled = {"unlabeled_distillation.student_architecture": "small"}
    assert identifying_tags({**rule, **students}) == {"rule": "mixture", "student": "cnn"}
    # These read the block for the images that it excludes.
    assert identifying_tags({**rule, **unlabeled}) == {"student": "small"}
    assert identifying_tags({**rule, "relatedness.n_images": "5"}) == {}


def test_a_name_fits_every_store_and_keeps_its_end():
    start = first_name("comparison " * 50, "an environment " * 50)
    seeds = ", ".join(map(str, range(100)))
    name = full_name(start, {"seed": seeds}, {"student/accuracy": 0.5})
    assert len(name) == 250
    assert name.startswith("seed 0, 1, 2")
    assert is_given_by_a_run(name, start)


@pytest.mark.parametrize(
    ("environment", "alias"),
    [("local", "local"), ("my.env/é", "my-env--"), ("latest", "env-latest"), ("v2", "env-v2")],
)
def test_an_alias_is_one_that_mlflow_accepts(environment, alias):
    from mlflow.utils.validation import _validate_model_alias_name

    assert alias_of(environment) == alias
    _validate_model_alias_name(alias)


def test_a_model_of_an_earlier_run_is_linked_with_its_metrics(
    new_tracker, new_model, folder, caplog
):
    import torch

    torch.manual_seed(0)
    model = new_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), 2, 2)
    other = new_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), 2, 2)
    first = new_tracker("distillation")
    first.log_model("student_model", model, None)
    # Its own model is no input of it.
    first.link_model("student_model", model)
    first.end("FINISHED")
    second = new_tracker("evaluation")
    second.link_model("student_model", model)
    second.log_metrics(METRICS)
    second.end("FINISHED")
    assert "WARNING" not in caplog.text

    [(model_id,)] = rows(folder, "SELECT model_id FROM logged_models")
    linked = rows(
        folder,
        "SELECT source_id, destination_id FROM inputs WHERE destination_type = 'MODEL_INPUT'",
    )
    assert linked == [(second.open_run_id, model_id)]
    # One point for each metric, which the pages of run and model share.
    points = rows(folder, "SELECT metric_name, metric_value FROM logged_model_metrics")
    assert dict(points)["student/accuracy"] == 0.955
    assert rows(folder, "SELECT value FROM metrics WHERE key = 'student/accuracy'") == [(0.955,)]
    tags = dict(rows(folder, "SELECT key, value FROM model_version_tags"))
    assert tags["accuracy"] == "0.9550"
    assert tags["data"] == "data/a"
    aliases = rows(folder, "SELECT alias, version FROM registered_model_aliases")
    assert aliases == [("base", 1)]

    third = new_tracker("evaluation")
    third.link_model("student_model", other)
    third.end("FINISHED")
    assert "MLflow has no student_model of this fingerprint" in caplog.text
