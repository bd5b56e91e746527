"""Trainings that tests start in one process and in two; functions of a module, as workers need."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pu_kd_pipeline import progress
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import OptimizerParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.training.distillation import distill
from pu_kd_pipeline.training.pu_classifier import train_end_to_end
from pu_kd_pipeline.training.teacher import train_classifier
from pu_kd_pipeline.training.worker_group import current_workers
from tests.training.scene import COMPUTE, VARIANTS, Scene, state_of, three_weight_vectors

# Name -> changes of the parameters of a student. Between them they use all that workers exchange:
# objectives, averages, the teacher's outputs, views, mixed images, and draws of the rule `rolling`.
STUDENTS: dict[str, dict[str, Any]] = {
    **VARIANTS,
    "views and averages": {
        "objective": "kd",
        "augmentation": {"padding_px": 1, "horizontal_flip": True},
        "teacher_cache": "views",
        "weight_averaging": "ema",
        "ema_decay": 0.9,
        "keep": "best",
    },
    "mixing": {"objective": "kd", "mixing": "cutmix", "mixing_share": 0.5, "teacher_cache": "off"},
    "rolling": {"objective": "robust_kd", "labeled_share": 0.25},
}
# Adam divides gradients by their own size: where one is next to zero, its sign and with it a whole
# step depend on rounding.
SGD = OptimizerParams(
    algorithm="sgd", learning_rate=0.05, momentum=0.9, weight_decay=1e-3, schedule="cosine"
)
ROLLING = {"n_phases": 2, "n_sampled": 33, "uniform_share": 0.2}
Trained = Mapping[str, tuple[pd.DataFrame, dict[str, Tensor]]]


def students(scene: Scene) -> Trained:
    """Return the history and the weights of every student, of few updates."""
    return {name: trained_student(scene, name) for name in STUDENTS}


def trained_student(
    scene: Scene, name: str, **changes: Any
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    manifest = scene.manifest
    vectors = three_weight_vectors()
    if name == "rolling":
        manifest.attrs["rolling"] = ROLLING
        # By the divergence, where labeled images are a class of their own.
        vectors.attrs["weighting"] = {"mode": "shrunk"}
    few = {"n_updates": 8, "record_every": 4, "optimizer": SGD}
    given = {**few, **STUDENTS[name], **changes}
    student, history = distill(
        manifest,
        scene.labeled,
        scene.pool,
        scene.teacher,
        vectors,
        scene.params(**given),
        "student",
        yardstick=scene.yardstick,
    )
    return history, state_of(student)


def teacher_and_pu_classifier(scene: Scene, pu: PUTrainingParams) -> Trained:
    """Return the history and the weights of a teacher, and of a PU classifier with a backbone."""
    card = scene.teacher.card
    teacher = TeacherParams(
        architecture=card.architecture,
        architecture_options=card.architecture_options,
        weights=None,
        classes=card.classes,
        input=card.input,
        taps=None,
    )
    training = TeacherTrainingParams(
        seed=1,
        n_updates=12,
        record_every=4,
        batch_size=32,
        optimizer=SGD,
        augmentation={"padding_px": 1, "horizontal_flip": True},
        compute=COMPUTE,
    )
    model, history = train_classifier(teacher, scene.labeled, training)
    classifier, pu_history, ranks = train_end_to_end(
        scene.labeled, scene.pool, scene.teacher, 0.4, pu
    )
    return {
        "teacher": (history, state_of(model)),
        "PU classifier": (pu_history, dict(classifier.module.state_dict())),
        "held-out ranks": (ranks[["fold", "rank", "pu_score"]], {}),
    }


def student_of_a_lost_worker(scene: Scene, n_updates: int) -> Model | None:
    """Train a student until the last worker is killed, after the record of update 8."""
    workers = current_workers()

    def killed(name: str, step: int, record: Mapping[str, Any]) -> None:
        if workers.n > 1 and workers.rank == workers.n - 1 and step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    progress.records.add(killed)
    trained_student(scene, "kd", n_updates=n_updates)
    return None


def sums_with_a_stopped_worker() -> None:
    """Exchange tensors until the last worker stops answering."""
    workers = current_workers()
    workers.sum(torch.ones(1))
    if not workers.is_first:
        os.kill(os.getpid(), signal.SIGSTOP)
    workers.sum(torch.ones(1))


def waits_forever(folder: Path) -> None:
    """Write the id of each worker's process to a folder, and wait."""
    workers = current_workers()
    (folder / str(workers.rank)).write_text(str(os.getpid()))
    time.sleep(600)


def fails_in_one_worker() -> None:
    """Raise an error of ours in the second worker; the first one waits for it."""
    workers = current_workers()
    if not workers.is_first:
        raise ZeroDivisionError("a bug of the second worker")
    workers.sum(torch.ones(1))


def student_and_node(
    scene: Scene, n_updates: int, places: Path | None
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Return history and weights of a student; each worker notes the Ray node that it is on."""
    if places is not None:
        with places.open("a") as file:
            file.write(os.environ["RAY_RAYLET_PID"] + "\n")
    return trained_student(scene, "kd", n_updates=n_updates)


class OwnInputError(InputError):
    """An error that cannot be made again from its message alone."""

    def __init__(self, file: str, line: int) -> None:
        super().__init__(f"{file}, line {line}, is wrong")


def refuses_by_an_error_of_its_own() -> None:
    """Exchange tensors, and then raise such an error."""
    workers = current_workers()
    workers.sum(torch.ones(1))
    raise OwnInputError(f"file {workers.rank}", 7)


class Unreadable:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def publishes_what_cannot_be_read() -> None:
    """Publish such an object, and wait."""
    progress.records.publish("training", 1, {"loss": Unreadable()})  # type: ignore[dict-item]
    time.sleep(600)
