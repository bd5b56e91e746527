"""One MLflow run that the stages of a pipeline share."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from pu_kd_pipeline.tracking.run import open_shared_run
from tests.tracking.stored_runs import of_run, rows, runs, statuses

STUDENT = {"distillation": {"seed": 3, "student_architecture": "cnn"}}


def test_stages_share_a_run_whose_status_follows_from_all_of_them(new_tracker, folder, monkeypatch):
    first = new_tracker("ingestion", seed=0)
    first.end("FINISHED")
    assert first.open_run_id is not None
    monkeypatch.setenv("MLFLOW_RUN_ID", first.open_run_id)

    training = new_tracker("pu_training", epochs=20)
    training.flush()
    assert training.outbox.wait(60) == 0
    scoring = new_tracker("pool_scoring")
    scoring.flush()
    assert scoring.outbox.wait(60) == 0
    assert statuses(folder) == ["RUNNING"]
    training.end("FAILED")
    # Scoring still runs.
    assert statuses(folder) == ["RUNNING"]
    scoring.end("FINISHED")
    assert statuses(folder) == ["FAILED"]

    # A stage that is repeated makes up for its failure.
    again = new_tracker("pu_training", epochs=30)
    again.flush()
    assert again.outbox.wait(60) == 0
    assert statuses(folder) == ["RUNNING"]
    again.end("FINISHED")
    assert runs(folder) == {first.open_run_id: "FINISHED"}

    # MLflow does not let parameters change, so that a tag has the new value.
    parameters = of_run(folder, "params", first.open_run_id)
    assert parameters == {"seed": "0", "epochs": "20"}
    tags = of_run(folder, "tags", first.open_run_id)
    assert tags["changed.epochs"] == "30"
    for stage in ("ingestion", "pu_training", "pool_scoring"):
        assert tags[f"stage.{stage}"] == "FINISHED"


def test_stages_find_the_shared_run_in_a_file(config, new_tracker, folder, monkeypatch):
    run_id = open_shared_run(config, project_path=folder, environment="base")
    assert runs(folder) == {run_id: "RUNNING"}
    tags = of_run(folder, "tags", run_id)
    assert tags["mlflow.runName"] == "full (base)"

    run_id_file = folder / "run_id"
    run_id_file.write_text(f"{run_id}\n")
    monkeypatch.setenv("PU_KD_RUN_ID_FILE", str(run_id_file))
    tracker = new_tracker("pu_training")
    tracker.flush()
    assert tracker.outbox.wait(60) == 0
    tracker.end("FINISHED")
    assert runs(folder) == {run_id: "FINISHED"}


def test_a_stage_that_closes_does_not_touch_the_status_that_another_one_sets(
    new_tracker, folder, monkeypatch
):
    from mlflow import MlflowClient

    first = new_tracker("distillation", **STUDENT)
    first.flush()
    assert first.outbox.wait(60) == 0
    run_id = first.open_run_id
    assert run_id is not None
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    get_run = MlflowClient.get_run

    def get_run_before_another_stage_ends(client, wanted):
        run = get_run(client, wanted)
        if run.data.tags.get("stage.distillation") == "FINISHED":
            client.set_terminated(wanted, "KILLED")
        return run

    monkeypatch.setattr(MlflowClient, "get_run", get_run_before_another_stage_ends)
    tags = {"stage.evaluation": "RUNNING"}
    for key, value in tags.items():
        first.worker.log.client.set_tag(run_id, key, value)
    first.end("FINISHED")
    # The run is still that of the other stage, which will name it.
    assert rows(folder, "SELECT name, status FROM runs") == [("distillation (base)", "KILLED")]


def test_a_repeated_stage_of_the_student_changes_what_names_the_run(
    new_tracker, folder, monkeypatch
):
    first = new_tracker("data_ingestion", data_ingestion={"seed": 9})
    first.end("FINISHED")
    assert first.open_run_id is not None
    monkeypatch.setenv("MLFLOW_RUN_ID", first.open_run_id)
    names = []
    for rule in ("mixture", "nnpu"):
        student = {**STUDENT, "subset_materialization": {"rule": rule}}
        new_tracker("distillation", **student).end("FINISHED")
        new_tracker("evaluation", evaluation={"seed": 7}).end("FINISHED")
        names += rows(folder, "SELECT name FROM runs")
    assert names == [
        ("mixture, seed 3 · data_ingestion (base)",),
        ("nnpu, seed 3 · data_ingestion (base)",),
    ]


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_without_a_shared_run_a_stage_has_its_own(text, new_tracker, folder, monkeypatch):
    run_id_file = folder / "run_id"
    # The file is empty where the shared run could not be opened.
    if text is not None:
        run_id_file.write_text(text)
    monkeypatch.setenv("PU_KD_RUN_ID_FILE", str(run_id_file))
    tracker = new_tracker("pu_training")
    tracker.flush()
    assert tracker.outbox.wait(60) == 0
    tracker.end("FINISHED")
    assert statuses(folder) == ["FINISHED"]


def test_an_unreachable_server_costs_the_shared_run_and_one_warning(
    config, folder, monkeypatch, caplog
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert open_shared_run(config, project_path=folder, environment="base") == ""
    assert "MLflow at http://127.0.0.1:9 failed, there is no run to share" in caplog.text


def test_the_command_that_opens_a_run_prints_its_identifier_alone(kedro, tmp_path):
    store = tmp_path / "store.db"
    process = kedro("containers", "open-run", MLFLOW_TRACKING_URI=f"sqlite:///{store}")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    with closing(sqlite3.connect(store)) as opened:
        [(run_id,)] = opened.execute("SELECT run_uuid FROM runs").fetchall()
    # A shell stores the output: another word would become part of the identifier.
    assert out.splitlines()[-1] == run_id
    assert len(out.split()) == 1
