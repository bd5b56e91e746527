"""Trainings that are killed at any update, again and again, end in the weights of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pu_kd_pipeline import progress
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.selection.proxy import Proxy
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.checkpoints import checkpoints_disabled, set_checkpoint_folder
from pu_kd_pipeline.training.class_prior import estimate_prior
from pu_kd_pipeline.training.pu_classifier import train_end_to_end, train_head
from tests.training.checkpoints.trainings import (
    COMPUTE,
    MOMENTUM,
    SHIFTED,
    STREAMED,
    Killed,
    Outcome,
    assert_same,
    killed_at_step,
    outcome_of_restarts,
    student_of,
    teacher_of,
)
from tests.training.scene import ATTENTION, LATENT, Scene

STUDENTS: dict[str, dict[str, Any]] = {
    "kd, best": {"objective": "kd", "keep": "best", "optimizer": MOMENTUM},
    "robust_kd": {"objective": "robust_kd", "augmentation": SHIFTED, "teacher_cache": "off"},
    "robust_kd, views": {
        "objective": "robust_kd",
        "augmentation": SHIFTED,
        "teacher_cache": "views",
        "cached_views": 2,
        "batch_size": 64,
    },
    "noisy_kd": {"objective": "noisy_kd", "optimizer": MOMENTUM},
    "latent": {"objective": "latent"},
    "shared head, best": {
        "objective": "latent",
        "latent": LATENT | {"kl_weight": 0.5, "shared_head": True},
        "keep": "best",
    },
    "attention": {"objective": "attention", "attention": ATTENTION | {"n_taps": 2}},
    "pu_critic": {"objective": "pu_critic"},
    "streamed": {"objective": "kd", "augmentation": SHIFTED, "compute": STREAMED},
    "drawn": {"objective": "kd", "augmentation": SHIFTED},
}


@pytest.mark.parametrize("variant", STUDENTS)
def test_a_student_that_is_killed_at_every_update_is_the_student_of_one_run(
    digits, variant, tmp_path
):
    train = student_of(digits, **STUDENTS[variant])
    expected = train()
    n_optimizers = 2 if variant in ("noisy_kd", "pu_critic") else 1
    # Killed in its second update, each start keeps its first one: it comes one update further.
    for n_updates in (2, 4):
        folder = tmp_path / str(n_updates)
        found = outcome_of_restarts(train, folder, steps_per_start=n_updates * n_optimizers)
        assert_same(found, expected)


@pytest.mark.parametrize("variant", ["noisy_kd", "pu_critic"])
def test_a_student_that_is_killed_between_two_optimizers_is_the_student_of_one_run(
    digits, variant, tmp_path
):
    train = student_of(digits, **STUDENTS[variant])
    expected = train()
    assert_same(outcome_of_restarts(train, tmp_path, steps_per_start=3), expected)


@pytest.mark.parametrize("compute", [COMPUTE, STREAMED], ids=["resident", "streamed"])
@pytest.mark.parametrize("algorithm", ["sgd", "adam"])
def test_a_teacher_that_is_killed_at_every_update_is_the_teacher_of_one_run(
    digits, tmp_path, compute, algorithm
):
    optimizer = MOMENTUM.model_copy(update={"algorithm": algorithm})
    train = teacher_of(digits, compute, optimizer=optimizer)
    expected = train()
    for n_steps in (2, 5):
        found = outcome_of_restarts(train, tmp_path / str(n_steps), steps_per_start=n_steps)
        assert_same(found, expected)


def pu_params(**changes: Any) -> PUTrainingParams:
    prior_estimation = {
        "method": "ted",
        "n_folds": 2,
        "epochs": 2,
        "n_bootstrap": 20,
        "level": 0.9,
    }
    given = {
        "seed": 0,
        "class_prior": 0.4,
        "estimator": "nnpu",
        "beta": 0.0,
        "gamma": 1.0,
        "backbone": "frozen",
        "prior_estimation": prior_estimation,
        "features": "descriptor",
        "attention_reduction": 4,
        "epochs": 2,
        "positive_batch_size": 8,
        "unlabeled_batch_size": 64,
        "held_out_folds": 2,
        "optimizer": MOMENTUM,
        "augmentation": SHIFTED,
        "compute": COMPUTE,
    }
    return PUTrainingParams.model_validate(given | changes)


@pytest.fixture
def features(digits: Scene, tmp_path: Path) -> tuple[ShardedTable, ShardedTable]:
    """Return the teacher's features of the labeled images and of the pool."""

    def table_of(name: str, store: ImageStore) -> ShardedTable:
        shards = feature_shards(store, digits.teacher, COMPUTE)
        return ShardedTable.write(tmp_path / "features" / name, shards)

    return table_of("labeled", digits.labeled), table_of("pool", digits.pool)


