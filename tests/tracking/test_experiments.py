"""Experiments and runs that the environment names, also where they are gone."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from tests.tracking.stored_runs import rows, runs

NAMES = "SELECT experiments.name FROM runs JOIN experiments USING (experiment_id)"


@pytest.fixture
def client(folder):
    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")


def experiment_names(folder) -> list[str]:
    return [name for (name,) in rows(folder, NAMES)]


def test_the_variables_of_mlflow_choose_the_experiment(new_tracker, folder, client, monkeypatch):
    by_id = client.create_experiment("by id", f"file://{folder}/by_id")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", by_id)
    new_tracker().end("FINISHED")
    assert experiment_names(folder) == ["by id"]
    # As in MLflow, the name counts more.
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by name")
    new_tracker().end("FINISHED")
    assert sorted(experiment_names(folder)) == ["by id", "by name"]
    # Empty variables count as not set.
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    new_tracker().end("FINISHED")
    assert sorted(experiment_names(folder)) == ["by id", "by name", "tests"]


@pytest.mark.parametrize("experiment_id", ["12345", "no number"])
def test_an_unknown_experiment_costs_a_warning(
    experiment_id, new_tracker, folder, monkeypatch, caplog
):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    new_tracker().end("FINISHED")
    assert experiment_names(folder) == ["tests"]
    assert f"MLFLOW_EXPERIMENT_ID is {experiment_id}, and MLflow has no such" in caplog.text


def test_a_deleted_experiment_stays_deleted_and_no_run_is_lost(
    new_tracker, folder, client, monkeypatch, caplog
):
    experiment_id = client.create_experiment("tests")
    client.delete_experiment(experiment_id)
    for _ in range(2):
        new_tracker().end("FINISHED")
    assert experiment_names(folder) == ["tests-2", "tests-2"]
    assert "'tests' is deleted: the run is logged to 'tests-2'" in caplog.text
    assert f"experiments restore --experiment-id {experiment_id}" in caplog.text
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    new_tracker().end("FINISHED")
    assert experiment_names(folder) == ["tests-2"] * 3
    client.restore_experiment(experiment_id)
    new_tracker().end("FINISHED")
    assert sorted(experiment_names(folder)) == ["tests", "tests-2", "tests-2", "tests-2"]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_stage_whose_shared_run_is_gone_has_its_own(
    is_known, new_tracker, folder, client, monkeypatch, caplog
):
    run_id = "0" * 32
    sentence = "has no such run"
    if is_known:
        first = new_tracker()
        first.end("FINISHED")
        run_id = first.open_run_id
        client.delete_run(run_id)
        sentence = f"mlflow runs restore --run-id {run_id}"
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    stage = new_tracker("training")
    stage.end("FINISHED")
    assert stage.open_run_id != run_id
    assert runs(folder)[stage.open_run_id] == "FINISHED"
    assert sentence in caplog.text


def test_an_experiment_name_may_have_any_character(new_tracker, folder, monkeypatch):
    name = "ü / $x$ 'quoted' \"twice\" % \\ 日本"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    new_tracker().end("FINISHED")
    assert experiment_names(folder) == [name]
