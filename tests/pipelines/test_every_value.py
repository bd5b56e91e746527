"""Every value that a parameter documents runs through the command line.

The values are read off the types of the parameters and packed into few runs, each with at most one
value of a parameter. Runs of a group share a data folder, so each repeats only what its values
change.
"""

from __future__ import annotations

import copy
import tarfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf
from PIL import Image
from pydantic import BaseModel, ValidationError

from pu_kd_pipeline.errors import ExitCode
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.learning.selection_criteria import CRITERIA
from pu_kd_pipeline.params.comparison import METHODS
from pu_kd_pipeline.params.data_ingestion import ImageSource
from pu_kd_pipeline.params.distillation import OPTION_BLOCKS
from pu_kd_pipeline.params.environment import read_parameters
from pu_kd_pipeline.params.flatten import flatten
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from tests.conftest import PROJECT
from tests.hostile.case_runs import outcomes_of
from tests.params.documented_values import Documented, documented_values
from tests.run_log import nodes_that_ran

OPTIONS = {
    "noise_matrix": {
        "diagonal": 0.9,
        "learns_diagonal": False,
        "learning_rate": 0.001,
        "pseudo_label_weight": 1.0,
    },
    "latent": {
        "logits_weight": 1.0,
        "penultimate_weight": 1.0,
        "kl_weight": 0.0,
        "shared_head": False,
    },
    "attention": {"n_taps": 2, "weight": 10.0, "label_weight": 0.0},
    "critic": {
        "mode": "ascent",
        "class_prior": [0.3, 0.6],
        "weight": 0.1,
        "ramp_updates": 1,
        "lipschitz": 20.0,
        "learning_rate": 0.0002,
    },
}
STUDENTS = ("distillation", "unlabeled_distillation", "critic_distillation")


def _demo(part: str, limit: int, labels: str = "classes") -> dict[str, Any]:
    return {"type": "demo", "part": part, "labels": labels, "limit": limit}


TINY: dict[str, Any] = {
    "data_ingestion": {
        "labeled": [{"type": "demo", "part": "labeled", "labels": "classes", "per_class": 4}],
        "pool": [_demo("pool", 120, "truth")],
        "test": [_demo("test", 40)],
        "teacher_training": [_demo("teacher_training", 200)],
    },
    # Some of the values make teachers that learn next to nothing in so few updates.
    "teacher_check": {"mode": "warn"},
    "teacher_training": {"n_updates": 40, "record_every": 20, "batch_size": 32},
    "pu_training": {
        "epochs": 2,
        "unlabeled_batch_size": 32,
        "held_out_folds": 2,
        "prior_estimation": {"n_folds": 2, "epochs": 2, "n_bootstrap": 20},
    },
    "relatedness": {"n_noise_images": 100},
    "evaluation": {"latency_repeats": 1},
    "reporting": {"contact_sheet_images": 4},
}
for _student in STUDENTS:
    TINY[_student] = {"n_updates": 4, "record_every": 2, "batch_size": 16, **OPTIONS}

# A teacher of the user that returns probabilities in a dict.
NETWORK = """
from torch import nn


class Net(nn.Module):
    def __init__(self, n_classes, in_channels, output):
        super().__init__()
        self.features = nn.Conv2d(in_channels, 4, 5, stride=4)
        self.last = nn.Linear(4, n_classes)
        self.output = output

    def forward(self, images):
        logits = self.last(self.features(images).relu().mean(dim=(2, 3)))
        if self.output == "probabilities":
            return logits.softmax(dim=1)
        if self.output == "log_probabilities":
            return logits.log_softmax(dim=1)
        return logits


def build(n_classes, in_channels, output="logits"):
    return Net(n_classes, in_channels, output)
"""


