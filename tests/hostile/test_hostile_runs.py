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
from fuzzing import encoded
from PIL import Image

from conftest import PROJECT, QUICK

pytestmark = pytest.mark.xdist_group("hostile_runs")

TINY = (
    "teacher_training.n_updates=40", "teacher_training.record_every=40", "pu_training.epochs=2",
    "pu_training.prior_estimation.epochs=2", "distillation.n_updates=20", "distillation.record_every=20",
    "reporting.contact_sheet_images=4", "tracking=false",
)  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Where the images of the cases lie."""

    folder: Path

    def images(self, name: str, numbers: list[int], labels: list[Any] | None = None) -> dict[str, str]:
        """Write so many 8 x 8 images, told apart by their number; return the source that reads them."""
        file = self.folder / f"{name}.parquet"
        rng = [np.random.default_rng(number) for number in numbers]
        pixels = [each.integers(0, 256, (8, 8), dtype=np.uint8) for each in rng]
        table = {
            "id": [f"{name}-{number}" for number in numbers],
            "image": pa.array([encoded(Image.fromarray(each)) for each in pixels], pa.binary()),
        }
        pq.write_table(pa.table(table | ({} if labels is None else {"label": labels})), file)
        return {"type": "parquet", "path": str(file)}

    def labeled(self, name: str, labels: list[Any]) -> dict[str, str]:
        """Write one image for each label."""
        return self.images(name, list(range(1_000, 1_000 + len(labels))), labels) | {"labels": "classes"}


def demo(part: str, **more: Any) -> dict[str, Any]:
    return {"type": "demo", "part": part, "labels": "truth" if part == "pool" else "classes", **more}


def blocks_of(data: Data) -> dict[str, dict[str, Any]]:
    """Return what the parameters of each case change."""
    small = {"pool": [demo("pool", limit=200)], "test": [demo("test", limit=60)]}
    nowhere = {"type": "folder", "path": str(data.folder / "empty")}
    (data.folder / "empty").mkdir(exist_ok=True)
    return {
        "a_class_without_images": {"labeled": [data.labeled("nine", [0, 1, 2, 3, 4, 5, 6, 7, 8] * 4)]},
        "one_image": {"labeled": [data.labeled("one", [3])]},
        "label_out_of_range": {"labeled": [data.labeled("range", [0, 1, 12])]},
        "no_labeled": {"labeled": []},
        "empty_pool": {"pool": [data.images("none", [])]},
        "empty_folder": {"pool": [nowhere]},
        "nothing_in_the_share": {"pool": [demo("pool", share=[0.0, 1e-9])]},
        "all_positive": {"pool": [demo("teacher_training", limit=120, name="p") | {"labels": "truth"}]},
        "all_negative": {"pool": [data.images("noise", list(range(120)))]},
        "pool_of_three": {"pool": [demo("pool", limit=3)]},
        "pool_of_one": {"pool": [data.images("single", [7])]},
        "one_test_image": {"test": [demo("test", limit=1)]},
        "no_test_image": {"test": [demo("test", share=[0.0, 1e-9])]},
        "all_the_same": {"pool": [data.images("same", [5] * 40) | {"name": "s"}]},
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
        params = ",".join((f"data={folder / 'data' / name}", *QUICK, *TINY))
        cases[name] = ["--pipeline=full", f"--params={params}"]
    result = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "run_cases.py"), str(folder / "conf"), json.dumps(cases)],
        env={**os.environ, "COLUMNS": "250"}, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"name"')]
    assert len(lines) == len(cases), result.stdout + result.stderr
    return {line["name"]: {**line, "data": folder / "data" / line["name"]} for line in lines}
