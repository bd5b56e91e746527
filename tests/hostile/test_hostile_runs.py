"""Whole runs on data sets that are odd: to a sensible end, or to one clear sentence and exit code 1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.conftest import PROJECT, QUICK
from tests.hostile.valid_files import encoded

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hostile_runs")]

TINY = (
    "teacher_training.n_updates=40", "teacher_training.record_every=40", "pu_training.epochs=2",
    "pu_training.prior_estimation.epochs=2", "distillation.n_updates=20", "distillation.record_every=20",
    "reporting.contact_sheet_images=4", "tracking=false",
)  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Where the images of the cases lie."""

    folder: Path

    def images(
        self, name: str, numbers: list[int], labels: list[Any] | None = None
    ) -> dict[str, str]:
        """Write so many 8 x 8 images, told apart by their number; return the source that reads them."""
        file = self.folder / f"{name}.parquet"
        ids = [f"{name}-{position}" for position in range(len(numbers))]
        rng = [np.random.default_rng(number) for number in numbers]
        pixels = [each.integers(0, 256, (8, 8), dtype=np.uint8) for each in rng]
        table = {
            "id": ids,
            "image": pa.array([encoded(Image.fromarray(each)) for each in pixels], pa.binary()),
        }
        pq.write_table(pa.table(table | ({} if labels is None else {"label": labels})), file)
        return {"type": "parquet", "path": str(file)}

    def weights(self, n_classes: int) -> Path:
        """Write a network for so many classes."""
        from safetensors.torch import save_file

        from pu_kd_pipeline.learning.networks.build import build_network

        save_file(
            build_network("digits_cnn", n_classes, 1, {"width": 4}).state_dict(),
            self.folder / "w.safetensors",
        )
        return self.folder / "w.safetensors"

    def labeled(self, name: str, labels: list[Any]) -> dict[str, str]:
        """Write one image for each label."""
        return self.images(name, list(range(1_000, 1_000 + len(labels))), labels) | {
            "labels": "classes"
        }


def demo(part: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "demo",
        "part": part,
        "labels": "truth" if part == "pool" else "classes",
        **more,
    }


def blocks_of(data: Data) -> dict[str, dict[str, Any]]:
    """Return what the parameters of each case change."""
    small = {"pool": [demo("pool", limit=200)], "test": [demo("test", limit=60)]}
    nowhere = {"type": "folder", "path": str(data.folder / "empty")}
    (data.folder / "empty").mkdir(exist_ok=True)
    return {
        "a_class_without_images": {
            "labeled": [data.labeled("nine", [0, 1, 2, 3, 4, 5, 6, 7, 8] * 4)]
        },
        "one_image": {"labeled": [data.labeled("one", [3])]},
        "label_out_of_range": {"labeled": [data.labeled("range", [0, 1, 12])]},
        "no_labeled": {"labeled": []},
        "empty_pool": {"pool": [data.images("none", [])]},
        "empty_folder": {"pool": [nowhere]},
        "nothing_in_the_share": {"pool": [demo("pool", share=[0.0, 1e-9])]},
        "all_positive": {
            "pool": [demo("teacher_training", limit=120, name="p") | {"labels": "truth"}]
        },
        "all_negative": {"pool": [data.images("noise", list(range(120)))]},
        "pool_of_three": {"pool": [demo("pool", limit=3)]},
        "pool_of_one": {"pool": [data.images("single", [7])]},
        "one_test_image": {"test": [demo("test", limit=1)]},
        "no_test_image": {"test": [demo("test", share=[0.0, 1e-9])]},
        "all_the_same": {"pool": [data.images("same", [5] * 40) | {"name": "s"}]},
        "other_classes": {},
    } | {"_small": small}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `kedro run --pipeline=full` said and ended with, case by case, and where its outputs are."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(PROJECT / "conf" / "base", folder / "conf" / "base")
    shutil.copy(PROJECT / "conf" / "logging.yml", folder / "conf")
    data = Data(folder)
    blocks = blocks_of(data)
    small = blocks.pop("_small")
    cases = {}
    for name, changes in blocks.items():
        (folder / "conf" / name).mkdir()
        ingestion = {**small, **changes, "teacher_training": [demo("teacher_training", limit=400)]}
        text = yaml.safe_dump({"data_ingestion": ingestion})
        (folder / "conf" / name / "parameters_data_ingestion.yml").write_text(text)
        if name == "other_classes":
            block = {
                "weights": str(data.weights(n_classes=7)),
                "architecture_options": {"width": 4},
            }
            (folder / "conf" / name / "parameters_teacher.yml").write_text(
                yaml.safe_dump({"teacher": block})
            )
        params = ",".join((f"data={folder / 'data' / name}", *QUICK, *TINY))
        cases[name] = ["--pipeline=full", f"--params={params}"]
    result = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "run_cases.py"), str(folder / "conf"), json.dumps(cases)],
        env={**os.environ, "COLUMNS": "250"}, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"name"')]
    assert len(lines) == len(cases), result.stdout + result.stderr
    return {line["name"]: {**line, "data": folder / "data" / line["name"]} for line in lines}


ENDS_WELL = ["a_class_without_images", "all_positive", "all_negative", "one_test_image"]
SENTENCES = {
    "one_image": "1 labeled images cannot be cross-fitted; label at least two, or set class_prior",
    "label_out_of_range": "the labels of 1 images are none of them: 12 (1)",
    "no_labeled": "feature_extraction: the image store is empty",
    "empty_pool": "none.parquet holds no image: it has no rows",
    "empty_folder": "holds no image: files ending in .jpg",
    "nothing_in_the_share": "data_ingestion.pool: no image is left of 3,500: check `share`",
    "no_test_image": "data_ingestion.test: no image is left of 500: check `share`",
    "pool_of_three": "of 3 pool images rounds to none",
    "pool_of_one": "a pool of 1 images says nothing of its class prior: set pu_training.class_prior",
    "all_the_same": "39 of 40 images cannot be used (duplicate 39; such as",
    "other_classes": "of another shape: fc.bias (7,) instead of (10,)",
}


@pytest.mark.parametrize("case", ENDS_WELL)
def test_odd_data_that_can_be_learned_from_runs_to_its_report(
    outcomes: dict[str, dict[str, Any]], case: str
) -> None:
    outcome = outcomes[case]
    assert outcome["code"] in (0, None), outcome["said"][-3_000:]
    metrics = json.loads((outcome["data"] / "08_reporting" / "metrics.json").read_text())
    assert 0 <= metrics["student"]["accuracy"] <= 1
    assert (outcome["data"] / "08_reporting" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("case", SENTENCES)
def test_data_that_nothing_can_be_learned_from_is_told_in_one_sentence(
    outcomes: dict[str, dict[str, Any]], case: str
) -> None:
    outcome = outcomes[case]
    assert outcome["code"] == 1, outcome["said"][-3_000:]
    assert "Traceback" not in outcome["said"]
    assert SENTENCES[case] in outcome["said"].partition("Error: ")[2]
    assert not [
        file for file in outcome["data"].rglob("*") if file.name.endswith(".tmp")
    ]  # nothing half-written
