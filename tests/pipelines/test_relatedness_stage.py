"""The stage `relatedness` through the command line, on the demo's images and teacher."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table
from tests.conftest import run_kedro

pytestmark = pytest.mark.xdist_group("finished_run")

N_NOISE = "relatedness.n_noise_images=1000"


@pytest.fixture
def data(finished_run: Path, folder: Path) -> Path:
    """A data folder with the demo's images and teacher and nothing else, and an empty MLflow store."""
    (folder / "02_intermediate").mkdir()
    for name in ("pool_images", "duplicates.parquet"):
        (folder / "02_intermediate" / name).symlink_to(finished_run / "02_intermediate" / name)
    (folder / "06_models").mkdir()
    (folder / "06_models" / "teacher_model").symlink_to(
        finished_run / "06_models" / "teacher_model"
    )
    return folder


def test_digits_are_found_without_a_single_labeled_image(data: Path) -> None:
    result = run_kedro("--pipeline=relatedness", data=data, params=(N_NOISE,))
    assert result.returncode == 0, result.stdout + result.stderr
    relatedness = ShardedTable.open(data / "07_model_output" / "relatedness")
    store = ImageStore.open(data / "02_intermediate" / "pool_images")
    assert relatedness.arrays("id").tolist() == store.index["id"].tolist()
    auc = read_table(data / "08_reporting" / "relatedness_auc.parquet")
    assert auc[auc["source"].isna()].set_index("indicator")["auc"]["one_class_sum"] > 0.85
    manifest = read_table(data / "05_model_input" / "preferential_manifest.parquet")
    drawn = manifest["sampling_probability"]
    assert drawn.sum() == pytest.approx(1)
    assert drawn[store.index["relevant"].to_numpy(dtype=bool)].sum() > 0.4  # a fifth of the pool
    assert (data / "08_reporting" / "relatedness_plot.png").stat().st_size > 10_000
    assert not (data / "04_feature").exists()
    with sqlite3.connect(data / "mlflow" / "mlflow.db") as mlflow:
        assert mlflow.execute("SELECT name, status FROM runs").fetchall() == [
            ("relatedness (local)", "FINISHED")
        ]

    # another way of sampling costs no pass over the images
    shards = {path: path.stat().st_mtime_ns for path in relatedness.folder.glob("*.parquet")}
    changes = (N_NOISE, "relatedness.sampling=uniform")
    result = run_kedro("--pipeline=relatedness", data=data, params=changes)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {
        path: path.stat().st_mtime_ns for path in relatedness.folder.glob("*.parquet")
    } == shards
    uniform = read_table(data / "05_model_input" / "preferential_manifest.parquet")
    assert uniform.attrs["rule"] == "uniform"
    assert uniform["sampling_probability"].nunique() == 1


def test_without_a_teacher_it_says_what_to_run_first(data: Path) -> None:
    (data / "06_models" / "teacher_model").unlink()
    result = run_kedro("--pipeline=relatedness", data=data, params=("relatedness.floor=0",))
    assert result.returncode == 1
    assert "kedro run --pipeline=teacher" in result.stderr


def test_a_temperature_of_zero_is_refused_by_its_key(data: Path) -> None:
    result = run_kedro("--pipeline=relatedness", data=data, params=("relatedness.temperature=0",))
    assert result.returncode == 1
    assert "relatedness.temperature" in " ".join(result.stderr.split())
