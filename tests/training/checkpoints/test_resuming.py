"""Trainings that are killed at any update, again and again, end in the weights of one run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pu_kd_pipeline import progress
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.params.compute import AugmentationParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.selection.proxy import Proxy
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.checkpoints import checkpoints_disabled, set_checkpoint_folder
from pu_kd_pipeline.training.class_prior import estimate_prior
from pu_kd_pipeline.training.pu_classifier import train_end_to_end, train_head
from tests.training.checkpoints import trainings
from tests.training.checkpoints.trainings import (
    COMPUTE,
    MOMENTUM,
    SHIFTED,
    STREAMED,
    Killed,
    Outcome,
    assert_same,
    killed,
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
    "averaged, best": {
        "objective": "kd",
        "keep": "best",
        "student_architecture": f"{trainings.__name__}:Dropping",
        "student_options": {},
        "final_phase": {"share": 0.5},
        "weight_averaging": "final_phase",
    },
    "ema": {
        "objective": "kd",
        "keep": "last",
        "student_architecture": "cifar_resnet",
        "student_options": {"depth": 8, "width": 4},
        "final_phase": {"share": 0.3},
        "weight_averaging": "ema",
        "ema_decay": 0.7,
    },
    "photos, mixed": {
        "objective": "kd",
        "augmentation": AugmentationParams(
            padding_px=0, horizontal_flip=True, resized_crop_scale=(0.3, 1.0), contrast=0.4
        ),
        "mixing": "cutmix",
        "mixing_share": 0.5,
        "teacher_cache": "views",
        "cached_views": 1,
        "batch_size": 64,
    },
    "labeled share": {"objective": "kd", "augmentation": SHIFTED, "labeled_share": 0.25},
    "mixture": {"objective": "kd", "labeled_share": 0.25, "mixture": True},
    "rolling": {"objective": "kd", "augmentation": SHIFTED, "rolling": True},
    "rolling, streamed": {"objective": "kd", "compute": STREAMED, "rolling": True},
}


# The noise matrix and the critic have an optimizer of their own.
WITH_TWO_OPTIMIZERS = ("noisy_kd", "pu_critic")


@pytest.mark.parametrize("variant", STUDENTS)
def test_a_student_that_is_killed_at_every_update_is_the_student_of_one_run(
    digits, variant, tmp_path
):
    train = student_of(digits, **STUDENTS[variant])
    expected = train()
    n_optimizers = 1
    if variant in WITH_TWO_OPTIMIZERS:
        n_optimizers = 2

    # Killed in its second update, each start keeps its first one: it comes one update further.
    for n_updates in (2, 4):
        folder = tmp_path / str(n_updates)
        n_steps = n_updates * n_optimizers
        found = outcome_of_restarts(train, folder, steps_per_start=n_steps)
        assert_same(found, expected)


@pytest.mark.parametrize("variant", WITH_TWO_OPTIMIZERS)
def test_a_student_that_is_killed_between_two_optimizers_is_the_student_of_one_run(
    digits, variant, tmp_path
):
    options = STUDENTS[variant]
    train = student_of(digits, **options)
    expected = train()

    # The third step is the first one of the second update.
    found = outcome_of_restarts(train, tmp_path, steps_per_start=3)
    assert_same(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("compute", [COMPUTE, STREAMED], ids=["resident", "streamed"])
@pytest.mark.parametrize("algorithm", ["sgd", "adam"])
def test_a_teacher_that_is_killed_at_every_update_is_the_teacher_of_one_run(
    digits, tmp_path, compute, algorithm
):
    optimizer = MOMENTUM.model_copy(update={"algorithm": algorithm})
    train = teacher_of(digits, compute, optimizer=optimizer)
    expected = train()

    for n_steps in (2, 5):
        folder = tmp_path / str(n_steps)
        found = outcome_of_restarts(train, folder, steps_per_start=n_steps)
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
        "max_unlabeled": 1_000_000,
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
        folder = tmp_path / "features" / name
        shards = feature_shards(store, digits.teacher, COMPUTE)
        return ShardedTable.write(folder, shards)

    labeled = table_of("labeled", digits.labeled)
    pool = table_of("pool", digits.pool)
    return labeled, pool


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
        weights = dict(classifier.module.state_dict())
        # The ranks come from the trainings on the two held-out folds.
        tables = pd.concat([history, ranks])
        return weights, tables

    expected = train()
    n_trainings = 3
    n_epochs = 2
    n_updates_per_epoch = 3
    n_steps = n_trainings * n_epochs * n_updates_per_epoch
    with pytest.raises(Killed), killed_at_step(n_steps):
        train()

    for steps_per_start in (2, 5):
        folder = tmp_path / str(steps_per_start)
        found = outcome_of_restarts(train, folder, steps_per_start=steps_per_start)
        assert_same(found, expected)
    files = list((tmp_path / "2").glob("pu_training*.ckpt"))
    assert len(files) == 6  # the last two of each training


def test_without_a_folder_nothing_is_written(digits, tmp_path, monkeypatch):
    # Nor in the folder where the program runs.
    monkeypatch.chdir(tmp_path)
    train = student_of(digits, objective="kd", n_updates=2)
    train()
    files = list(tmp_path.iterdir())
    assert files == []


def test_checkpoints_can_be_disabled_for_a_while(digits, tmp_path):
    folder = tmp_path / "kept"
    train = student_of(digits, objective="kd", n_updates=2)
    set_checkpoint_folder(folder, 0.0)
    with checkpoints_disabled():
        train()
    files = list(tmp_path.iterdir())
    assert files == []

    train()
    files = list(folder.iterdir())
    assert files != []


def test_short_and_repeated_trainings_write_no_checkpoints(digits, features, tmp_path):
    folder = tmp_path / "kept"
    set_checkpoint_folder(folder, 0.0)
    labeled_features, pool_features = features

    # Each of these trainings takes seconds, and there are many of them.
    params = pu_params()
    estimate_prior(labeled_features, pool_features, params)
    student_params = digits.params(n_updates=4)
    proxy = Proxy(digits.teacher, pool_features, student_params)
    proxy.divergence(digits.manifest, digits.labeled, digits.pool)
    assert not folder.exists()


def test_a_finished_training_is_not_repeated_and_reports_all_of_its_records(digits, tmp_path):
    train = student_of(digits, **STUDENTS["kd, best"])
    set_checkpoint_folder(tmp_path, every_s=1e9)
    expected = train()
    # The last state is kept whatever the interval is.
    files = [path.name for path in tmp_path.iterdir()]
    assert files == ["student.ckpt"]

    steps: list[int] = []
    losses: list[float] = []

    def listener(name: str, step: int, record: Any) -> None:
        steps.append(step)
        losses.append(record["loss"])

    progress.records.add(listener)
    try:
        with killed_at_step(1):  # no step is taken
            found = train()
    finally:
        progress.records.remove(listener)
    assert_same(found, expected)
    _, history = expected
    assert steps == [3, 6, 7]
    assert losses == history["loss"].tolist()


def test_teacher_outputs_made_before_the_training_are_not_computed_again(digits, tmp_path):
    train = student_of(digits, **STUDENTS["robust_kd, views"])
    expected = train()
    batch_sizes: list[int] = []

    def count(_layer: Any, inputs: Any, _output: Any) -> None:
        images = inputs[0]
        batch_sizes.append(len(images))

    with digits.teacher.network.fc.register_forward_hook(count):
        killed(train, tmp_path, step=3)
        # Two views of 200 images, in batches of 64.
        n_batches = batch_sizes.count(64)
        assert n_batches == math.ceil(2 * 200 / 64)

        found = train()
    assert_same(found, expected)
    assert batch_sizes.count(64) == n_batches


def test_teacher_outputs_that_take_no_time_are_not_kept(digits, tmp_path):
    train = student_of(digits, **STUDENTS["robust_kd, views"])
    # Computing them again takes less than the interval.
    set_checkpoint_folder(tmp_path, 1e9)
    train()
    files = [path.name for path in tmp_path.iterdir()]
    assert files == ["student.ckpt"]