def _needs(item: Documented, files: Path) -> dict[str, Any]:
    """Return the other parameters without which a value cannot be used, or has no effect."""
    block, _, key = item.path.partition(".")
    needs: dict[str, Any] = {}
    objective = f"{block}.objective"
    if key.startswith("noise_matrix."):
        needs[objective] = "noisy_kd"
    elif key.startswith("latent."):
        needs[objective] = "latent"
    elif key.startswith("critic."):
        needs[objective] = "pu_critic"
    elif key in ("weight_averaging", "final_phase.images") and block != "unlabeled_distillation":
        needs[f"{block}.final_phase.share"] = 0.5
    elif block != "critic_distillation" and (key in OPTIONS or key == "teacher_cache"):
        needs[objective] = "kd"
    elif item.path == "pu_training.backbone" and item.value == "full":
        needs["pu_training.features"] = "descriptor"
    elif item.path == "subset_materialization.criterion":
        needs["subset_materialization.rule"] = "nnpu"
        needs["subset_materialization.budget"] = 30
        # An estimate from so few images may be flagged, and then some criteria refuse it.
        needs["pu_training.class_prior"] = 0.3
    elif item.path == "subset_materialization.rule" and RULES[item.value].needs_budget:
        needs["subset_materialization.budget"] = 30
    elif item.path == "subset_materialization.rule" and RULES[item.value].uses_criterion:
        needs["pu_training.class_prior"] = 0.3
    elif item.path == "class_weighting.mode" and item.value in ("balanced", "adjusted"):
        needs["distillation.objective"] = "robust_kd"
        # Some rules draw pool images in a way of their own, which `balanced` refuses.
        needs["subset_materialization.rule"] = "nnpu"
    elif block == "class_weighting" and key.startswith("paper."):
        needs["class_weighting.mode"] = "paper"
    elif item.path == "teacher.output.kind":
        needs["teacher.architecture"] = "users_output:build"
        needs["teacher.architecture_options.output"] = item.value
        needs["teacher.architecture_options.width"] = None
        needs["teacher.taps"] = ["features"]
        needs["pu_training.backbone"] = "frozen"
    elif item.path == "teacher.input.channel_order" and item.value == "bgr":
        needs["teacher.input.channels"] = 3
        needs["teacher.input.mean"] = [0.1] * 3
        needs["teacher.input.std"] = [0.3] * 3
    elif item.path == "teacher_check.mode" and item.value == "stop":
        needs["teacher.architecture"] = "digits_cnn"
    elif block == "teacher" and item.value is None and key in ("architecture", "classes", "input"):
        # Read from the card of a teacher that an earlier run trained.
        needs["teacher.weights"] = str(files / "data" / "06_models" / "teacher_model")
    return needs


