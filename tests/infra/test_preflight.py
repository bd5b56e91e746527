"""Checks before the first node: every fault is found, together, and good parameters pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.infra.preflight import check
from pu_kd_pipeline.params import (
    DataIngestionParams,
    DistillationParams,
    PUTrainingParams,
    SubsetParams,
    TeacherParams,
)

CONF = Path(__file__).parents[2] / "conf" / "base"


@pytest.fixture
def blocks():
    shared = {"seed": 0, "compute": OmegaConf.load(CONF / "globals.yml").compute}
    types = {
        "data_ingestion": DataIngestionParams,
        "teacher": TeacherParams,
        "pu_training": PUTrainingParams,
        "subset_materialization": SubsetParams,
        "distillation": DistillationParams,
    }
    files = [OmegaConf.load(CONF / f"parameters_{name}.yml") for name in types]
    merged = OmegaConf.to_container(OmegaConf.merge(shared, *files), resolve=True)
    return {name: model.model_validate(merged[name]) for name, model in types.items()}


def test_the_demos_parameters_pass(blocks):
    check(blocks)


def test_sources_that_are_not_there_are_named_with_their_place(blocks, tmp_path):
    sources = [{"type": "folder", "path": str(tmp_path)}, {"type": "parquet", "path": "no/such.parquet"}]
    remote = [{"type": "parquet", "path": "memory://pool/*.parquet"}, {"type": "folder", "path": "no/folder"}]
    remote = [{**source, "labels": "classes"} for source in remote]
    block = blocks["data_ingestion"].model_dump() | {"pool": sources, "test": remote}
    with pytest.raises(InputError) as error:
        check({"data_ingestion": DataIngestionParams.model_validate(block)})
    assert str(error.value).splitlines() == [
        "2 faults:",
        "- data_ingestion.pool[1].path: there is no no/such.parquet (edit parameters_data_ingestion.yml)",
        "- data_ingestion.test[1].path: there is no no/folder (edit parameters_data_ingestion.yml)",
    ]


def test_a_student_that_does_not_fit_the_teachers_images_is_found(blocks):
    student = blocks["distillation"].model_copy(update={"student_architecture": "lenet5", "student_options": {}})
    with pytest.raises(InputError, match=r"^distillation: the network fails on an image of shape \(1, 8, 8\)"):
        check({**blocks, "distillation": student})


def test_the_callers_random_numbers_are_left_alone(blocks):
    import torch

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check(blocks)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("part", ["test", "teacher_training"])
@pytest.mark.parametrize("labels", ["truth", "ignore"])
def test_images_that_are_compared_with_their_class_need_one(blocks, part, labels):
    block = blocks["data_ingestion"].model_dump() | {part: [{"type": "demo", "part": "test", "labels": labels}]}
    with pytest.raises(ValidationError, match=f"every image of {part} needs its class: set `labels: classes`"):
        DataIngestionParams.model_validate(block)


def test_a_kind_of_url_that_nothing_reads_is_found_before_any_work(blocks):
    block = blocks["data_ingestion"].model_dump() | {"pool": [{"type": "parquet", "path": "cloud://bucket/a.parquet"}]}
    with pytest.raises(InputError, match=r"^data_ingestion.pool\[0\].path: cloud://bucket/a.parquet cannot be read"):
        check({"data_ingestion": DataIngestionParams.model_validate(block)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "subset_materialization": {"rule": "nnpu", "criterion": "precision"},
                "pu_training": {"held_out_folds": 0},
            },
            r"^subset_materialization.criterion: 'precision' is read off held-out positives, and pu_training",
        ),
        (
            {
                "subset_materialization": {"rule": "oracle"},
                "data_ingestion": {"pool": [{"type": "demo", "part": "pool"}]},
            },
            r"^subset_materialization.rule: 'oracle' needs the truth of every pool image: set `labels: truth`",
        ),
    ],
)
def test_blocks_that_contradict_each_other_are_found_before_any_work(blocks, changes, message):
    changed = {
        name: type(block).model_validate(block.model_dump() | changes.get(name, {})) for name, block in blocks.items()
    }
    with pytest.raises(InputError, match=message):
        check(changed)
