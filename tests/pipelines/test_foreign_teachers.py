"""Teachers and checkpoints from elsewhere, through all stages and from the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pu_kd_pipeline.errors import ExitCode, InputError
from pu_kd_pipeline.evaluation import compare_models
from pu_kd_pipeline.learning.networks.build import build_network
from tests.hostile.case_runs import outcomes_of
from tests.hostile.run_cases import PROJECT
from tests.pipelines.experiment import blocks_of, run

NETWORKS = """
from torch import nn


class Logits(nn.Module):
    def __init__(self, n_classes, in_channels):
        super().__init__()
        self.layer1 = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.layer2 = nn.Conv2d(8, 8, 3, stride=2)
        self.fc = nn.Linear(8, n_classes)

    def logits(self, images):
        return self.fc(self.layer2(self.layer1(images).relu()).relu().mean((2, 3)))

    def forward(self, images):
        return self.logits(images)


class Softmax(Logits):
    def forward(self, images):
        return {"loss": None, "probs": self.logits(images).softmax(1)}
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a user's module, which can be imported."""
    (tmp_path / "foreign_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "foreign_networks"


def few_images(**changes: Any) -> dict[str, Any]:
    """Return changes to the blocks for a run on a few images."""
    sources = {}
    for part, limit in (("labeled", None), ("pool", 150), ("test", 40), ("teacher_training", 200)):
        source = {"type": "demo", "part": part, "labels": "classes"}
        if part == "pool":
            source["labels"] = "truth"
        if limit is not None:
            source["limit"] = limit
        sources[part] = [source]
    return {"data_ingestion": sources, **changes}


def test_a_teacher_of_probabilities_gives_what_the_same_teacher_of_logits_gives(networks, tmp_path):
    torch.manual_seed(0)
    made = {}
    first = few_images(teacher={"architecture": f"{networks}:Logits"})
    made["logits"] = run(blocks_of(first), tmp_path / "logits")
    weights = tmp_path / "logits" / "teacher" / "weights.safetensors"
    # Away from the card, which names another architecture.
    (tmp_path / "w").write_bytes(weights.read_bytes())
    teacher = {
        "architecture": f"{networks}:Softmax",
        "weights": str(tmp_path / "w"),
        "output": {"key": "probs", "kind": "probabilities"},
    }
    made["probabilities"] = run(blocks_of(few_images(teacher=teacher)), tmp_path / "probabilities")

    confidence = {}
    for name, experiment in made.items():
        confidence[name] = experiment.scores.to_pandas()["teacher_confidence"].to_numpy()
    np.testing.assert_allclose(confidence["probabilities"], confidence["logits"], rtol=1e-3)
    accuracies = [experiment.metrics["teacher"]["accuracy"] for experiment in made.values()]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("features", ["teacher_outputs", "last_layer"])
def test_every_kind_of_features_is_trained_saved_loaded_and_scores_the_pool(features, tmp_path):
    changes = few_images(pu_training={"features": features, "class_prior": 0.3})
    made = run(blocks_of(changes), tmp_path)

    reads_descriptor = features != "teacher_outputs"
    assert (made.classifier.card.descriptor_size > 0) == reads_descriptor
    scores = made.scores.to_pandas()["pu_score"]
    assert len(scores) == 150
    assert scores.std() > 0


def test_a_teacher_of_another_input_is_used_with_it_in_all_stages(tmp_path):
    torch.manual_seed(0)
    plain = run(blocks_of(few_images()), tmp_path / "plain")
    weights = tmp_path / "plain" / "teacher" / "weights.safetensors"
    (tmp_path / "w").write_bytes(weights.read_bytes())
    spec = plain.teacher.card.input

    # The same network, described by levels of 0 to 255, on crops that keep the entire image.
    levels = {
        "size_px": 8,
        "channels": 1,
        "mean": [255 * value for value in spec.mean],
        "std": [255 * value for value in spec.std],
        "value_range": [0, 255],
        "resize": "crop",
        "crop_ratio": 1.0,
    }
    teacher = {"weights": str(tmp_path / "w"), "input": levels}
    same = run(blocks_of(few_images(teacher=teacher)), tmp_path / "same")
    assert same.metrics["teacher"]["accuracy"] == plain.metrics["teacher"]["accuracy"]
    confidence = [made.scores.to_pandas()["teacher_confidence"] for made in (plain, same)]
    np.testing.assert_allclose(*confidence, rtol=1e-3)
    stored = same.stores["pool"].specification
    assert (stored.shorter_side_px, stored.interpolation) == (8, "bilinear")

    # Images of the other resize are refused, although they have the same size.
    message = "holds images of 8 × 8 px, gray, bilinear, and the network expects"
    with pytest.raises(InputError, match=message):
        compare_models({"teacher": same.teacher}, plain.stores["test"], same.blocks["evaluation"])


# --- from the command line


def checkpoint(folder: Path) -> str:
    """Write what a training script saves, and return its path."""
    network = build_network("digits_cnn", 10, 1)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    content = {"epoch": 3, "model_state_dict": state, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, folder / "checkpoint.pth.tar")
    return str(folder / "checkpoint.pth.tar")


def torchscript(folder: Path) -> str:
    """Write a TorchScript program, and return its path."""
    program = torch.jit.trace(build_network("digits_cnn", 10, 1).eval(), torch.zeros(1, 1, 8, 8))
    torch.jit.save(program, str(folder / "script.pt"))
    return str(folder / "script.pt")


@pytest.fixture
def outcomes(networks: str, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Exit code and output of `kedro run` by the teacher that it was given."""
    softmax = {"architecture": f"{networks}:Softmax"}
    teachers: dict[str, dict[str, Any]] = {
        "checkpoint": {"weights": checkpoint(tmp_path)},
        "torchscript": {"weights": torchscript(tmp_path)},
        "dict": softmax,
        "probabilities": {**softmax, "output": {"key": "probs"}},
        "converted": {**softmax, "output": {"key": "probs", "kind": "probabilities"}},
    }
    conf = tmp_path / "conf"
    cases = {}
    for name, teacher in teachers.items():
        folder = conf / name
        folder.mkdir(parents=True)
        blocks = {
            "teacher": teacher,
            # The teachers are trained for a few steps at most.
            "teacher_check": {"mode": "warn"},
            "teacher_training": {"n_updates": 5, "record_every": 5},
        }
        for block, content in blocks.items():
            text = yaml.safe_dump({block: content})
            (folder / f"parameters_{block}.yml").write_text(text)
        ingestion = yaml.safe_dump(few_images())
        (folder / "parameters_data_ingestion.yml").write_text(ingestion)
        params = f"--params=data={tmp_path / 'data' / name},tracking=false"
        cases[name] = ["--pipelines=data_ingestion,teacher,feature_extraction", params]
    (conf / "base").symlink_to(PROJECT / "conf" / "base")
    (conf / "logging.yml").symlink_to(PROJECT / "conf" / "logging.yml")
    return outcomes_of(cases, conf, timeout_s=600, columns=400, modules=tmp_path)


@pytest.mark.slow
def test_the_command_line_takes_checkpoints_and_refuses_what_it_cannot_use(outcomes):
    refused = {
        "torchscript": "is a TorchScript program (torch.jit.save)",
        "dict": "set teacher.output.key to the entry that holds them (probs)",
        "probabilities": "set teacher.output.kind to probabilities",
    }
    for name, outcome in outcomes.items():
        said = outcome["said"]
        assert "Traceback" not in said
        if name in refused:
            assert outcome["code"] == ExitCode.USER_ERROR
            assert refused[name] in said
        else:
            assert outcome["code"] in (0, None), said
    assert "taken from entry model_state_dict" in outcomes["checkpoint"]["said"]
