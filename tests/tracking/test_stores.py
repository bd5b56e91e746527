"""Stores: their addresses, and data folders that were moved or have odd names."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.summary import _mlflow_hint
from pu_kd_pipeline.tracking.client import Tracker
from pu_kd_pipeline.tracking.config import data_name, store_folder
from tests.tracking.conftest import LocalWorker
from tests.tracking.stored_runs import rows, statuses

REFUSED = {
    "mlruns": "no longer logs to folders of files",
    "/data/mlruns": "no longer logs to folders of files",
    "file:///data/mlruns": "no longer logs to folders of files",
    "ftp://user:secret@host/mlruns": r"ftp://\*\*\*@host/mlruns",
    "sqlite:////data/a?b/mlflow.db": "Choose a folder without one",
    "sqlite:////data/a%20b/mlflow.db": "Rename the folder",
    "sqlite:////data/a\nb/mlflow.db": "printable characters",
    "sqlite:////" + "a" * 2000: "a shorter path",
}


@pytest.mark.parametrize("uri", REFUSED)
def test_an_address_that_mlflow_cannot_use_is_refused_before_the_run(uri, new_tracker, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=REFUSED[uri]) as raised:
        new_tracker()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://host:5000",
        "https://user:secret@host/mlflow",
        "databricks",
        "databricks://profile",
        "postgresql+psycopg://user:secret@host/db",
        "sqlite:///relative.db",
    ],
)
def test_an_address_of_a_server_or_database_is_taken(uri, new_tracker, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracker = new_tracker()
    assert "secret" not in tracker.address
    tracker._finish()


def log_file(config, project_path: Path, folder: Path) -> None:
    """Log one file in a run of its own."""
    tracker = Tracker(
        config.model_copy(update={"folder": str(folder)}),
        project_path=project_path,
        stage="full",
        environment="base",
        parameters={},
        worker=LocalWorker(),
    )
    source = project_path / "numbers.json"
    source.write_text("{}")
    tracker.log_file(source, "files")
    tracker.end("FINISHED")


def logged_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("artifacts/files/numbers.json"))


@pytest.mark.parametrize(
    "name", ["a b", "100%", "a#b", "it's", '"q"', "ü日本", "a;b&c=d+e:f@g", "a\\b", "$HOME{x}[y]|"]
)
def test_a_folder_with_odd_characters_is_used_as_it_is(name, config, folder, tmp_path):
    data = tmp_path / name
    (data / "mlflow").mkdir(parents=True)
    shutil.copy(folder / "mlflow" / "mlflow.db", data / "mlflow")
    log_file(config, tmp_path, data / "mlflow")
    assert statuses(data) == ["FINISHED"]
    assert len(logged_files(data)) == 1
    assert len(logged_files(tmp_path)) == 1


def test_after_a_data_folder_was_moved_new_files_are_in_the_new_place(config, folder, tmp_path):
    log_file(config, tmp_path, folder / "mlflow")
    moved = tmp_path / "else where"
    moved.mkdir()
    (folder / "mlflow").rename(moved / "mlflow")
    log_file(config, tmp_path, moved / "mlflow")
    assert len(logged_files(moved)) == 2
    assert not (folder / "mlflow").exists()
    # The files of earlier runs are found, too.
    new = (moved / "mlflow" / "artifacts").as_uri()
    for (uri,) in rows(moved, "SELECT artifact_uri FROM runs"):
        assert uri.startswith(f"{new}/")


def test_a_copied_data_folder_does_not_write_to_the_first_one(config, folder, tmp_path):
    log_file(config, tmp_path, folder / "mlflow")
    copy = tmp_path / "copy"
    shutil.copytree(folder / "mlflow", copy / "mlflow")
    log_file(config, tmp_path, copy / "mlflow")
    assert len(logged_files(folder / "mlflow")) == 1
    assert len(logged_files(copy)) == 2


def test_files_of_an_experiment_with_a_place_of_its_own_stay_there(config, folder, tmp_path):
    own = tmp_path / "own"
    log_file(config, tmp_path, folder / "mlflow")
    with closing(sqlite3.connect(folder / "mlflow" / "mlflow.db")) as store, store:
        store.execute("UPDATE experiments SET artifact_location = ?", (own.as_uri(),))
    log_file(config, tmp_path, folder / "mlflow")
    assert len(logged_files(own)) == 1


def test_a_database_of_another_mlflow_says_what_to_do(new_tracker, folder, caplog):
    with closing(sqlite3.connect(folder / "mlflow" / "mlflow.db")) as store, store:
        store.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    new_tracker().end("FINISHED")
    assert "another version of MLflow wrote this database" in caplog.text
    assert caplog.text.count("WARNING") == 1


def test_a_damaged_database_says_what_to_do(new_tracker, folder, caplog):
    (folder / "mlflow" / "mlflow.db").write_bytes(b"no database " * 1000)
    new_tracker().end("FINISHED")
    assert "move the damaged file away" in caplog.text
    assert caplog.text.count("WARNING") == 1


def product_config(config, data: str, **changes: object):
    """Return a configuration with the shared store of conf/base/mlflow.yml."""
    values = {"folder": f"{data}/mlflow", "data": data, "shared_folder": "data/mlflow", **changes}
    return config.model_copy(update=values)


def test_data_folders_inside_of_a_project_share_one_store(config, tmp_path):
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    (project / "linked").symlink_to(disk)
    shared = project / "data" / "mlflow"

    for data in ("data", "data/seed1", "runs", str(project / "elsewhere"), "linked/seed2"):
        assert store_folder(product_config(config, data), project) == shared
    # Another disk, and a folder that was chosen, are taken as they are.
    outside = product_config(config, str(disk / "runs"))
    assert store_folder(outside, project) == disk / "runs" / "mlflow"
    chosen = product_config(config, "data/seed1", folder="mine")
    assert store_folder(chosen, project) == project / "mine"
    alone = product_config(config, "data/seed1", shared_folder=None)
    assert store_folder(alone, project) == project / "data" / "seed1" / "mlflow"


def test_a_project_that_is_reached_through_a_link_has_the_shared_store(config, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    link = tmp_path / "link"
    link.symlink_to(project)
    for data in ("data", "data/b", str(link / "data" / "b"), str(project / "data" / "b")):
        for path in (project, link):
            chosen = product_config(config, data)
            assert store_folder(chosen, path) == project / "data" / "mlflow"
            assert data_name(chosen, path) == ("data" if data == "data" else "data/b")
    assert data_name(product_config(config, "/elsewhere/b"), project) == "/elsewhere/b"
    masked = data_name(product_config(config, "https://user:secret@host/b"), project)
    assert masked == "https://***@host/b"


def test_the_summary_names_what_opens_the_store_of_the_run(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PU_KD_PROJECT_FOLDER", str(tmp_path))

    def hint(data: str, **changes: object) -> str:
        values = product_config(config, data, **changes).model_dump()
        context: Any = SimpleNamespace(config_loader={"mlflow": values}, project_path=tmp_path)
        return _mlflow_hint(context, tmp_path / data)

    assert hint("data") == hint("data/seed1") == "make mlflow"
    own = tmp_path / "data" / "seed1" / "mlflow"
    assert hint("data/seed1", shared_folder=None) == f"make mlflow STORE={own}"
    assert hint("data/seed1", folder="mine") == f"make mlflow STORE={tmp_path / 'mine'}"
    outside = tmp_path.parent / "outside"
    assert hint(str(outside)) == f"make mlflow DATA={outside}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////x/other.db")
    assert hint("data") == "sqlite:////x/other.db"


def test_earlier_runs_of_a_data_folder_are_not_hidden_without_a_word(
    config, folder, tmp_path, caplog, monkeypatch
):
    def started(data: str, **changes: object) -> str:
        caplog.clear()
        tracker = Tracker(
            product_config(config, data, **changes),
            project_path=tmp_path,
            stage="full",
            environment="base",
            parameters={},
            worker=LocalWorker(),
        )
        tracker.start()
        tracker.start()
        tracker.discard()
        folders.append(tracker.settings.folder)
        return caplog.text

    folders: list[Path] = []

    earlier = tmp_path / "data" / "seed1"
    (earlier / "mlflow").mkdir(parents=True)
    assert started("data/seed1") == ""
    shutil.copy(folder / "mlflow" / "mlflow.db", earlier / "mlflow")
    text = started("data/seed1")
    assert text.count("WARNING") == 1
    assert f"`make mlflow STORE={earlier / 'mlflow'}` shows them" in text
    assert "set `shared_folder: null` in conf/base/mlflow.yml to log there" in text
    assert started("data/seed1", shared_folder=None) == ""
    assert folders[-2:] == [tmp_path / "data" / "mlflow", earlier / "mlflow"]
    assert started("data") == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/mlflow.db")
    assert started("data/seed1") == ""
