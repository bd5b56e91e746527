"""Trainings on a full disk, with a loss that is not finite, and without enough memory."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import map_images, predict_logits
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.training.checkpoints import set_checkpoint_folder
from tests.training.checkpoints.trainings import (
    COMPUTE,
    MOMENTUM,
    assert_same,
    killed,
    stopped_at_step,
    student_of,
    teacher_of,
)

# --- disks that are full


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Let this process write no larger file: writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_where_a_checkpoint_cannot_be_written_training_continues_and_the_last_one_stays(
    digits, tmp_path, caplog
):
    train = teacher_of(digits)
    expected = train()
    killed(train, tmp_path, step=3)
    before = contents(tmp_path)
    with largest_file(5000):
        assert_same(train(), expected)
    levels = [record.levelname for record in caplog.records]
    assert levels.count("WARNING") == 1
    assert (
        "teacher: the checkpoint of update 3 cannot be written ([Errno 27] File too large): "
        "training continues " in caplog.text
    )
    assert "of update 2, is kept in" in caplog.text
    assert contents(tmp_path) == before


def test_on_a_full_disk_training_continues_and_the_last_checkpoint_stays(digits, tmp_path, caplog):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk of 64 kB takes root and the right to mount")
    try:
        train = teacher_of(digits)
        expected = train()
        killed(train, tmp_path, step=3)
        disk = os.statvfs(tmp_path)
        filler = tmp_path / "others"
        filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize))
        before = contents(tmp_path)
        assert_same(train(), expected)
        assert "[Errno 28] No space left on device" in caplog.text
        assert contents(tmp_path) == before
        filler.unlink()
        assert_same(train(), expected)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_that_cannot_be_written_costs_a_warning(digits, tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    expected = teacher_of(digits)()
    set_checkpoint_folder(tmp_path / "file", 0.0)
    assert_same(teacher_of(digits)(), expected)
    assert caplog.text.count("training continues without checkpoints") == 1


# --- a loss that is not finite


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(digits, tmp_path):
    """Weights are infinite long before the next record shows it, and are not kept."""
    steep = MOMENTUM.model_copy(update={"learning_rate": 1e20})
    set_checkpoint_folder(tmp_path, 0.0)
    train = student_of(
        digits, objective="kd", keep="last", optimizer=steep, n_updates=40, record_every=20
    )
    with pytest.raises(InputError) as stopped:
        train()
    sentence = str(stopped.value)
    assert sentence.startswith(
        "student: the loss is nan between update 1 and 20 of 40: lower the learning rate"
    )
    file = tmp_path / "student.ckpt"
    kept = torch.load(file, weights_only=True)["content"]
    assert 0 < kept["update"] < 20
    assert f"checkpoint, of update {kept['update']}, is kept in {file}: the same" in sentence
    for value in kept["parts"]["trained"].values():
        assert bool(value.isfinite().all())


# --- too little memory


class Hungry(nn.Module):
    """A network that has memory for so many images at once."""

    def __init__(self, max_images: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.max_images = max_images
        self.error = error
        self.batch_sizes: list[int] = []
        self.fc = nn.Linear(64, 5)

    def forward(self, images: Tensor) -> Tensor:
        self.batch_sizes.append(len(images))
        if len(images) > self.max_images:
            raise self.error(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"
            )
        logits: Tensor = self.fc(images.flatten(1))
        return logits


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_inference_goes_on_with_half_a_batch_where_memory_runs_out(digits, error, caplog):
    hungry = Hungry(32, error)
    logits = predict_logits(digits.teacher, digits.pool, COMPUTE, network=hungry)
    hungry.max_images = 1000
    expected = predict_logits(digits.teacher, digits.pool, COMPUTE, network=hungry)
    torch.testing.assert_close(logits, expected)
    assert hungry.batch_sizes[:7] == [64, 32, 32, 32, 32, 6, 6]
    warning = "memory is not enough for 64 images at once: "
    assert caplog.text.count(warning) == 1


def test_inference_without_memory_for_half_a_batch_says_what_to_lower(digits):
    with pytest.raises(
        InputError, match=r"inference: .*CUDA out of memory.*compute\.inference_batch_size"
    ):
        predict_logits(digits.teacher, digits.pool, COMPUTE, network=Hungry(31))


def test_running_out_of_main_memory_is_reported_in_the_same_way(digits):
    def greedy(images: Tensor) -> tuple[Tensor, ...]:
        return (torch.empty(2**48),)

    batches = map_images(greedy, digits.pool, np.arange(10), Normalize([0.5], [0.5]), COMPUTE)
    with pytest.raises(
        InputError, match=r"inference: .*can't allocate memory.*compute\.inference_batch_size"
    ):
        list(batches)


def test_other_errors_of_a_network_are_raised_as_they_are(digits):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        predict_logits(digits.teacher, digits.pool, COMPUTE, network=network)


def test_training_that_has_no_memory_says_what_to_lower_and_resumes_from_its_checkpoint(
    digits, tmp_path
):
    train = teacher_of(digits)
    expected = train()
    set_checkpoint_folder(tmp_path, 0.0)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with stopped_at_step(4, error), pytest.raises(InputError) as stopped:
        train()
    sentence = str(stopped.value)
    assert sentence.startswith(
        "teacher: the memory of the device is not enough (CUDA out of memory. Tried to"
    )
    for key in ("batch_size", "compute.inference_batch_size", "compute.resident_limit_gb"):
        assert key in sentence
    assert "checkpoint, of update 3, is kept in" in sentence
    assert_same(train(), expected)
