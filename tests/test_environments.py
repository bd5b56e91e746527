"""Every environment of conf/ gives parameters that the pipeline takes, and a grid that can be made."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline.comparison.grid import Blocks, cells_of
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.params.comparison import ComparisonParams
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.environment import read_parameters
from tests.test_docs import BLOCKS, configured

PROJECT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = sorted(path.parent.name for path in (PROJECT / "conf").glob("*/parameters.yml"))
ENVIRONMENT_BLOCKS = {**BLOCKS, "comparison": ComparisonParams}


def parameters_of(environment: str) -> dict[str, Any]:
    return configured(environment, PROJECT / "conf")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_parameters_validate_and_networks_can_be_built(
    environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PU_KD_DATA", "/images")
    found = parameters_of(environment)
    blocks: dict[str, Any] = {
        name: model.model_validate(found[name]) for name, model in ENVIRONMENT_BLOCKS.items()
    }
    teacher, student = blocks["teacher"], blocks["distillation"]
    n_classes = teacher.classes if isinstance(teacher.classes, int) else len(teacher.classes)
    sizes = [
        sum(
            parameter.numel()
            for parameter in build_network(
                name, n_classes, teacher.input.channels, options
            ).parameters()
        )
        for name, options in (
            (teacher.architecture, teacher.architecture_options),
            (student.student_architecture, student.student_options),
        )
    ]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_grids_are_of_rules_that_the_sources_allow(
    environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PU_KD_DATA", "/images")
    found = parameters_of(environment)
    grid = ComparisonParams.model_validate(found["comparison"])
    blocks = {
        field.name: BLOCKS[field.name].model_validate(found[field.name]) for field in fields(Blocks)
    }
    assert cells_of(grid, Blocks(**blocks))  # type: ignore[arg-type]
    assert len(grid.seeds) >= 3
    ingestion = DataIngestionParams.model_validate(found["data_ingestion"])
    variants = {name: variant for name, variant in grid.variants.items() if variant is not None}
    if not all(source.labels == "truth" for source in ingestion.pool):
        assert not [name for name, variant in variants.items() if variant.rule == "oracle"]
    if not ingestion.teacher_training:
        assert not [name for name, variant in variants.items() if variant.method == "original"]
    drawn = min(source.per_class for source in ingestion.labeled) if environment != "base" else None
    if drawn is not None:
        assert max(grid.labeled_per_class) <= drawn


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_parameters_read_without_kedro_are_the_same(
    environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PU_KD_DATA", "/images")
    expected = parameters_of(environment)
    assert read_parameters(PROJECT / "conf", environment) == expected
    given = {"distillation": {"n_updates": 7}}
    changed = read_parameters(PROJECT / "conf", environment, given)
    assert changed["distillation"] == expected["distillation"] | given["distillation"]


def test_an_environment_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="no environment 'cifar11'"):
        read_parameters(PROJECT / "conf", "cifar11")


def test_the_networks_for_two_cores_are_a_quarter_of_a_teacher_of_a_third_of_a_million() -> None:
    sizes = [
        sum(
            parameter.numel()
            for parameter in build_network("cifar_resnet", 10, 3, options).parameters()
        )
        for options in ({"depth": 8, "width": 32}, {"depth": 8, "width": 16})
    ]
    assert 0.3e6 < sizes[0] < 0.7e6
    assert 0.24 < sizes[1] / sizes[0] < 0.26