@pytest.mark.parametrize(
    ("backbone", "estimator"), [("frozen", "nnpu"), ("frozen", "cvir"), ("full", "nnpu")]
)
def test_a_pu_classifier_that_is_killed_at_every_update_is_that_of_one_run(
    digits, features, tmp_path, backbone, estimator
):
    params = pu_params(backbone=backbone, estimator=estimator)

    def train() -> Outcome:
        if backbone == "frozen":
            fitted = train_head(*features, digits.teacher, 0.4, params)
        else:
            fitted = train_end_to_end(digits.labeled, digits.pool, digits.teacher, 0.4, params)
        classifier, history, ranks = fitted
        return dict(classifier.module.state_dict()), pd.concat([history, ranks])

    expected = train()
    n_steps = 3 * 2 * 3  # trainings, epochs, updates per epoch
    with pytest.raises(Killed), killed_at_step(n_steps):
        train()
    for steps_per_start in (2, 5):
        folder = tmp_path / str(steps_per_start)
        found = outcome_of_restarts(train, folder, steps_per_start=steps_per_start)
        assert_same(found, expected)
    files = list((tmp_path / "2").glob("pu_training*.ckpt"))
    assert len(files) == 6  # the last two of each training


def test_without_a_folder_nothing_is_written(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student_of(digits, objective="kd", n_updates=2)()
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_can_be_disabled_for_a_while(digits, tmp_path):
    set_checkpoint_folder(tmp_path / "kept", 0.0)
    with checkpoints_disabled():
        student_of(digits, objective="kd", n_updates=2)()
    assert list(tmp_path.iterdir()) == []
    student_of(digits, objective="kd", n_updates=2)()
    assert list((tmp_path / "kept").iterdir()) != []


def test_short_and_repeated_trainings_write_no_checkpoints(digits, features, tmp_path):
    set_checkpoint_folder(tmp_path / "kept", 0.0)
    estimate_prior(*features, pu_params())
    proxy = Proxy(digits.teacher, features[1], digits.params(n_updates=4))
    proxy.divergence(digits.manifest, digits.labeled, digits.pool)
    assert not (tmp_path / "kept").exists()


def test_a_finished_training_is_not_repeated_and_reports_all_of_its_records(digits, tmp_path):
    train = student_of(digits, **STUDENTS["kd, best"])
    set_checkpoint_folder(tmp_path, every_s=1e9)
    expected = train()
    # The last state is kept whatever the interval is.
    assert [path.name for path in tmp_path.iterdir()] == ["student.ckpt"]
    steps: list[int] = []
    losses: list[float] = []

    def listener(name: str, step: int, record: Any) -> None:
        steps.append(step)
        losses.append(record["loss"])

    progress.records.add(listener)
    try:
        with killed_at_step(1):  # no step is taken
            assert_same(train(), expected)
    finally:
        progress.records.remove(listener)
    assert steps == [3, 6, 7]
    assert losses == expected[1]["loss"].tolist()


def test_teacher_outputs_made_before_the_training_are_not_computed_again(digits, tmp_path):
    train = student_of(digits, **STUDENTS["robust_kd, views"])
    expected = train()
    batch_sizes: list[int] = []
    hook = digits.teacher.network.fc.register_forward_hook(
        lambda _layer, inputs, _output: batch_sizes.append(len(inputs[0]))
    )
    with hook:
        set_checkpoint_folder(tmp_path, 0.0)
        with pytest.raises(Killed), killed_at_step(3):
            train()
        n_batches = batch_sizes.count(64)
        assert n_batches == -(-180 * 2 // 64)  # two views of 180 images, rounded up
        assert_same(train(), expected)
    assert batch_sizes.count(64) == n_batches


def test_teacher_outputs_that_take_no_time_are_not_kept(digits, tmp_path):
    set_checkpoint_folder(tmp_path, 1e9)
    student_of(digits, **STUDENTS["robust_kd, views"])()
    assert [path.name for path in tmp_path.iterdir()] == ["student.ckpt"]
