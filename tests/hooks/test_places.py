"""Places that cannot hold the data of a run are refused before its first node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from kedro.io import DataCatalog
from kedro.io.core import DatasetError
from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.catalog import dataset_location, dataset_path
from pu_kd_pipeline.hooks.places import check_places, check_tracking_folder, check_versions

TYPES = "pu_kd_pipeline.datasets"
PIPELINE = Pipeline([Node(lambda images: images, "images", "table", name="n")])


def catalog_in(data: str, **entries: dict[str, Any]) -> DataCatalog:
    """Return a catalog with all its data in one place."""
    base: dict[str, dict[str, Any]] = {
        "images": {"type": f"{TYPES}.ImageStoreDataset", "filepath": f"{data}/images"},
        "table": {"type": f"{TYPES}.TableDataset", "filepath": f"{data}/table.parquet"},
        "node_records": {"type": f"{TYPES}.FolderDataset", "filepath": f"{data}/node_records"},
        "checkpoints": {
            "type": f"{TYPES}.CheckpointsDataset",
            "filepath": f"{data}/checkpoints",
            "every_s": 30,
        },
    }
    return DataCatalog.from_config({**base, **entries})


def test_records_and_checkpoints_elsewhere_are_refused_in_one_sentence() -> None:
    with pytest.raises(InputError) as refusal:
        check_places(PIPELINE, catalog_in("memory://bucket/runs"))

    message = str(refusal.value)

    assert message == (
        "the catalog places `checkpoints`, `node_records` on another machine, and they have to be "
        "on this one: keep `data` here, and put image stores, tables, figures and models on object "
        "storage, with entries of their own in conf/<environment>/catalog.yml"
    )


def test_single_entries_elsewhere_are_accepted(tmp_path: Path) -> None:
    table = {"type": f"{TYPES}.TableDataset", "filepath": "memory://bucket/table.parquet"}
    catalog = catalog_in(str(tmp_path), table=table)

    check_places(PIPELINE, catalog)

    assert dataset_path(catalog, "table") is None
    assert dataset_location(catalog, "table") == "memory://table.parquet"
    assert dataset_location(catalog, "images") == str(tmp_path / "images")


def test_shards_elsewhere_are_accepted_where_they_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {
        "type": f"{TYPES}.ShardedTableDataset",
        "filepath": "memory://bucket/shards",
        "cache": str(tmp_path / "cache"),
        "cache_gb": 1,
    }
    catalog = catalog_in(str(tmp_path), table=shards)
    folder: Any = catalog.get("table").remote

    check_places(PIPELINE, catalog)
    assert folder.files() == {}
    assert dataset_location(catalog, "table") == "memory://shards"
    assert dataset_path(catalog, "table") is None

    def refuse(*_: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(folder._fs, "pipe_file", refuse)
    with pytest.raises(InputError, match=r"entry `table`: memory://shards/.* Access Denied"):
        check_places(PIPELINE, catalog)
    # A plan writes nothing, and what is only read need not be writable.
    check_places(PIPELINE, catalog, writes=False)


def test_shards_elsewhere_without_a_cache_are_refused(tmp_path: Path) -> None:
    shards = {"type": f"{TYPES}.ShardedTableDataset", "filepath": "memory://bucket/shards"}

    with pytest.raises(DatasetError, match="memory://shards needs a cache on this machine"):
        check_places(PIPELINE, catalog_in(str(tmp_path), table=shards))


def test_an_entry_of_kedros_own_that_cannot_be_reached_is_named(
    tmp_path: Path, monkeypatch
) -> None:
    metrics = {"type": "json.JSONDataset", "filepath": "memory://bucket/metrics.json"}
    catalog = catalog_in(str(tmp_path), table=metrics)

    def refuse() -> bool:
        raise PermissionError("no credentials")

    monkeypatch.setattr(catalog.get("table"), "_exists", refuse)
    with pytest.raises(InputError, match="catalog entry `table`: no credentials"):
        check_places(PIPELINE, catalog)


def test_a_data_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for data in (file, file / "below"):
        with pytest.raises(InputError, match=f"cannot be made: {file} is no folder; name another"):
            check_places(PIPELINE, catalog_in(str(data)))


def test_a_data_folder_that_is_read_only_is_refused(tmp_path: Path, monkeypatch) -> None:
    # Not by its mode: root may write to any folder.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(InputError, match=f"cannot be written: {tmp_path} is read-only"):
        check_places(PIPELINE, catalog_in(str(tmp_path / "new" / "runs")))


def test_a_data_folder_with_too_long_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="the data folder /xxx.* cannot be used: .*too long"):
        check_places(PIPELINE, catalog_in("/" + "x" * 5_000))


def test_a_data_folder_that_is_a_link_or_does_not_exist_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("link", "new/folder", "target/", "target/../other", "with space", "50%"):
        check_places(PIPELINE, catalog_in(f"{tmp_path}/{name}"))


def test_versions_of_an_entry_without_versions_are_refused(tmp_path: Path) -> None:
    table = {
        "type": f"{TYPES}.TableDataset",
        "filepath": str(tmp_path / "table.parquet"),
        "versioned": True,
    }
    catalog = catalog_in(str(tmp_path), table=table)

    check_versions(["table"], catalog)
    with pytest.raises(InputError, match="entry `images` has no versions: set `versioned: true`"):
        check_versions(["table", "images"], catalog)


def test_a_folder_of_mlflow_elsewhere_is_refused_unless_it_is_not_used(monkeypatch) -> None:
    config = {"enabled": True, "tracking_uri": None, "folder": "s3://bucket/mlflow"}

    with pytest.raises(InputError, match="folder: s3://bucket/mlflow is not on this machine"):
        check_tracking_folder({"mlflow": config})
    check_tracking_folder({"mlflow": {**config, "enabled": False}})
    check_tracking_folder({"mlflow": {**config, "tracking_uri": "http://mlflow"}})
    check_tracking_folder({"mlflow": {**config, "folder": "data/mlflow"}})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    check_tracking_folder({"mlflow": config})
