"""`kedro run` with a user's teacher: it is tested before the pool is read, and causes are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from pu_kd_pipeline.errors import ExitCode
from tests.features.striped_images import (
    CLASSES,
    MEAN,
    SIZE_PX,
    STD,
    StripesNetwork,
    trained_network,
    write_images,
)
from tests.hostile.case_runs import outcomes_of
from tests.hostile.run_cases import PROJECT

INPUT = {"size_px": SIZE_PX, "channels": 3, "mean": list(MEAN), "std": list(STD)}
NO_NORMALIZATION = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
PER_CLASS = 10


def cases_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the blocks of each case; parts that are not given are right."""
    ignored = {"labeled": [{"type": "folder", "path": str(folder / "labeled")}]}
    random = {"weights": str(folder / "random.safetensors")}
    return {
        "right": {},
        "mean_and_std": {"teacher": {"input": {**INPUT, **NO_NORMALIZATION}}},
        "channel_order": {"teacher": {"input": {**INPUT, "channel_order": "bgr"}}},
        "value_range": {"teacher": {"input": {**INPUT, "value_range": [0.0, 255.0]}}},
        "class_order": {"teacher": {"classes": list(CLASSES[::-1])}},
        "random": {"teacher": random},
        "random_but_warned": {"teacher": random, "teacher_check": {"mode": "warn"}},
        "labels_ignored": {"data_ingestion": ignored},
        "no_labeled_images": {"data_ingestion": {"labeled": []}},
    }


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Exit code, output and data folder of `kedro run` by case."""
    folder = tmp_path_factory.mktemp("stripes")
    save_file(trained_network().state_dict(), folder / "trained.safetensors")
    torch.manual_seed(1)
    save_file(StripesNetwork().state_dict(), folder / "random.safetensors")
    n = PER_CLASS * len(CLASSES)
    for seed, part in enumerate(("labeled", "pool", "test")):
        write_images(folder / part, n, seed)
    conf = folder / "conf"
    commands = {}
    for name, changes in cases_of(folder).items():
        _write_configuration(conf / name, folder, changes)
        data = folder / "data" / name
        params = f"--params=data={data},tracking=false"
        commands[name] = ["--pipelines=data_ingestion,teacher,feature_extraction", params]
        if name == "no_labeled_images":
            commands[name][0] = "--pipelines=data_ingestion,teacher"
    commands["right again"] = commands["right"]
    for name in ("base", "logging.yml"):
        (conf / name).symlink_to(PROJECT / "conf" / name)
    (conf / "right again").symlink_to(conf / "right")
    found = outcomes_of(commands, conf, timeout_s=900, columns=4000, modules=PROJECT)
    for name, outcome in found.items():
        outcome["data"] = folder / "data" / name
    return found


def _write_configuration(folder: Path, files: Path, changes: dict[str, Any]) -> None:
    def source(part: str, labels: str) -> list[dict[str, Any]]:
        # The parts have the same file names: the name keeps their ids apart.
        return [{"type": "folder", "name": part, "path": str(files / part), "labels": labels}]

    blocks: dict[str, dict[str, Any]] = {
        "data_ingestion": {
            "labeled": source("labeled", "classes"),
            "pool": source("pool", "truth"),
            "test": source("test", "classes"),
            "teacher_training": [],
        },
        # So small a pool has few related images, which is a warning of its own.
        "yardstick": {"n_images": 0},
        "teacher": {
            "architecture": "tests.features.striped_images:StripesNetwork",
            "weights": str(files / "trained.safetensors"),
            "classes": list(CLASSES),
            "input": INPUT,
        },
    }
    for block, content in changes.items():
        blocks[block] = {**blocks.get(block, {}), **content}
    folder.mkdir(parents=True)
    text = yaml.safe_dump(blocks)
    (folder / "parameters.yml").write_text(text)


REFUSED = {
    "mean_and_std": (
        "with ImageNet's mean and std, it would be",
        "Set teacher.input: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}",
    ),
    "channel_order": (
        "with channels in the order RGB, it would be",
        "Set teacher.input: {channel_order: rgb}",
    ),
    "class_order": (
        "with the classes in another order, it would be",
        f"Set teacher.classes: [{', '.join(repr(name) for name in CLASSES)}]",
    ),
    "random": ("None of", "Check that teacher.weights belong to teacher.architecture"),
}


@pytest.mark.slow
@pytest.mark.xdist_group("teacher_check")
def test_each_mistake_is_named_with_its_fix_before_the_pool_is_read(outcomes):
    for name, texts in REFUSED.items():
        outcome = outcomes[name]
        assert outcome["code"] == ExitCode.USER_ERROR, outcome["said"]
        assert "That is no better than chance" in outcome["said"]
        assert "Traceback" not in outcome["said"]
        for text in texts:
            assert text in outcome["said"], (name, outcome["said"])
        assert not (outcome["data"] / "02_intermediate").exists(), name
    # Better than chance, so that the run continues.
    said = outcomes["value_range"]["said"]
    assert "Set teacher.input: {value_range: [0, 1]}" in said


@pytest.mark.slow
@pytest.mark.xdist_group("teacher_check")
def test_a_right_teacher_passes_and_a_second_run_does_nothing(outcomes):
    outcome = outcomes["right"]
    check = json.loads((outcome["data"] / "07_model_output" / "teacher_check.json").read_text())

    assert outcome["code"] == 0, outcome["said"]
    # Once before the run, and once where the features exist
    assert outcome["said"].count("of 60 labeled images are classified as labeled") == 2
    assert "WARNING" not in outcome["said"]
    assert check["accuracy"] > 0.95
    assert check["n_images"] == 60
    again = outcomes["right again"]
    assert "Nothing to do" in again["said"]
    assert "of 60 labeled images are classified as labeled" in again["said"]


@pytest.mark.slow
@pytest.mark.xdist_group("teacher_check")
def test_the_parameter_lets_a_teacher_at_chance_pass_with_a_warning(outcomes):
    outcome = outcomes["random_but_warned"]
    assert outcome["code"] == 0, outcome["said"]
    assert "That is no better than chance" in outcome["said"]


@pytest.mark.slow
@pytest.mark.xdist_group("teacher_check")
def test_without_labels_the_run_says_that_the_teacher_was_not_tested(outcomes):
    reasons = {
        "labels_ignored": "the labeled images have no class of the teacher",
        "no_labeled_images": "data_ingestion.labeled has no source",
    }
    for name, reason in reasons.items():
        outcome = outcomes[name]
        assert outcome["code"] == 0, outcome["said"]
        assert f"The teacher was not tested on labeled images: {reason}" in outcome["said"]
