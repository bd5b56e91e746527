"""Whole experiments without Kedro: unusual teachers, pools and labels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipelines.experiment import PROJECT, blocks_of, run

WITHOUT_KEDRO = """
import json, sys
from pathlib import Path


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("kedro", "kedro_datasets", "mlflow", "omegaconf"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
import torch
from tests.pipelines.experiment import TYPES, run

torch.set_num_threads(1)
folder = Path(sys.argv[1])
given = json.loads((folder / "blocks.json").read_text())
blocks = {name: TYPES[name].model_validate(block) for name, block in given.items()}
made = run(blocks, folder)
assert "data:image/png" in made.page()
print("RESULT" + json.dumps(made.metrics))
"""


def test_a_whole_experiment_runs_without_kedro_and_mlflow(tmp_path):
    blocks = {name: block.model_dump(mode="json") for name, block in blocks_of({}).items()}
    (tmp_path / "blocks.json").write_text(json.dumps(blocks))
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_KEDRO, str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr

    metrics = json.loads(result.stdout.rpartition("RESULT")[2])

    assert metrics["selection"]["true_class_prior"] == pytest.approx(250 / 3050)
    assert 0 < metrics["student"]["accuracy"] <= 1


EVEN_OR_ODD = {str(digit): digit % 2 for digit in range(10)}


def demo(part: str, **changes: Any) -> list[dict[str, Any]]:
    """Return a source of digits with the classes even and odd."""
    source = {"type": "demo", "part": part, "labels": "classes", "label_map": EVEN_OR_ODD}
    return [{**source, **changes}]


def test_two_classes_with_one_labeled_image_each_and_a_pool_smaller_than_a_batch(tmp_path):
    sources = {
        "labeled": demo("labeled", per_class=1),
        "pool": demo("pool", labels="truth", limit=12),
        "test": demo("test", limit=40),
        "teacher_training": demo("teacher_training", limit=60),
    }
    changes = {
        "data_ingestion": sources,
        "teacher": {"classes": ["even", "odd"]},
        "pu_training": {"class_prior": 0.3},
        # The budget is larger than the pool.
        "subset_materialization": {"criterion": "budget", "budget": 5000},
    }
    made = run(blocks_of(changes), tmp_path)

    # So small a pool has no yardstick.
    assert len(made.manifest) == 2 + 12
    assert made.metrics["selection"]["n_selected"] == 12
    assert len(made.metrics["student"]["per_class_accuracy"]) == 2
    assert made.prior["method"] == "given"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A flat folder of color and gray photos of several sizes, one of them broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        pixels = rng.integers(0, 256, (20 + number, 40, 3), dtype=np.uint8)
        if number % 2 == 0:
            pixels = pixels[:, :, 0]
        suffix = "png"
        if number % 3 == 0:
            suffix = "jpg"
        Image.fromarray(pixels).save(folder / f"{number:02d}.{suffix}")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    return folder


@pytest.mark.parametrize("backbone", ["frozen", "full"])
def test_a_torchvision_teacher_with_encoded_images_and_a_pool_without_truth(
    photos, tmp_path, backbone
):
    # MobileNet's default taps are in blocks that torchvision's feature extraction does not enter.
    teacher = {
        "architecture": "mobilenet_v2",
        "architecture_options": {"width_mult": 0.25},
        "classes": ["even", "odd"],
        "input": {
            "size_px": 32,
            "channels": 3,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229] * 3,
        },
    }
    sources = {
        "labeled": demo("labeled", per_class=4),
        "pool": [
            {"type": "folder", "path": str(photos)},
            *demo("pool", labels="ignore", limit=30),
        ],
        "test": demo("test", limit=10),
        "teacher_training": demo("teacher_training", limit=20),
        "store": {"kind": "encoded", "shard_size": 25},
    }
    changes = {
        "data_ingestion": sources,
        "teacher": teacher,
        "teacher_training": {"n_updates": 3, "batch_size": 8},
        "pu_training": {
            "backbone": backbone,
            "features": "descriptor",
            "class_prior": 0.4,
            "epochs": 1,
            "held_out_folds": 0,
        },
        "distillation": {
            "student_architecture": "shufflenet_v2_x0_5",
            "student_options": {"width": None},
            "batch_size": 8,
            "n_updates": 2,
        },
    }
    made = run(blocks_of(changes), tmp_path)

    pool = made.stores["pool"]
    assert pool.kind == "encoded"
    assert len(pool.shards) == 3
    assert pool.quarantine["id"].tolist() == ["broken.png"]
    # Photos of every size and color come out in the teacher's.
    pixels = pool.read(np.arange(60))
    assert pixels.shape == (60, 3, 32, 32)

    assert len(made.teacher.card.taps) == 4
    scores = made.scores.to_pandas()
    assert scores["pu_score"].std() > 0
    # There are no held-out positives without folds.
    assert made.ranks.empty
    needs_truth = {"auc", "precision", "recall", "true_class_prior"}
    assert not needs_truth & set(made.metrics["selection"])

    if backbone == "frozen":
        assert "by the hidden truth" not in made.page()


def test_a_pool_whose_truth_is_known_in_part_has_a_report_without_auc(photos, tmp_path):
    sources = [
        {"type": "folder", "path": str(photos)},
        {"type": "demo", "part": "pool", "labels": "truth"},
    ]
    made = run(blocks_of({"data_ingestion": {"pool": sources}}), tmp_path)

    # Measured on the known part alone, it would be misleading.
    assert "auc" not in made.metrics["selection"]
    assert made.page().count("data:image/png;base64,") == 6


USERS_NETWORKS = """
from torch import nn


def small(n_classes, in_channels, width=8):
    convolution = nn.Conv2d(in_channels, width, 3, padding=1)
    classifier = nn.Linear(64 * width, n_classes)
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), classifier)
"""


def test_a_users_network_with_a_state_dict_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "users_networks.py").write_text(USERS_NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import users_networks  # type: ignore[import-not-found]

    # `module.` is the prefix that DataParallel adds.
    network = users_networks.small(10, 1)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 7}, tmp_path / "teacher.pt")
    teacher = {"architecture": "users_networks:small", "weights": str(tmp_path / "teacher.pt")}
    student = {"student_architecture": "users_networks:small", "student_options": {"width": 2}}
    changes = {
        "teacher": teacher,
        "distillation": student,
        "data_ingestion": {"teacher_training": []},
    }
    made = run(blocks_of(changes), tmp_path)
    loaded = made.teacher.network.state_dict()

    torch.testing.assert_close(loaded["0.weight"], state["module.0.weight"])
    assert made.metrics["student"]["parameters"] < made.metrics["teacher"]["parameters"]
