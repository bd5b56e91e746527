"""Copies of test images through the command line: planted in pool and labeled images, found, counted, left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.teacher import TeacherParams
from pu_kd_pipeline.pipelines.data_ingestion import nodes
from pu_kd_pipeline.storage.table import read_table
from tests.conftest import PROJECT, run_kedro

pytestmark = pytest.mark.xdist_group("duplicates")

GIVEN = ("tracking=false", "subset_materialization.rule=all")


def demo_test_images(folder: Path) -> ImageStore:
    base = PROJECT / "conf" / "base"
    ingestion = yaml.safe_load((base / "parameters_data_ingestion.yml").read_text())[
        "data_ingestion"
    ]
    teacher = yaml.safe_load((base / "parameters_teacher.yml").read_text())["teacher"]
    blocks = (
        DataIngestionParams.model_validate({**ingestion, "seed": 0}),
        TeacherParams.model_validate(teacher),
    )
    return write_store(nodes.plan_test_images(*blocks), folder)


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of conf/ with the environment `planted`: 8 test images in the pool and 2 labeled, every other as JPEG."""
    folder = tmp_path_factory.mktemp("planted")
    store = demo_test_images(folder / "test")
    for number, image in enumerate(store.read(np.arange(10))[:, 0]):
        place = folder / ("pool" if number < 8 else f"labeled/{store.index['label'][number]}")
        place.mkdir(parents=True, exist_ok=True)
        file = place / (f"same-{number}.png" if number % 2 else f"copy-{number}.jpg")
        Image.fromarray(image).save(file, **({} if number % 2 else {"quality": 85}))
    shutil.copytree(PROJECT / "conf", folder / "conf")
    (folder / "conf" / "planted").mkdir()
    sources = {
        "labeled": [
            {"type": "demo", "part": "labeled", "labels": "classes"},
            {
                "type": "folder",
                "path": str(folder / "labeled"),
                "name": "planted",
                "labels": "classes",
            },
        ],
        "pool": [
            {"type": "demo", "part": "pool"},
            {"type": "folder", "path": str(folder / "pool"), "name": "planted"},
        ],
    }
    (folder / "conf" / "planted" / "parameters.yml").write_text(
        yaml.safe_dump({"data_ingestion": sources})
    )
    return folder / "conf"


@pytest.fixture(scope="module")
def run(conf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a whole run of `planted`; do not write to it."""
    data = tmp_path_factory.mktemp("run")
    done = run_kedro(
        "--pipeline=full", "--env=planted", f"--conf-source={conf}", data=data, params=GIVEN
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (data / "output.txt").write_text(done.stdout + done.stderr)
    return data


def planted(manifest: Path) -> set[str]:
    ids = read_table(manifest)["id"]
    return set(ids[ids.str.startswith("planted/")])


def test_planted_copies_are_found_and_told(run):
    table = read_table(run / "02_intermediate" / "duplicates.parquet")
    of_test = table[table["other_store"] == "test"]
    assert of_test.groupby(["store", "kind"]).size().to_dict() == {
        ("labeled", "exact"): 1, ("labeled", "near"): 1, ("pool", "exact"): 4, ("pool", "near"): 4,
    }  # fmt: skip
    assert of_test["id"].str.startswith("planted/").all()
    said = " ".join((run / "output.txt").read_text().split())
    for words in (
        "8 of 3508 pool images are copies of test",
        "2 of 102 labeled images are copies of test",
    ):
        assert words in said


def test_no_manifest_holds_them_and_everybody_says_so(run):
    for name in ("manifest", "random_manifest"):
        assert not planted(run / "05_model_input" / f"{name}.parquet")
    attrs = read_table(run / "05_model_input" / "manifest.parquet").attrs
    metrics = json.loads((run / "08_reporting" / "metrics.json").read_text())
    for facts in (attrs, metrics["selection"]):
        counts = {
            name: facts[f"n_{name}"]
            for name in ("selected", "labeled", "excluded_pool", "excluded_labeled")
        }
        assert counts == {
            "selected": 3500,
            "labeled": 100,
            "excluded_pool": 8,
            "excluded_labeled": 2,
        }
    report = json.loads((run / "08_reporting" / "ingestion_report.json").read_text())
    assert report["duplicates"]["pool and test"] == {"exact": 4, "near": 4}
    page = (run / "08_reporting" / "report.html").read_text()
    assert "Copies of test images among the pool images: 4 exact, 4 near." in page
    assert "they were left out of what was selected" in page
    assert "8 of the pool images, 2 of the labeled images" in page
    assert "8 of the pool images, 2 of the labeled" in " ".join(
        (run / "output.txt").read_text().split()
    )


def test_with_the_switch_off_they_are_learned_from(run, conf, tmp_path):
    data = shutil.copytree(run, tmp_path / "data")
    off = (*GIVEN, "subset_materialization.exclude_test_duplicates=false")
    stage = ("--pipeline=subset_materialization", "--env=planted", f"--conf-source={conf}")
    done = run_kedro(*stage, data=data, params=off)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(planted(data / "05_model_input" / "manifest.parquet")) == 10


def test_a_run_of_before_is_told_which_stage_to_run(run, conf, tmp_path):
    data = shutil.copytree(run, tmp_path / "data")
    (data / "02_intermediate" / "duplicates.parquet").unlink()
    stage = ("--pipeline=subset_materialization", "--env=planted", f"--conf-source={conf}")
    done = run_kedro(*stage, data=data, params=GIVEN)
    assert done.returncode == 1
    said = " ".join((done.stdout + done.stderr).split())
    assert "Saved input of this run is missing. - `duplicates`" in said
    assert "written by `kedro run --pipeline=data_ingestion`" in said


def test_without_limits_only_equal_pixels_count(conf, tmp_path):
    params = ("tracking=false", "data_ingestion.near_duplicates=null")
    stage = ("--pipeline=data_ingestion", "--env=planted", f"--conf-source={conf}")
    done = run_kedro(*stage, data=tmp_path, params=params)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "08_reporting" / "ingestion_report.json").read_text())
    assert report["duplicates"]["pool and test"] == {"exact": 4, "near": None}
