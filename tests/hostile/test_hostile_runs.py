"""Whole runs on odd data sets: they end with a report, or with one message and exit code 65."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from pu_kd_pipeline.errors import ExitCode
from pu_kd_pipeline.learning.networks.build import build_network
from tests.conftest import PROJECT, QUICK
from tests.hostile.case_runs import outcomes_of
from tests.hostile.valid_files import encoded

# All cases run in one process, so all tests of this file must run on one worker.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hostile_runs")]

Source = dict[str, Any]

TINY = (
    "teacher_check.mode=warn",  # the teacher is hardly trained
    "teacher_training.n_updates=40",
    "teacher_training.record_every=40",
    "pu_training.epochs=2",
    "pu_training.prior_estimation.epochs=2",
    "distillation.n_updates=20",
    "distillation.record_every=20",
    "reporting.contact_sheet_images=4",
    "tracking=false",
)


# --- data sets


def image_source(
    folder: Path, name: str, numbers: list[int], labels: list[int] | None = None
) -> Source:
    """Write 8 x 8 images, which their numbers tell apart, and return the source that reads them."""
    images = []
    for number in numbers:
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        image = Image.fromarray(pixels)
        images.append(encoded(image))
    ids = [f"{name}-{position}" for position in range(len(numbers))]
    # The type is given, since a column without rows has none.
    table = {"id": ids, "image": pa.array(images, pa.binary())}
    source = {"type": "parquet", "path": str(folder / f"{name}.parquet")}
    if labels is not None:
        table["label"] = labels
        source["labels"] = "classes"
    pq.write_table(pa.table(table), source["path"])
    return source


def labeled_source(folder: Path, name: str, labels: list[int]) -> Source:
    """Write one image per label."""
    # Numbers apart from those of the pools, so that no image is in both.
    numbers = list(range(1_000, 1_000 + len(labels)))
    return image_source(folder, name, numbers, labels)


def demo(part: str, **more: Any) -> Source:
    labels = "classes"
    if part == "pool":
        # The classes of its images count as unknown.
        labels = "truth"
    return {"type": "demo", "part": part, "labels": labels, **more}


def data_of_cases(folder: Path) -> dict[str, dict[str, list[Source]]]:
    """Return which sources each case changes."""
    empty_folder = folder / "empty"
    empty_folder.mkdir(exist_ok=True)
    nowhere = {"type": "folder", "path": str(empty_folder)}
    without_class_9 = labeled_source(folder, "nine", [0, 1, 2, 3, 4, 5, 6, 7, 8] * 4)
    # So small a share rounds to no image at all.
    nothing = [0.0, 1e-9]
    all_positive = demo("teacher_training", limit=120, name="p")
    all_positive["labels"] = "truth"
    all_negative = image_source(folder, "noise", list(range(120)))
    all_the_same = image_source(folder, "same", [5] * 40)
    all_the_same["name"] = "s"
    one_image = labeled_source(folder, "one", [3])
    # The teacher has ten classes.
    label_12 = labeled_source(folder, "range", [0, 1, 12])
    no_rows = image_source(folder, "none", [])
    single = image_source(folder, "single", [7])
    return {
        "a_class_without_images": {"labeled": [without_class_9]},
        "one_image": {"labeled": [one_image]},
        "label_out_of_range": {"labeled": [label_12]},
        "no_labeled": {"labeled": []},
        "empty_pool": {"pool": [no_rows]},
        "empty_folder": {"pool": [nowhere]},
        "nothing_in_the_share": {"pool": [demo("pool", share=nothing)]},
        "all_positive": {"pool": [all_positive]},
        "all_negative": {"pool": [all_negative]},
        "pool_of_three": {"pool": [demo("pool", limit=3)]},
        "pool_of_one": {"pool": [single]},
        "one_test_image": {"test": [demo("test", limit=1)]},
        "no_test_image": {"test": [demo("test", share=nothing)]},
        "all_the_same": {"pool": [all_the_same]},
        "other_classes": {},
    }


# --- runs


def write_environment(folder: Path, blocks: dict[str, Any]) -> None:
    """Write parameters as an environment of the project, one file per block."""
    folder.mkdir()
    for name, block in blocks.items():
        file = folder / f"parameters_{name}.yml"
        text = yaml.safe_dump({name: block})
        file.write_text(text)


def write_cases(folder: Path) -> dict[str, list[str]]:
    """Write the environment of every case, and return the arguments of its run."""
    cases = {}
    for name, changes in data_of_cases(folder).items():
        ingestion = {
            "pool": [demo("pool", limit=200)],
            "test": [demo("test", limit=60)],
            **changes,
            "teacher_training": [demo("teacher_training", limit=400)],
        }
        blocks: dict[str, Any] = {"data_ingestion": ingestion}
        if name == "other_classes":
            blocks["teacher"] = teacher_of_seven_classes(folder)
        write_environment(folder / "conf" / name, blocks)
        data = folder / "data" / name
        params = ",".join((f"data={data}", *QUICK, *TINY))
        cases[name] = ["--pipeline=full", f"--params={params}"]
    return cases


def teacher_of_seven_classes(folder: Path) -> dict[str, Any]:
    """Write weights for fewer classes than the images have, and return the teacher's block."""
    options = {"width": 4}
    network = build_network("digits_cnn", 7, 1, options)
    weights = folder / "w.safetensors"
    save_file(network.state_dict(), weights)
    return {"weights": str(weights), "architecture_options": options}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Exit code, output and data folder of `kedro run --pipeline=full` by case."""
    folder = tmp_path_factory.mktemp("runs")
    conf = folder / "conf"
    shutil.copytree(PROJECT / "conf" / "base", conf / "base")
    shutil.copy(PROJECT / "conf" / "logging.yml", conf)
    cases = write_cases(folder)
    found = outcomes_of(cases, conf, timeout_s=900)
    for name, outcome in found.items():
        outcome["data"] = folder / "data" / name
    return found


# --- tests

LEARNABLE = [
    "a_class_without_images",
    "all_positive",
    "all_negative",
    "pool_of_three",
    "one_test_image",
]
MESSAGES = {
    "one_image": "1 labeled images cannot be cross-fitted; label at least two, or set class_prior",
    "label_out_of_range": "the labels of 1 images are none of them: 12 (1)",
    "no_labeled": "data_ingestion.labeled: there is no source, and a PU classifier learns from",
    "empty_pool": "none.parquet holds no image: it has no rows",
    "empty_folder": "holds no image: files ending in .jpg",
    "nothing_in_the_share": "data_ingestion.pool: no image is left of 3,500: check `share`",
    "no_test_image": "data_ingestion.test: no image is left of 500: check `share`",
    "pool_of_one": "a pool of 1 images says nothing of its class prior: "
    "set pu_training.class_prior",
    "all_the_same": "39 of 40 images cannot be used (duplicate 39; such as",
    "other_classes": "of another shape: fc.bias (7,) instead of (10,)",
}


@pytest.mark.parametrize("case", LEARNABLE)
def test_odd_data_that_can_be_learned_from_runs_to_its_report(
    outcomes: dict[str, dict[str, Any]], case: str
) -> None:
    outcome = outcomes[case]

    assert outcome["code"] in (0, None), outcome["said"][-3_000:]

    reporting = outcome["data"] / "08_reporting"
    metrics = json.loads((reporting / "metrics.json").read_text())

    assert 0 <= metrics["student"]["accuracy"] <= 1
    # Without its figures the report would be smaller.
    assert (reporting / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("case", MESSAGES)
def test_data_that_cannot_be_learned_from_ends_with_one_message(
    outcomes: dict[str, dict[str, Any]], case: str
) -> None:
    outcome = outcomes[case]
    output = outcome["said"]

    assert outcome["code"] == ExitCode.USER_ERROR, output[-3_000:]
    assert "Traceback" not in output
    _, _, message = output.partition("Error: ")
    assert MESSAGES[case] in message
    # Temporary names of files that were not finished.
    unfinished = list(outcome["data"].rglob("*.tmp"))
    assert not unfinished
