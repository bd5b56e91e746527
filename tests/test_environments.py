"""Every environment of conf/ has parameters that the pipeline accepts, and a grid that can run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from pu_kd_pipeline.comparison.grid import Blocks, make_cells
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.params.comparison import ComparisonParams
from pu_kd_pipeline.params.environment import read_parameters
from tests.configuration import BLOCKS, kedro_parameters

CONF = Path(__file__).resolve().parents[1] / "conf"
ENVIRONMENTS = sorted(path.parent.name for path in CONF.glob("*/parameters.yml"))
ENVIRONMENT_BLOCKS = {**BLOCKS, "comparison": ComparisonParams}

each_environment = pytest.mark.parametrize("environment", ENVIRONMENTS)


SHARD_FOLDERS = ("ImageStoreDataset", "ShardedTableDataset")

# Environment -> package of its teacher, which is in an extra.
PACKAGES = {"caltech": "efficientnet_lite_pytorch"}


@pytest.fixture(autouse=True)
def _images_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments name image files in this folder; nothing is read from it here."""
    monkeypatch.setenv("PU_KD_DATA", "/images")


@pytest.fixture(autouse=True)
def _installed_teacher(request: pytest.FixtureRequest) -> None:
    """Skip an environment whose extra is not installed."""
    callspec = getattr(request.node, "callspec", None)
    environment = callspec.params.get("environment") if callspec else None
    if environment in PACKAGES:
        pytest.importorskip(
            PACKAGES[environment], reason=f"the extra {environment} is not installed"
        )


def blocks_of(environment: str) -> dict[str, Any]:
    """Return the typed blocks of an environment."""
    parameters = kedro_parameters(environment, CONF)
    blocks = {}
    for name, model in ENVIRONMENT_BLOCKS.items():
        blocks[name] = model.model_validate(parameters[name])
    return blocks


def n_parameters(architecture: str, n_classes: int, channels: int, options: dict[str, Any]) -> int:
    network = build_network(architecture, n_classes, channels, options)
    return sum(parameter.numel() for parameter in network.parameters())


@each_environment
def test_parameters_validate_and_the_student_is_smaller_than_the_teacher(environment: str) -> None:
    blocks = blocks_of(environment)
    teacher = blocks["teacher"]
    student = blocks["distillation"]
    n_classes = teacher.classes
    if not isinstance(n_classes, int):
        n_classes = len(n_classes)
    channels = teacher.input.channels
    teacher_size = n_parameters(
        teacher.architecture, n_classes, channels, teacher.architecture_options
    )
    student_size = n_parameters(
        student.student_architecture, n_classes, channels, student.student_options
    )

    assert student_size < teacher_size


@each_environment
def test_grids_use_only_rules_and_methods_that_the_sources_allow(environment: str) -> None:
    blocks = blocks_of(environment)
    grid = blocks["comparison"]
    ingestion = blocks["data_ingestion"]
    block_names = [field.name for field in fields(Blocks)]
    grid_blocks = Blocks(**{name: blocks[name] for name in block_names})

    assert make_cells(grid, grid_blocks)
    assert len(grid.seeds) >= 3

    # null removes a variant of conf/base.
    variants = [variant for variant in grid.variants.values() if variant is not None]
    rules = [variant.rule for variant in variants]
    methods = [variant.method for variant in variants]
    kinds_of_labels = {source.labels for source in ingestion.pool}
    # The oracle selects by the true classes of the pool.
    if not kinds_of_labels <= {"truth"}:
        assert "oracle" not in rules
    if not ingestion.teacher_training:
        assert "original" not in methods
    # null: all images of the source, whose number is not known here.
    n_drawn = [source.per_class for source in ingestion.labeled]
    if None not in n_drawn:
        assert max(grid.labeled_per_class) <= min(n_drawn)


@each_environment
def test_parameters_read_without_kedro_are_the_same(environment: str) -> None:
    expected = kedro_parameters(environment, CONF)

    assert read_parameters(CONF, environment) == expected

    given = {"distillation": {"n_updates": 7}}
    changed = read_parameters(CONF, environment, given)

    assert changed["distillation"] == {**expected["distillation"], "n_updates": 7}


def test_an_unknown_environment_is_named() -> None:
    with pytest.raises(InputError, match="no environment 'cifar11'"):
        read_parameters(CONF, "cifar11")


def test_the_students_for_two_cores_have_a_quarter_of_their_teachers_parameters() -> None:
    teacher_size = n_parameters("cifar_resnet", 10, 3, {"depth": 8, "width": 32})
    student_size = n_parameters("cifar_resnet", 10, 3, {"depth": 8, "width": 16})
    assert 0.3e6 < teacher_size < 0.7e6
    assert 0.24 < student_size / teacher_size < 0.26


def test_each_folder_of_shards_may_be_on_object_storage() -> None:
    found = {}
    for file in (CONF / "base" / "catalog").glob("*.yml"):
        for name, entry in yaml.safe_load(file.read_text()).items():
            if isinstance(entry, dict) and entry["type"].endswith(SHARD_FOLDERS):
                found[name] = (entry.get("cache"), entry.get("cache_gb"))
    assert "near_copies" in found
    assert set(found.values()) == {("${_data}/.cache", "${_cache_gb}")}
