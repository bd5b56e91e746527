"""Inputs that another teacher made, or that are older than what they belong to, are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.evaluation import compare_models
from pu_kd_pipeline.features.scoring import score_shards
from pu_kd_pipeline.learning.metrics import area_under_roc
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.reporting.summary import MODEL_QUANTITIES
from pu_kd_pipeline.selection.manifest import choose_subset
from pu_kd_pipeline.training.distillation import distill
from pu_kd_pipeline.training.pu_classifier import train_head
from tests.pipelines.experiment import Experiment, blocks_of, features_of, ingest, run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return run(blocks_of({}), tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def other_teacher(made: Experiment) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return new_teacher(made.blocks["teacher"])


def test_selection_finds_the_digits(made):
    pool = made.stores["pool"]
    is_relevant = pool.index["relevant"].to_numpy(dtype=bool)
    scores = made.scores.to_pandas()
    auc = area_under_roc(scores["pu_score"].to_numpy(), is_relevant)
    assert auc > 0.6


def test_features_of_another_teacher_are_refused(made, other_teacher, tmp_path):
    pool = made.stores["pool"]
    params = made.blocks["pu_training"]
    features = features_of(pool, other_teacher, "features", tmp_path, made.blocks)
    message = r"pool_features: another network than the PU classifier's teacher made them"

    with pytest.raises(InputError, match=message):
        score_shards(features, pool, made.classifier, params.compute)

    message = r"pool_features: another network than teacher_model made them"

    with pytest.raises(InputError, match=message):
        train_head(made.labeled_features, features, made.teacher, 0.2, params)


def test_a_pool_that_grew_needs_new_features_and_scores_first(made, tmp_path):
    # One image more in the pool, from a second source.
    pixels = np.eye(8, dtype=np.uint8) * 255
    Image.fromarray(pixels).save(tmp_path / "one.png")
    given = made.blocks["data_ingestion"].model_dump()
    given["pool"] = [*given["pool"], {"type": "folder", "path": str(tmp_path), "name": "more"}]
    grown = DataIngestionParams.model_validate(given)
    blocks = {**made.blocks, "data_ingestion": grown}
    pool = ingest(blocks, "pool", tmp_path)

    assert len(pool) == len(made.stores["pool"]) + 1

    compute = made.blocks["pu_training"].compute
    message = r"pool_features: pool_images changed since they were made"

    with pytest.raises(InputError, match=message):
        score_shards(made.pool_features, pool, made.classifier, compute)

    inputs = replace(made.subset_inputs, pool_images=pool)
    message = r"pool_scores: they cover 3,050 of the 3,051 pool images"

    with pytest.raises(InputError, match=message):
        choose_subset(inputs, made.blocks["subset_materialization"])


def distilled(made: Experiment, manifest: pd.DataFrame, teacher: Model) -> Any:
    return distill(
        manifest,
        made.stores["labeled"],
        made.stores["pool"],
        teacher,
        made.vectors,
        made.blocks["distillation"],
        name="distillation",
    )


def test_weight_vectors_of_another_manifest_or_teacher_are_refused(made, other_teacher):
    # Another number of images makes another manifest of the same stores.
    params = made.blocks["subset_materialization"]
    smaller = params.model_copy(update={"budget": 9})
    other = choose_subset(made.subset_inputs, smaller)

    with pytest.raises(InputError, match="weight_vectors: they were made for another manifest"):
        distilled(made, other, made.teacher)
    with pytest.raises(InputError, match="weight_vectors: another network than teacher_model"):
        distilled(made, made.manifest, other_teacher)


def test_every_number_of_a_student_has_a_row_for_people_and_every_row_a_number(made):
    # `made` is the run of all stages, so that these are the numbers of metrics.json.
    student = made.metrics["student"]
    numbers = {key for key, value in student.items() if isinstance(value, int | float)}
    shown = {quantity.key for quantity in MODEL_QUANTITIES}
    # Some rows have the spread of their number, too.
    shown |= {quantity.spread_key for quantity in MODEL_QUANTITIES if quantity.spread_key}
    for quantity in MODEL_QUANTITIES:
        shown |= set(quantity.bounds or ())
    # Only the teacher is tested on the labeled images.
    of_students = {key for key in shown if not key.startswith("labeled_")}
    assert numbers == of_students


def test_a_student_of_another_teacher_is_reported(made, other_teacher, caplog):
    student, _ = distilled(made, made.manifest, made.teacher)
    caplog.clear()
    test_images = made.stores["test"]
    params = made.blocks["evaluation"]
    matching = {"teacher": made.teacher, "student": student}
    compare_models(matching, test_images, params)
    assert not caplog.records

    mixed = {"teacher": other_teacher, "student": student}
    compare_models(mixed, test_images, params)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "student_model learned from another teacher than teacher_model: distill it again"
    ]
