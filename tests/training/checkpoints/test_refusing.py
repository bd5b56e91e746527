"""Checkpoints that are not used: of another configuration, or damaged."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pu_kd_pipeline.learning.loop import TrainingState
from pu_kd_pipeline.training import distillation as distillation_module
from pu_kd_pipeline.training import teacher as teacher_module
from pu_kd_pipeline.training.checkpoints import disable_checkpoints, set_checkpoint_folder
from tests.training.checkpoints.trainings import (
    MOMENTUM,
    STREAMED,
    Dropping,
    assert_same,
    killed,
    killed_at_step,
    outcome_of_restarts,
    student_of,
    teacher_of,
)
from tests.training.scene import Scene

FASTER = MOMENTUM.model_copy(update={"learning_rate": 0.2})


# --- another configuration


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"n_updates": 8}, "n_updates 7 → 8"),
        ({"optimizer": FASTER}, "optimizer.learning_rate 0.05 → 0.2"),
        ({"seed": 2, "batch_size": 16}, "seed 1 → 2, batch_size 32 → 16"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_and_replaced(
    digits, tmp_path, caplog, changes, reported
):
    killed(teacher_of(digits), tmp_path)
    changed = teacher_of(digits, **changes)
    disable_checkpoints()
    expected = changed()

    with caplog.at_level(logging.INFO):
        found = outcome_of_restarts(changed, tmp_path, steps_per_start=4)
    assert_same(found, expected)
    refusal = f"checkpoint of another configuration ({reported}): training starts over"
    assert f"teacher: {refusal}" in caplog.text
    assert "teacher: resumes after update 3" in caplog.text


def test_other_images_are_another_configuration(digits, tmp_path, caplog):
    params = {"objective": "kd", "keep": "best", "optimizer": MOMENTUM}
    train = student_of(digits, **params)
    killed(train, tmp_path)

    # Everything but the manifest is the same.
    smaller = digits.manifest.iloc[1:]
    set_checkpoint_folder(tmp_path, 1e9)
    with caplog.at_level(logging.INFO):
        digits.distill(smaller, n_updates=7, record_every=3, **params)
    assert "another configuration (manifest " in caplog.text


def test_another_version_of_torch_is_another_configuration(digits, tmp_path, caplog, monkeypatch):
    train = teacher_of(digits)
    killed(train, tmp_path)

    # Its kernels may round differently.
    monkeypatch.setattr(torch, "__version__", "1.0")
    set_checkpoint_folder(tmp_path, 1e9)
    with caplog.at_level(logging.INFO):
        train()
    assert "→ 1.0)" in caplog.text


@pytest.mark.parametrize("training", ["teacher", "student"])
def test_other_code_or_libraries_are_another_configuration(
    digits, tmp_path, caplog, monkeypatch, training
):
    module = teacher_module
    train = teacher_of(digits)
    if training == "student":
        module = distillation_module
        train = student_of(digits, objective="kd", optimizer=MOMENTUM)
    killed(train, tmp_path)

    # Also without the runner, which removes checkpoints of other code.
    monkeypatch.setattr(module, "maker_fingerprint", lambda *_: "0123456789ab")
    set_checkpoint_folder(tmp_path, 1e9)
    with caplog.at_level(logging.INFO):
        train()
    assert "another configuration (code " in caplog.text


def test_another_network_is_another_configuration(digits, tmp_path, caplog, monkeypatch):
    train = teacher_of(digits)
    killed(train, tmp_path)
    original = Dropping.__init__

    def with_one_more_layer(self: Dropping, n_classes: int, in_channels: int) -> None:
        original(self, n_classes, in_channels)
        self.more = nn.Linear(2, 2)

    # The parameters name the same network; only its code has changed.
    monkeypatch.setattr(Dropping, "__init__", with_one_more_layer)
    set_checkpoint_folder(tmp_path, 1e9)
    with caplog.at_level(logging.INFO):
        train()
    assert "another configuration (networks " in caplog.text


def test_what_depends_on_the_memory_may_change_between_two_starts(digits, tmp_path):
    train = teacher_of(digits)
    expected = train()
    killed(train, tmp_path)

    train_with_less_memory = teacher_of(digits, STREAMED)
    with killed_at_step(4):  # more steps than are left
        found = train_with_less_memory()
    assert_same(found, expected)


# --- damaged files


def with_one_bit_flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[2000] ^= 1
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a few bytes": lambda content: content[:7],
    "one bit": with_one_bit_flipped,
    "something else": lambda content: b"PK" + os.urandom(500),
}


def damage_file(file: Path, damage: str) -> None:
    content = file.read_bytes()
    damaged = DAMAGES[damage](content)
    file.write_bytes(damaged)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_or_to_a_new_start(
    digits, tmp_path, caplog, damage
):
    train = teacher_of(digits)
    expected = train()
    killed(train, tmp_path)
    newest = tmp_path / "teacher.ckpt"
    before = tmp_path / "teacher.previous.ckpt"

    damage_file(newest, damage)
    with caplog.at_level(logging.INFO):
        found = train()
    assert_same(found, expected)
    assert f"teacher: the checkpoint {newest} is damaged" in caplog.text
    # Killed in the sixth update: the fifth is damaged, and the fourth is the one before.
    assert f"; resumes after update 4, from {before}" in caplog.text

    caplog.clear()
    damage_file(newest, damage)
    damage_file(before, damage)
    with caplog.at_level(logging.INFO):
        found = train()
    assert_same(found, expected)
    assert caplog.text.count("training starts over") == 1
    assert "resumes" not in caplog.text


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(digits, tmp_path):
    train = teacher_of(digits)
    # Killed in the sixth update: the fifth is kept, and the fourth before it.
    killed(train, tmp_path)
    newest = tmp_path / "teacher.ckpt"
    before = tmp_path / "teacher.previous.ckpt"

    # It resumes after the fourth update, and keeps the fifth.
    newest.write_bytes(b"damaged")
    killed(train, tmp_path, step=2)
    updates = []
    for path in (before, newest):
        content = torch.load(path, weights_only=True)["content"]
        updates.append(content["update"])
    assert updates == [4, 5]


def test_a_checkpoint_that_would_run_code_is_damaged(digits, tmp_path, caplog, monkeypatch):
    train = teacher_of(digits)
    expected = train()
    set_checkpoint_folder(tmp_path, 0.0)
    # A class in a pickle is looked up, and so imported, when it is loaded.
    monkeypatch.setattr(TrainingState, "state_dict", lambda self: {"update": Scene})
    train()

    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        found = train()
    assert_same(found, expected)
    assert "is damaged (Weights only load failed" in caplog.text
    assert "resumes" not in caplog.text


def test_a_kill_between_two_renames_loses_one_checkpoint_at_most(digits, tmp_path):
    train = teacher_of(digits)
    expected = train()
    killed(train, tmp_path)
    # The last one was renamed to the one before, and its successor was not yet in its place.
    newest = tmp_path / "teacher.ckpt"
    newest.unlink()
    half_written = tmp_path / ".teacher.ckpt.1.tmp"
    half_written.write_bytes(b"half of it")

    with killed_at_step(4):  # updates 5 to 7 are three
        found = train()
    assert_same(found, expected)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["teacher.ckpt", "teacher.previous.ckpt"]
