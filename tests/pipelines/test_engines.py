"""A run with another engine writes the same files, and makes nothing again that is finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import run_kedro
from tests.pipelines.finished_run import FEATURES

TABLES = ("labeled_features", "pool_features")
# Several shards, of which processes can make one each.
PARAMS = ("data_ingestion.store.shard_size=1000",)


def contents(data: Path) -> dict[str, bytes]:
    found = {}
    for table in TABLES:
        for file in (data / FEATURES / table).iterdir():
            found[f"{table}/{file.name}"] = file.read_bytes()
    return found


@pytest.mark.slow
def test_features_of_processes_are_those_of_the_local_engine(tmp_path: Path) -> None:
    stages = "--pipelines=data_ingestion,teacher,feature_extraction"
    local = run_kedro(stages, data=tmp_path, params=PARAMS)
    assert local.returncode == 0, local.stderr
    expected = contents(tmp_path)
    assert len(expected) > 5

    params = (*PARAMS, "engine.kind=processes", "engine.n_workers=2")
    unchanged = run_kedro(stages, data=tmp_path, params=params)
    assert "Nothing to do" in unchanged.stdout

    for table in TABLES:
        shutil.rmtree(tmp_path / FEATURES / table)
    again = run_kedro(stages, data=tmp_path, params=params)
    assert again.returncode == 0, again.stderr
    assert contents(tmp_path) == expected
    assert "2 of 12 nodes ran" in again.stdout
