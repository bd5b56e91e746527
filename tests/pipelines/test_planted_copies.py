"""Copies of test images, planted in pool and labeled images: found, counted and excluded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pu_kd_pipeline.errors import ExitCode
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.environment import read_parameters
from pu_kd_pipeline.params.teacher import TeacherParams
from pu_kd_pipeline.pipelines.data_ingestion import nodes
from pu_kd_pipeline.storage.table import read_table
from tests.conftest import PROJECT, run_kedro

pytestmark = pytest.mark.xdist_group("duplicates")

GIVEN = ("subset_materialization.rule=all",)


def demo_test_images(folder: Path) -> ImageStore:
    parameters = read_parameters(PROJECT / "conf", "base")
    ingestion = DataIngestionParams.model_validate(parameters["data_ingestion"])
    teacher = TeacherParams.model_validate(parameters["teacher"])
    return write_store(nodes.plan_test_images(ingestion, teacher), folder)


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of conf/ with the environment `planted`.

    Eight test images are in the pool and two among the labeled; every other one is a JPEG file,
    whose pixels differ a little.
    """
    folder = tmp_path_factory.mktemp("planted")
    store = demo_test_images(folder / "test")
    first_ten = store.read(np.arange(10))
    for number, pixels in enumerate(first_ten[:, 0]):
        target = folder / "pool"
        if number >= 8:
            # A folder of labeled images has one subfolder per class.
            label = store.index["label"][number]
            target = folder / "labeled" / str(label)
        target.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels)
        if number % 2:
            image.save(target / f"same-{number}.png")
        else:
            image.save(target / f"copy-{number}.jpg", quality=85)
    conf = folder / "conf"
    shutil.copytree(PROJECT / "conf", conf)
    (conf / "planted").mkdir()
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
    text = yaml.safe_dump({"data_ingestion": sources})
    (conf / "planted" / "parameters.yml").write_text(text)
    return conf


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


def printed_by(run: Path) -> str:
    """Return what the run printed, without line breaks."""
    output = (run / "output.txt").read_text()
    return " ".join(output.split())


def planted_in(run: Path, manifest: str = "manifest") -> set[str]:
    """Return the ids of planted copies in a manifest of a run."""
    table = read_table(run / "05_model_input" / f"{manifest}.parquet")
    ids = table["id"]
    # Ids start with the name of their source.
    is_planted = ids.str.startswith("planted/")
    return set(ids[is_planted])


def duplicates_with_test(run: Path, store: str) -> dict[str, int | None]:
    """Return how many images of a store the report counts as copies of test images."""
    file = run / "08_reporting" / "ingestion_report.json"
    report = json.loads(file.read_text())
    return report["duplicates"][f"{store} and test"]


def test_planted_copies_are_found_and_reported(run):
    table = read_table(run / "02_intermediate" / "duplicates.parquet")
    of_test = table[table["other_store"] == "test"]
    counts = of_test.groupby(["store", "kind"]).size()

    # Every other copy is a PNG file and has the same pixels.
    assert counts.to_dict() == {
        ("labeled", "exact"): 1,
        ("labeled", "near"): 1,
        ("pool", "exact"): 4,
        ("pool", "near"): 4,
    }
    assert of_test["id"].str.startswith("planted/").all()

    printed = printed_by(run)

    assert "8 of 3508 pool images are copies of test" in printed
    assert "2 of 102 labeled images are copies of test" in printed


@pytest.mark.parametrize("manifest", ["manifest", "random_manifest"])
def test_no_manifest_has_them(run, manifest):
    assert not planted_in(run, manifest)


def test_manifest_and_metrics_count_what_was_excluded(run):
    manifest = read_table(run / "05_model_input" / "manifest.parquet")
    metrics_text = (run / "08_reporting" / "metrics.json").read_text()
    metrics = json.loads(metrics_text)

    yardstick = read_table(run / "05_model_input" / "yardstick.parquet")
    for facts in (manifest.attrs, metrics["selection"]):
        assert facts["n_selected"] == 3500 - len(yardstick)
        assert facts["n_labeled"] == 100
        assert facts["n_excluded_pool"] == 8
        assert facts["n_excluded_labeled"] == 2


def test_report_and_output_say_what_was_excluded(run):
    page = (run / "08_reporting" / "report.html").read_text()

    assert duplicates_with_test(run, "pool") == {"exact": 4, "near": 4}
    assert "Copies of test images among the pool images: 4 exact, 4 near." in page
    assert "they were excluded from the selection" in page
    assert "8 of the pool images, 2 of the labeled images" in page
    assert "8 of the pool images, 2 of the labeled" in printed_by(run)


def test_without_exclusion_they_are_in_the_manifest(run, conf, tmp_path):
    data = shutil.copytree(run, tmp_path / "data")
    off = (*GIVEN, "subset_materialization.exclude_test_duplicates=false")
    stage = ("--pipeline=subset_materialization", "--env=planted", f"--conf-source={conf}")
    done = run_kedro(*stage, data=data, params=off)

    assert done.returncode == 0, done.stdout + done.stderr
    # The copies among the labeled images, too.
    assert len(planted_in(data)) == 10


def test_a_run_without_the_search_for_duplicates_names_the_stage_to_run(run, conf, tmp_path):
    data = shutil.copytree(run, tmp_path / "data")
    # As in a data folder of a version that did not search yet.
    (data / "02_intermediate" / "duplicates.parquet").unlink()
    stage = ("--pipeline=subset_materialization", "--env=planted", f"--conf-source={conf}")
    done = run_kedro(*stage, data=data, params=GIVEN)

    assert done.returncode == ExitCode.USER_ERROR

    printed = " ".join((done.stdout + done.stderr).split())

    assert "Saved input of this run is missing. - `duplicates`" in printed
    assert "written by `kedro run --pipeline=data_ingestion`" in printed


def test_without_near_duplicates_only_equal_pixels_count(conf, tmp_path):
    params = ("data_ingestion.near_duplicates=null",)
    stage = ("--pipeline=data_ingestion", "--env=planted", f"--conf-source={conf}")
    done = run_kedro(*stage, data=tmp_path, params=params)

    assert done.returncode == 0, done.stdout + done.stderr

    # Copies in JPEG format have other pixels: without a threshold they are not searched for.
    assert duplicates_with_test(tmp_path, "pool") == {"exact": 4, "near": None}
