"""The experiment for GPU machines, here with tiny networks, in pieces, without Kedro and MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from experiments.gpu_experiment import COMPARISONS, _given, main

from pu_kd_pipeline.params.environment import read_parameters
from tests.conftest import require_caltech_packages

PROJECT = Path(__file__).resolve().parents[2]
# As on a machine where none is installed: a module that is None in sys.modules cannot be imported.
WITHOUT = """
import sys
for name in ("kedro", "kedro_datasets", "mlflow"):
    sys.modules[name] = None
import torch
torch.set_num_threads(1)
from experiments.gpu_experiment import main
sys.exit(main(sys.argv[1:]))
"""
TINY = [
    "teacher.architecture=cifar_resnet",
    "teacher.architecture_options={depth: 8, width: 4}",
    "teacher_training.n_updates=20",
    "pu_training.epochs=2",
    "pu_training.class_prior=0.12",
    "distillation.student_architecture=cifar_resnet",
    "distillation.student_options={depth: 8, width: 2}",
    "distillation.n_updates=10",
    "comparison.seeds=[0]",
    "comparison.labeled_per_class=[5]",
]
VARIANTS = {"random": "{budget: 100}", "pu_both": "{budget: 100}"}


def sources(images: Path) -> list[str]:
    train = images / "cifar10_train.parquet"
    pool = images / "tiny_imagenet32_pool.parquet"
    test = images / "cifar10_test.parquet"
    given = {
        "teacher_training": f"path: {train}, labels: classes, limit: 300",
        "labeled": f"path: {train}, labels: classes, per_class: 10",
        "pool": f"path: {pool}, limit: 600",
        "test": f"path: {test}, labels: classes, limit: 200",
    }
    settings = []
    for name, source in given.items():
        settings.append(f"data_ingestion.{name}=[{{type: parquet, {source}}}]")
    return settings


ENVIRONMENT = ("--env", "cifar10_small_rules")


def experiment(
    work: Path, images: Path, *arguments: str, which: Sequence[str] = ENVIRONMENT
) -> subprocess.CompletedProcess[str]:
    options = [*which, f"--work={work}", f"--images={images}"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *options, *arguments],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def in_one_go(work: Path, images: Path, which: Sequence[str], settings: Sequence[str]) -> None:
    """Run comparisons to the end, in one call."""
    done = experiment(work, images, "--minutes=60", "--set", *settings, which=which)
    assert done.returncode == 0, done.stdout + done.stderr


def variants(environment: str = "cifar10_small_rules") -> list[str]:
    """Return settings that remove all variants of an environment except two small ones."""
    os.environ.setdefault("PU_KD_DATA", "/images")
    parameters = read_parameters(PROJECT / "conf", environment)
    settings = []
    for name in parameters["comparison"]["variants"]:
        variant = VARIANTS.get(name, "null")
        settings.append(f"comparison.variants.{name}={variant}")
    return settings


@pytest.mark.data
@pytest.mark.slow
def test_pieces_make_the_results_without_kedro_and_mlflow(
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # `main` sets it for the process.
    monkeypatch.setenv("PU_KD_DATA", str(data_folder))
    settings = ["--set", *TINY, *sources(data_folder), *variants()]
    work = tmp_path / "work"
    # Exit code 75: there is work left, and the same command does the next piece. With so little
    # time, every call makes one piece.
    for _ in range(4):
        done = experiment(work, data_folder, "--minutes=0.0001", *settings)
        assert done.returncode == 75, done.stdout + done.stderr
    done = experiment(work, data_folder, "--minutes=60", *settings)
    assert done.returncode == 0, done.stdout + done.stderr

    results = json.loads((work / "cifar10_small_rules.json").read_text())

    assert {row["variant"] for row in results["rows"]} == set(VARIANTS)

    for row in results["rows"]:
        assert 0 <= row["accuracy"] <= 1
        assert row["failure"] is None

    assert "2 of 2 students" in results["machine"]
    assert "| random |" in (work / "cifar10_small_rules.md").read_text()
    assert (work / "cifar10_small_rules.png").stat().st_size > 10_000

    def refused(place: Path, setting: str) -> str:
        options = [*ENVIRONMENT, f"--work={place}", f"--images={data_folder}", "--set", setting]
        assert main(options) == 1
        return capsys.readouterr().err

    other = refused(work, "teacher_training.n_updates=21")
    assert "was made with other parameters" in other
    wrong = refused(tmp_path / "another", "data_ingestion.pool.0.limit=1")
    assert wrong.startswith("Error: the parameters of 'cifar10_small_rules'")
    wrong = refused(tmp_path / "another", "teacher.taps=7")
    assert wrong.startswith("Error: 1 validation error for TeacherParams")


@pytest.mark.data
@pytest.mark.slow
def test_both_recipes_are_compared_on_one_teacher(data_folder: Path, tmp_path: Path) -> None:
    settings = [*TINY, *sources(data_folder), *variants("cifar10_tiny")]
    in_one_go(tmp_path, data_folder, ("--only", "default", "paper"), settings)

    objectives = {}
    for name in ("default", "paper"):
        results = json.loads((tmp_path / f"{name}.json").read_text())
        assert {row["variant"] for row in results["rows"]} == set(VARIANTS)
        objectives[name] = {row["objective"] for row in results["rows"]}
    assert objectives == {"default": {"kd"}, "paper": {"robust_kd"}}
    # The teacher and its features are those of the environment.
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == ["cifar10_tiny"]


FEW_PHOTOS = [
    "data_ingestion.labeled=[{type: parquet, path: '%s', labels: classes, "
    "other_labels: leave_out, label_ranks: [0, 2]}]",
    "data_ingestion.pool=[{type: parquet, path: '%s', labels: truth, label_ranks: [22, null], "
    "limit: 60}]",
    "data_ingestion.test=[{type: parquet, path: '%s', labels: classes, "
    "other_labels: leave_out, label_ranks: [8, 10]}]",
]


@pytest.mark.data
@pytest.mark.slow
def test_photos_are_compared(data_folder: Path, tmp_path: Path) -> None:
    require_caltech_packages()
    photos = data_folder / "caltech101_photos.parquet"
    settings = [
        *(source % photos for source in FEW_PHOTOS),
        "yardstick.labeled_share=0",
        "pu_training.epochs=2",
        "distillation.batch_size=4",
        "comparison.seeds=[0]",
        "comparison.labeled_per_class=[2]",
        "comparison.n_updates=null",
        "distillation.n_updates=2",
        "comparison.variant_set=null",
        "comparison.gap=null",
        *variants("caltech"),
        "comparison.variants.random={rule: random, budget: 20}",
    ]
    in_one_go(tmp_path, data_folder, ("--only", "photos"), settings)

    (row,) = json.loads((tmp_path / "photos.json").read_text())["rows"]
    assert row["failure"] is None
    assert row["variant"] == "random"
    # Two photos of each of 20 classes.
    assert row["n_test"] == 40
    assert row["teacher_accuracy"] > 0.9


def test_recipes_and_environments_of_the_comparisons_exist() -> None:
    os.environ.setdefault("PU_KD_DATA", "/images")
    for comparison in COMPARISONS.values():
        given = _given(list(comparison.settings))
        parameters = read_parameters(PROJECT / "conf", comparison.environment, given)
        assert parameters["recipe"] == given.get("recipe", "default")


def test_a_missing_folder_of_images_is_an_error(tmp_path: Path) -> None:
    done = experiment(tmp_path / "work", tmp_path / "nowhere", "--set", *TINY)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "cifar10_train.parquet" in done.stderr