def _overlap(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


def _fits(changes: dict[str, Any], assigned: dict[str, Any]) -> bool:
    """Return whether no parameter gets two values."""
    for key, value in changes.items():
        for other, present in assigned.items():
            if _overlap(key, other) and (key != other or value != present):
                return False
    return True


def _nested(assigned: dict[str, Any]) -> dict[str, Any]:
    """Return TINY with parameters changed, given by dotted keys."""
    values = copy.deepcopy(TINY)
    for path, value in assigned.items():
        *folders, name = path.split(".")
        place = values
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return values


@cache
def _base() -> dict[str, Any]:
    return read_parameters(PROJECT / "conf", "base")


def _is_valid(assigned: dict[str, Any], models: dict[str, type[BaseModel]]) -> bool:
    try:
        for name, changes in _nested(assigned).items():
            block: Any = OmegaConf.to_container(OmegaConf.merge(_base()[name], changes))
            models[name].model_validate(block)
    except ValidationError:
        return False
    return True


def packed(
    items: Iterable[Documented], models: dict[str, type[BaseModel]], files: Path
) -> list[dict[str, Any]]:
    """Return few sets of parameters that have every value once.

    A value that no valid set can have fails the test: `_needs` must say what belongs to it.
    """
    remaining = list(items)
    runs = []
    while remaining:
        assigned: dict[str, Any] = {}
        left = []
        for item in remaining:
            changes = {item.path: item.value, **_needs(item, files)}
            if _fits(changes, assigned) and _is_valid({**assigned, **changes}, models):
                assigned |= changes
            else:
                left.append(item)
        assert len(left) < len(remaining), f"these values can never be used: {left}"
        runs.append(assigned)
        remaining = left
    return runs


def _is_refused(item: Documented) -> bool:
    """Return whether a stage cannot use a value, whatever the other parameters are."""
    if item.path == "unlabeled_distillation.objective":
        # Nothing is selected, so that there are no class weights.
        return bool(item.value == "robust_kd")
    if item.path == "unlabeled_distillation.weight_averaging":
        # Without labeled images there is no final phase.
        return bool(item.value == "final_phase")
    if item.path == "critic_distillation.objective":
        return bool(item.value != "pu_critic")
    return item.path in ("critic_distillation.attention", "critic_distillation.critic")


def _is_unread(item: Documented) -> bool:
    """Return whether a value belongs to an objective that its stage refuses."""
    return item.path.startswith(("critic_distillation.noise_matrix", "critic_distillation.latent"))


class Runs:
    """Commands of one group, with a configuration folder and a data folder of their own.

    They are collected, and run one after the other in one process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "conf"
        self._commands: dict[str, list[str]] = {}
        self._parameters: dict[str, dict[str, Any]] = {}
        self._refused: set[str] = set()
        (self.conf / "local").mkdir(parents=True)
        (self.conf / "base").symlink_to(PROJECT / "conf" / "base")
        (folder / "users_output.py").write_text(NETWORK)

    def add(self, parameters: dict[str, Any], *pipelines: str, is_refused: bool = False) -> None:
        """Add a run of pipelines with parameters that override conf/base."""
        name = f"run_{len(self._commands)}"
        (self.conf / name).mkdir()
        (self.conf / name / "parameters.yml").write_text(yaml.safe_dump(parameters))
        self._parameters[name] = parameters
        self._commands[name] = [
            f"--pipelines={','.join(pipelines)}",
            f"--params=data={self.folder / 'data'},tracking=false",
        ]
        if is_refused:
            self._refused.add(name)

    def finish(self) -> None:
        """Run all; those that are refused must be so in one sentence, before the first node."""
        outcomes = outcomes_of(self._commands, self.conf, timeout_s=1200, modules=self.folder)
        for name, outcome in outcomes.items():
            output = outcome["said"]
            flat = flatten(self._parameters[name])
            changed = {key: value for key, value in flat if value != _tiny(key)}
            shown = f"{self._commands[name]} with {changed}:\n{output[-6000:]}"
            is_refused = name in self._refused
            expected = ExitCode.USER_ERROR if is_refused else ExitCode.SUCCESS
            assert outcome["code"] == expected, shown
            if is_refused:
                assert nodes_that_ran(output) == {}, shown
                assert "Traceback" not in output, shown
                assert "Error: " in output, shown


def _tiny(key: str) -> Any:
    return dict(flatten(TINY)).get(key)


@pytest.fixture(scope="module")
def models() -> dict[str, type[BaseModel]]:
    """The types of all parameter blocks, by name."""
    from kedro.framework.project import configure_project, pipelines
    from kedro.validation.type_extractor import TypeExtractor

    configure_project("pu_kd_pipeline")
    return TypeExtractor(dict(pipelines)).extract_types_from_pipelines()


def _values(models: dict[str, type[BaseModel]], blocks: Iterable[str]) -> list[Documented]:
    values: list[Documented] = []
    for block in blocks:
        values += documented_values(models[block], block)
    # With the other engines, test_full_on_engines runs `full`: each stage starts their workers.
    return [item for item in values if item.path != "engine.kind" or item.value == "local"]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """Folders of one group of runs."""
    return Runs(tmp_path)


OTHER_SYSTEMS = ("relatedness", "unlabeled_distillation", "critic_distillation", "comparison")


@pytest.mark.xdist_group("every_value_full")
def test_every_value_of_the_blocks_of_full_runs(models, runs):
    blocks = [name for name in models if name not in OTHER_SYSTEMS]
    # Trains the teacher that some of the values read.
    runs.add(TINY, "full")
    for assigned in packed(_values(models, blocks), models, runs.folder):
        runs.add(_nested(assigned), "full")
    runs.finish()


@pytest.mark.xdist_group("every_value_unlabeled")
def test_every_value_of_the_system_without_original_images_runs_stage_by_stage(models, runs):
    stages = ("data_ingestion", "teacher", "relatedness", "unlabeled_distillation")
    values = _values(models, stages[2:])
    usable = [item for item in values if not _is_refused(item)]
    first, *others = packed(usable, models, runs.folder)
    for stage in stages:
        runs.add(_nested(first), stage)
    for assigned in others:
        # The stages before have no value of their own here.
        runs.add(_nested(assigned), *stages[-2:])
    runs.finish()


@pytest.mark.xdist_group("every_value_critic")
def test_every_value_of_critic_distillation_runs(models, runs):
    values = _values(models, ["critic_distillation"])
    usable = [item for item in values if not (_is_refused(item) or _is_unread(item))]
    runs.add(TINY, "data_ingestion", "teacher")
    for assigned in packed(usable, models, runs.folder):
        runs.add(_nested(assigned), "critic_distillation")
    runs.finish()


@pytest.mark.xdist_group("every_value_critic")
def test_what_a_stage_cannot_use_is_refused_before_anything_runs(models, runs):
    blocks = ("unlabeled_distillation", "critic_distillation")
    for item in _values(models, blocks):
        if _is_refused(item):
            block = item.path.partition(".")[0]
            stages = ("data_ingestion", "teacher", "relatedness", block)
            runs.add(_nested({item.path: item.value}), *stages, is_refused=True)
    runs.finish()


REFUSED = {
    "no labeled image": ("full", {"data_ingestion.labeled": []}),
    "no teacher": ("full", {"data_ingestion.teacher_training": []}),
    "labels of the pool": (
        "full",
        {"distillation.objective": "attention", "distillation.attention.label_weight": 0.1},
    ),
    "a variant's rule": (
        "data_ingestion,teacher,feature_extraction,comparison",
        {"comparison.variants.confident.rule": "surest"},
    ),
    "a variant's parameter": (
        "data_ingestion,teacher,feature_extraction,comparison",
        {"comparison.variants.confident.distillation.temperature": -1},
    ),
}


@pytest.mark.xdist_group("every_value_critic")
def test_a_contradiction_is_found_before_anything_runs(runs):
    for pipelines, changes in REFUSED.values():
        runs.add(_nested(changes), pipelines, is_refused=True)
    runs.finish()


def _variants() -> dict[str, dict[str, Any] | None]:
    """Return variants with every method, rule, criterion, set of features and objective."""
    variants: dict[str, dict[str, Any] | None] = {}
    for name in read_parameters(PROJECT / "conf", "base")["comparison"]["variants"]:
        variants[name] = None
    for method, about in METHODS.items():
        if not about.selects:
            variants[f"method_{method}"] = {"method": method}
    for rule in RULES:
        variants[f"rule_{rule}"] = {"rule": rule, "budget": 30}
    for criterion in CRITERIA:
        variants[f"criterion_{criterion}"] = {
            "rule": "nnpu",
            "criterion": criterion,
            "budget": 30,
            "pu_training": {"held_out_folds": 2, "class_prior": 0.3},
        }
    for features in documented_values(PUTrainingParams, ""):
        if features.path == ".features":
            variants[f"features_{features.value}"] = {
                "rule": "nnpu",
                "criterion": "quantile",
                "features": features.value,
                "budget": 30,
            }
    objectives = [name for name in OPTION_BLOCKS if name != "robust_kd"]
    variants["objectives"] = {"rule": "random", "budget": 30, "objectives": objectives}
    return variants


@pytest.mark.xdist_group("every_value_comparison")
def test_every_value_of_a_comparison_runs(runs):
    parameters = copy.deepcopy(TINY)
    parameters["comparison"] = {
        "labeled_per_class": [2],
        "seeds": [0],
        "objectives": ["robust_kd"],
        "curves": None,
        "variants": _variants(),
    }
    runs.add(parameters, "data_ingestion", "teacher", "feature_extraction")
    runs.add(parameters, "comparison")
    runs.finish()


def _draw(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def _sources(folder: Path) -> list[dict[str, Any]]:
    """Return sources of the pool with every type, and the files that they read."""
    images = folder / "images"
    tables = folder / "tables"
    for number in range(6):
        _draw(images / str(number % 2) / f"{number}.png", number)
    _draw(tables / "image.png", 6)
    rows = {"image": [(tables / "image.png").read_bytes()]}
    pd.DataFrame(rows).to_parquet(tables / "images.parquet")
    lists = folder / "lists"
    _draw(lists / "image.png", 7)
    (lists / "images.csv").write_text("path,label\nimage.png,1\n")
    shards = folder / "shards"
    _draw(shards / "image.png", 8)
    with tarfile.open(shards / "0.tar", "w") as shard:
        shard.add(shards / "image.png", "image.png")
    downloads = folder / "downloads"
    downloads.mkdir()
    fake = {"size": 6, "image_size": [3, 28, 28], "num_classes": 10}
    return [
        {"type": "demo", "part": "pool", "labels": "truth", "limit": 40},
        {"type": "folder", "path": str(images), "labels": "truth", "label_map": {"0": 0}},
        {"type": "parquet", "path": str(tables / "images.parquet"), "labels": "ignore"},
        {"type": "list", "path": str(lists / "images.csv"), "labels": "truth"},
        {"type": "webdataset", "path": str(shards / "0.tar")},
        {"type": "torchvision", "dataset": "FakeData", "options": fake, "path": str(downloads)},
    ]


@pytest.mark.xdist_group("every_value_comparison")
def test_every_value_of_a_source_runs(runs):
    parameters = copy.deepcopy(TINY)
    pool = _sources(runs.folder)
    for number, source in enumerate(pool):
        source["name"] = f"source_{number}"
    parameters["data_ingestion"]["pool"] = pool
    for part, choice in (("labeled", "refuse"), ("test", "leave_out")):
        parameters["data_ingestion"][part][0]["other_labels"] = choice
    parts = ("labeled", "pool", "test", "teacher_training")
    used = set()
    for part in parts:
        for source in parameters["data_ingestion"][part]:
            used |= {(f"source.{key}", str(value)) for key, value in source.items()}

    for item in documented_values(ImageSource, "source"):
        if isinstance(item.value, str):
            assert (item.path, item.value) in used
    runs.add(parameters, "data_ingestion")
    runs.finish()
