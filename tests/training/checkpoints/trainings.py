"""Trainings that are stopped at any update and started again, as another process would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams, OptimizerParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.training.checkpoints import set_checkpoint_folder
from pu_kd_pipeline.training.teacher import train_classifier
from tests.training.scene import Scene

COMPUTE = ComputeParams(
    device="cpu", precision="float32", n_threads=1, resident_limit_gb=1.0, inference_batch_size=64
)
STREAMED = COMPUTE.model_copy(update={"resident_limit_gb": 1e-9})
MOMENTUM = OptimizerParams(
    algorithm="sgd", learning_rate=0.05, momentum=0.9, weight_decay=1e-4, schedule="cosine"
)
SHIFTED = AugmentationParams(padding_px=1, horizontal_flip=True)
TEACHER = TeacherParams.model_validate(
    {
        "architecture": f"{__name__}:Dropping",
        "architecture_options": {},
        "weights": None,
        "taps": ["norm"],
        "classes": 5,
        "input": {"size_px": 8, "channels": 1, "mean": [0.4], "std": [0.25]},
    }
)

Outcome = tuple[dict[str, Tensor], pd.DataFrame]  # weights and history
Training = Callable[[], Outcome]


class Killed(BaseException):
    """Like a signal: no training catches it."""


class Dropping(nn.Module):
    """A network that draws from torch's global generator and has BatchNorm."""

    def __init__(self, n_classes: int, in_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.fc = nn.Linear(64 * in_channels, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.norm(images).flatten(1)
        dropped = nn.functional.dropout(pixels, 0.5, self.training)
        logits: Tensor = self.fc(dropped)
        return logits


@contextmanager
def stopped_at_step(number: int, error: BaseException) -> Iterator[None]:
    """Raise an error after the given step of any optimizer, counted from here.

    The update is then half done, and nothing of it may be kept.
    """
    n_steps = 0

    def count(*_: Any) -> None:
        nonlocal n_steps
        n_steps += 1
        if n_steps == number:
            raise error

    hook = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        hook.remove()


def killed_at_step(number: int) -> AbstractContextManager[None]:
    return stopped_at_step(number, Killed())


def killed(train: Training, folder: Path, step: int = 6) -> None:
    """Start a training with a checkpoint after every update, and kill it."""
    set_checkpoint_folder(folder, 0.0)
    with pytest.raises(Killed), killed_at_step(step):
        train()


def outcome_of_restarts(train: Training, folder: Path, *, steps_per_start: int) -> Outcome:
    """Return the outcome of a training that is killed after some steps of every start."""
    set_checkpoint_folder(folder, 0.0)
    for _ in range(1000):
        try:
            with killed_at_step(steps_per_start):
                return train()
        except Killed:
            torch.manual_seed(0)  # another process starts with another state
    raise AssertionError("it makes no progress")


def assert_same(found: Outcome, expected: Outcome) -> None:
    """Compare weights and history to the last bit."""
    weights, history = found
    expected_weights, expected_history = expected
    assert list(weights) == list(expected_weights)
    for name, value in weights.items():
        expected_value = expected_weights[name]
        assert torch.equal(value, expected_value), name
    pd.testing.assert_frame_equal(history, expected_history, check_exact=True)


def student_of(scene: Scene, **changes: Any) -> Training:
    """Return the training of a student of seven updates and three records."""
    is_mixture = changes.pop("mixture", False)
    is_rolling = changes.pop("rolling", False)
    given = {"n_updates": 7, "record_every": 3, **changes}
    is_plain = "keep" not in changes and "compute" not in changes
    is_plain_kd = is_plain and changes["objective"] == "kd" and not is_rolling

    def train() -> Outcome:
        manifest = scene.manifest
        # One variant draws by probability, so that this is covered, too.
        if is_plain_kd:
            n_images = len(manifest)
            manifest["sampling_probability"] = np.arange(1.0, n_images + 1)
        if is_mixture:
            manifest["related_probability"] = manifest.pop("sampling_probability")
            # The share of related images falls during the few updates.
            manifest.attrs["mixture"] = {"first": 1.0, "max_repeats": 0.5}
        if is_rolling:
            options = {"n_phases": 3, "n_sampled": 50, "uniform_share": 0.2}
            manifest.attrs["rolling"] = options
        student, history = scene.distill(manifest, **given)
        weights = dict(student.network.state_dict())
        return weights, history

    return train


def teacher_of(scene: Scene, compute: ComputeParams = COMPUTE, **changes: Any) -> Training:
    given = {
        "seed": 1,
        "n_updates": 7,
        "record_every": 3,
        "batch_size": 32,
        "optimizer": MOMENTUM,
        **changes,
    }
    params = TeacherTrainingParams(augmentation=SHIFTED, compute=compute, **given)

    def train() -> Outcome:
        model, history = train_classifier(TEACHER, scene.labeled, params)
        weights = dict(model.network.state_dict())
        return weights, history

    return train
