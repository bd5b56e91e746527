"""The stage `relatedness` through the command line, on the demo's images and teacher."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pu_kd_pipeline.errors import ExitCode
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table
from tests.conftest import run_kedro

pytestmark = pytest.mark.xdist_group("finished_run")

N_NOISE = "relatedness.n_noise_images=1000"


@pytest.fixture
def data(finished_run: Path, folder: Path) -> Path:
    """A data folder with the demo's images and teacher alone, and an empty MLflow store."""
    inputs = (
        "02_intermediate/pool_images",
        "02_intermediate/duplicates.parquet",
        "06_models/teacher_model",
    )
    for name in inputs:
        link = folder / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(finished_run / name)
    return folder


def shard_times(table: ShardedTable) -> dict[Path, int]:
    """Return when each shard was written."""
    times = {}
    for path in table.folder.glob("*.parquet"):
        times[path] = path.stat().st_mtime_ns
    return times


def run_relatedness(data: Path, *params: str) -> None:
    """Run the stage; it must succeed."""
    result = run_kedro("--pipeline=relatedness", data=data, params=(N_NOISE, *params))
    assert result.returncode == 0, result.stdout + result.stderr


def test_digits_are_found_without_labeled_images_and_sampling_can_change(data: Path) -> None:
    run_relatedness(data, "tracking=true")

    relatedness = ShardedTable.open(data / "07_model_output" / "relatedness")
    store = ImageStore.open(data / "02_intermediate" / "pool_images")
    ids = relatedness.arrays("id")
    assert ids.tolist() == store.index["id"].tolist()

    auc = read_table(data / "08_reporting" / "relatedness_auc.parquet")
    # The rows with a source are about that source alone.
    of_all_sources = auc[auc["source"].isna()].set_index("indicator")
    assert of_all_sources["auc"]["one_class_sum"] > 0.85

    manifest_file = data / "05_model_input" / "preferential_manifest.parquet"
    manifest = read_table(manifest_file)
    probability = manifest["sampling_probability"]
    assert probability.sum() == pytest.approx(1)
    # Digits are 8 % of the pool.
    digits = store.index["id"][store.index["relevant"].to_numpy(dtype=bool)]
    assert probability[manifest["id"].isin(digits)].sum() > 0.4

    plot = data / "08_reporting" / "relatedness_plot.png"
    assert plot.stat().st_size > 10_000
    assert not (data / "04_feature").exists()
    with sqlite3.connect(data / "mlflow" / "mlflow.db") as mlflow:
        runs = mlflow.execute("SELECT name, status FROM runs").fetchall()
    assert runs == [("seed 0 · relatedness (local)", "FINISHED")]

    # Another way of sampling costs no pass over the images.
    times = shard_times(relatedness)
    run_relatedness(data, "relatedness.sampling=uniform")

    assert shard_times(relatedness) == times
    uniform = read_table(manifest_file)
    assert uniform.attrs["rule"] == "uniform"
    assert uniform["sampling_probability"].nunique() == 1


def test_without_a_teacher_the_error_names_the_stage_to_run_first(data: Path) -> None:
    (data / "06_models" / "teacher_model").unlink()
    result = run_kedro("--pipeline=relatedness", data=data, params=("relatedness.floor=0",))
    assert result.returncode == ExitCode.USER_ERROR
    assert "kedro run --pipeline=teacher" in result.stderr


def test_a_temperature_of_zero_is_refused_with_its_key(data: Path) -> None:
    result = run_kedro("--pipeline=relatedness", data=data, params=("relatedness.temperature=0",))
    assert result.returncode == ExitCode.USER_ERROR
    assert "relatedness.temperature" in " ".join(result.stderr.split())
