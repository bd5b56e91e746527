"""Trainings that are stopped, anywhere and again and again, and go on to the same weights; and checkpoints that fail.

A training is stopped behind an optimizer's step: its update is then half done, and nothing of it is kept.
"""

from __future__ import annotations

import logging
import os
import resource
import subprocess
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

from pu_kd_pipeline import progress
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.batches import map_images, predict_logits
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.loop import TrainingState
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams, OptimizerParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.selection.proxy import Proxy
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.checkpoints import keep_in, keep_nowhere, unkept
from pu_kd_pipeline.training.class_prior import estimate_prior
from pu_kd_pipeline.training.pu_classifier import train_end_to_end, train_head
from pu_kd_pipeline.training.teacher import train_classifier
from tests.training.scene import ATTENTION, LATENT, Scene

COMPUTE = ComputeParams(
    device="cpu", precision="float32", n_threads=1, resident_limit_gb=1.0, inference_batch_size=64
)
STREAMED = COMPUTE.model_copy(update={"resident_limit_gb": 1e-9})
MOMENTUM = OptimizerParams(
    algorithm="sgd", learning_rate=0.05, momentum=0.9, weight_decay=1e-4, schedule="cosine"
)
SHIFTED = AugmentationParams(padding_px=1, horizontal_flip=True)

Outcome = tuple[dict[str, Tensor], pd.DataFrame]
Training = Callable[[], Outcome]


class Killed(BaseException):
    """Like a signal: nothing that a training catches."""


@pytest.fixture(autouse=True)
def _no_place() -> Iterator[None]:
    keep_nowhere()
    yield
    keep_nowhere()


@contextmanager
def stopped_at_step(number: int, error: BaseException) -> Iterator[None]:
    """Raise an error behind the given step of any optimizer, counted from here."""
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


def outcome_of_many_lives(
    training: Training, folder: Path, *, steps_a_life: int, every_s: float = 0.0
) -> Outcome:
    """Return what a training comes to that is killed after so many steps, begins again, is killed, and so on."""
    for _ in range(1000):
        keep_in(folder, every_s)
        try:
            with killed_at_step(steps_a_life):
                return training()
        except Killed:
            torch.manual_seed(0)  # another process has another state
    raise AssertionError("it makes no progress")


def assert_same(found: Outcome, expected: Outcome) -> None:
    assert list(found[0]) == list(expected[0])
    assert all(torch.equal(found[0][name], expected[0][name]) for name in expected[0])
    pd.testing.assert_frame_equal(found[1], expected[1], check_exact=True)


# --- every training ---------------------------------------------------------------------------------------------------


@pytest.fixture
def scene(scene_of: Callable[[str], Scene]) -> Scene:
    return scene_of("digits")


OBJECTIVES: dict[str, dict[str, Any]] = {
    "kd, best": {"objective": "kd", "keep": "best", "optimizer": MOMENTUM},
    "robust_kd": {"objective": "robust_kd", "augmentation": SHIFTED, "teacher_cache": "off"},
    "robust_kd, views": {
        "objective": "robust_kd", "augmentation": SHIFTED, "teacher_cache": "views", "cached_views": 2,
        "batch_size": 64,
    },
    "noisy_kd": {"objective": "noisy_kd", "optimizer": MOMENTUM},
    "latent": {"objective": "latent"},
    "shared head, best": {
        "objective": "latent", "latent": LATENT | {"kl_weight": 0.5, "shared_head": True}, "keep": "best",
    },
    "attention": {"objective": "attention", "attention": ATTENTION | {"n_taps": 2}},
    "pu_critic": {"objective": "pu_critic"},
    "streamed": {"objective": "kd", "augmentation": SHIFTED, "compute": STREAMED},
    "drawn": {"objective": "kd", "augmentation": SHIFTED},
}  # fmt: skip


def student_of(scene: Scene, **changes: Any) -> Training:
    def train() -> Outcome:
        manifest = scene.manifest
        if changes["objective"] == "kd" and "keep" not in changes and "compute" not in changes:
            manifest["sampling_probability"] = np.arange(1.0, 1 + len(manifest))
        student, history = scene.distill(manifest, **{"n_updates": 7, "record_every": 3, **changes})
        return dict(student.network.state_dict()), history

    return train


@pytest.mark.parametrize("variant", OBJECTIVES)
def test_a_student_that_is_killed_at_every_update_is_the_student_of_one_run(
    scene, variant, tmp_path
):
    train = student_of(scene, **OBJECTIVES[variant])
    expected = train()
    n_optimizers = 2 if variant in ("noisy_kd", "pu_critic") else 1
    # behind the second update of a life, its first one is kept: each life comes one update further
    assert_same(
        outcome_of_many_lives(train, tmp_path / "a", steps_a_life=2 * n_optimizers), expected
    )
    assert_same(
        outcome_of_many_lives(train, tmp_path / "b", steps_a_life=4 * n_optimizers), expected
    )


@pytest.mark.parametrize("variant", ["noisy_kd", "pu_critic"])
def test_a_student_that_is_killed_between_two_optimizers_is_the_student_of_one_run(
    scene, variant, tmp_path
):
    train = student_of(scene, **OBJECTIVES[variant])
    expected = train()
    assert_same(outcome_of_many_lives(train, tmp_path, steps_a_life=3), expected)


def test_a_training_without_a_place_or_one_that_is_not_to_be_kept_writes_nothing(
    scene, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    student_of(scene, objective="kd", n_updates=2)()
    keep_in(tmp_path / "kept", 0.0)
    with unkept():
        student_of(scene, objective="kd", n_updates=2)()
    assert list(tmp_path.iterdir()) == []
    student_of(scene, objective="kd", n_updates=2)()
    assert [path.name for path in (tmp_path / "kept").iterdir()] != []


class Dropping(nn.Module):
    """A network that draws from torch's global generator and has BatchNorm."""

    def __init__(self, n_classes: int, in_channels: int) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm2d(in_channels), nn.Linear(64 * in_channels, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        dropped = nn.functional.dropout(self.norm(images).flatten(1), 0.5, self.training)
        logits: Tensor = self.fc(dropped)
        return logits


def teacher_of(scene: Scene, compute: ComputeParams = COMPUTE, **changes: Any) -> Training:
    teacher = TeacherParams.model_validate(
        {
            "architecture": f"{__name__}:Dropping", "architecture_options": {}, "weights": None, "taps": ["norm"],
            "classes": 5, "input": {"size_px": 8, "channels": 1, "mean": [0.4], "std": [0.25]},
        }
    )  # fmt: skip
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
        model, history = train_classifier(teacher, scene.labeled, params)
        return dict(model.network.state_dict()), history

    return train


@pytest.mark.parametrize("compute", [COMPUTE, STREAMED], ids=["resident", "streamed"])
@pytest.mark.parametrize("algorithm", ["sgd", "adam"])
def test_a_teacher_that_is_killed_at_every_update_is_the_teacher_of_one_run(
    scene, tmp_path, compute, algorithm
):
    train = teacher_of(
        scene, compute, optimizer=MOMENTUM.model_copy(update={"algorithm": algorithm})
    )
    expected = train()
    assert_same(outcome_of_many_lives(train, tmp_path / "a", steps_a_life=2), expected)
    assert_same(outcome_of_many_lives(train, tmp_path / "b", steps_a_life=5), expected)


def pu_params(**changes: Any) -> PUTrainingParams:
    given = {
        "seed": 0, "class_prior": 0.4, "estimator": "nnpu", "beta": 0.0, "gamma": 1.0, "backbone": "frozen",
        "prior_estimation": {"method": "ted", "n_folds": 2, "epochs": 2, "n_bootstrap": 20, "level": 0.9},
        "features": "descriptor", "attention_reduction": 4, "epochs": 2, "positive_batch_size": 8,
        "unlabeled_batch_size": 64, "held_out_folds": 2, "optimizer": MOMENTUM, "augmentation": SHIFTED,
        "compute": COMPUTE,
    }  # fmt: skip
    return PUTrainingParams.model_validate(given | changes)


@pytest.fixture
def features(scene: Scene, tmp_path: Path) -> tuple[ShardedTable, ShardedTable]:
    stores = {"labeled": scene.labeled, "pool": scene.pool}
    labeled, pool = (
        ShardedTable.write(
            tmp_path / "features" / name, feature_shards(store, scene.teacher, COMPUTE)
        )
        for name, store in stores.items()
    )
    return labeled, pool


@pytest.mark.parametrize(
    ("backbone", "estimator"), [("frozen", "nnpu"), ("frozen", "cvir"), ("full", "nnpu")]
)
def test_a_pu_classifier_that_is_killed_at_every_update_is_that_of_one_run(
    scene, features, tmp_path, backbone, estimator
):
    params = pu_params(backbone=backbone, estimator=estimator)

    def train() -> Outcome:
        if backbone == "frozen":
            classifier, history, ranks = train_head(*features, scene.teacher, 0.4, params)
        else:
            classifier, history, ranks = train_end_to_end(
                scene.labeled, scene.pool, scene.teacher, 0.4, params
            )
        return dict(classifier.module.state_dict()), pd.concat([history, ranks])

    expected = train()
    n_steps = 3 * 2 * 3  # trainings, epochs, updates in one
    with pytest.raises(Killed), killed_at_step(n_steps):
        train()
    assert_same(outcome_of_many_lives(train, tmp_path / "a", steps_a_life=2), expected)
    assert_same(outcome_of_many_lives(train, tmp_path / "b", steps_a_life=5), expected)
    assert (
        len(list((tmp_path / "a").glob("pu_training*.ckpt"))) == 6
    )  # the last two of each training


def test_what_is_short_or_one_of_many_is_not_kept(scene, features, tmp_path):
    keep_in(tmp_path / "kept", 0.0)
    estimate_prior(*features, pu_params())
    proxy = Proxy(scene.teacher, features[1], scene.params(n_updates=4))
    proxy.divergence(scene.manifest, scene.labeled, scene.pool)
    assert not (tmp_path / "kept").exists()


# --- what is told, and what is left -----------------------------------------------------------------------------------


def test_a_finished_training_is_not_done_again_and_tells_all_of_its_records(scene, tmp_path):
    train = student_of(scene, **OBJECTIVES["kd, best"])
    keep_in(tmp_path, every_s=1e9)
    expected = train()  # its last state is kept, whatever the interval
    assert [path.name for path in tmp_path.iterdir()] == ["student.ckpt"]
    told: list[tuple[str, int, float]] = []

    def listener(name: str, step: int, record: Any) -> None:
        told.append((name, step, record["loss"]))

    progress.records.add(listener)
    try:
        with killed_at_step(1):
            assert_same(train(), expected)
    finally:
        progress.records.remove(listener)
    assert [step for _, step, _ in told] == [3, 6, 7]
    assert [loss for _, _, loss in told] == expected[1]["loss"].tolist()


def test_what_the_teacher_said_before_the_training_is_not_asked_for_again(scene, tmp_path):
    train = student_of(scene, **OBJECTIVES["robust_kd, views"])
    expected = train()
    asked: list[int] = []
    count = scene.teacher.network.fc.register_forward_hook(
        lambda _layer, inputs, _output: asked.append(len(inputs[0]))
    )
    with count:
        keep_in(tmp_path, 0.0)
        with pytest.raises(Killed), killed_at_step(3):
            train()
        n_asked = asked.count(64)
        assert n_asked == -(-180 * 2 // 64)
        assert_same(train(), expected)
    assert asked.count(64) == n_asked
    keep_in(tmp_path / "long", 1e9)
    train()
    assert [path.name for path in (tmp_path / "long").iterdir()] == [
        "student.ckpt"
    ]  # it took no time


def killed(train: Training, folder: Path, step: int = 6) -> None:
    keep_in(folder, 0.0)
    with pytest.raises(Killed), killed_at_step(step):
        train()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n_updates": 8}, "n_updates 7 → 8"),
        (
            {"optimizer": MOMENTUM.model_copy(update={"learning_rate": 0.2})},
            "optimizer.learning_rate 0.05 → 0.2",
        ),
        ({"seed": 2, "batch_size": 16}, "seed 1 → 2, batch_size 32 → 16"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_and_replaced(
    scene, tmp_path, caplog, changes, told
):
    killed(teacher_of(scene), tmp_path)
    changed = teacher_of(scene, **changes)
    keep_nowhere()
    expected = changed()
    with caplog.at_level(logging.INFO):
        assert_same(outcome_of_many_lives(changed, tmp_path, steps_a_life=4), expected)
    assert (
        f"teacher: checkpoint of another configuration ({told}): training starts anew"
        in caplog.text
    )
    assert "teacher: trains on after update 3" in caplog.text


def test_other_images_another_network_and_another_version_of_torch_are_other_configurations(
    scene, tmp_path, caplog, monkeypatch
):
    killed(student_of(scene, **OBJECTIVES["kd, best"]), tmp_path)
    smaller = scene.manifest.iloc[1:]
    keep_in(tmp_path, 1e9)
    with caplog.at_level(logging.INFO):
        scene.distill(smaller, n_updates=7, record_every=3, **OBJECTIVES["kd, best"])
    assert "another configuration (manifest " in caplog.text
    killed(teacher_of(scene), tmp_path / "torch")
    keep_in(tmp_path / "torch", 1e9)
    monkeypatch.setattr(torch, "__version__", "1.0")
    with caplog.at_level(logging.INFO):
        teacher_of(scene)()
    assert "→ 1.0)" in caplog.text
    monkeypatch.undo()
    killed(teacher_of(scene), tmp_path / "network")
    plain = Dropping.__init__

    def with_more(self: Dropping, n_classes: int, in_channels: int) -> None:
        plain(self, n_classes, in_channels)
        self.more = nn.Linear(2, 2)

    monkeypatch.setattr(Dropping, "__init__", with_more)
    keep_in(tmp_path / "network", 1e9)
    with caplog.at_level(logging.INFO):
        teacher_of(scene)()
    assert "another configuration (networks " in caplog.text


def test_what_memory_allows_may_change_between_two_lives(scene, tmp_path):
    expected = teacher_of(scene)()
    killed(teacher_of(scene), tmp_path)
    with killed_at_step(4):  # more than are left
        assert_same(teacher_of(scene, STREAMED)(), expected)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a few bytes": lambda content: content[:7],
    "one bit": lambda content: content[:2000] + bytes([content[2000] ^ 1]) + content[2001:],
    "something else": lambda content: b"PK" + os.urandom(500),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_or_to_a_new_start(
    scene, tmp_path, caplog, damage
):
    train = teacher_of(scene)
    expected = train()
    killed(train, tmp_path)
    newest, before = tmp_path / "teacher.ckpt", tmp_path / "teacher.previous.ckpt"
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    with caplog.at_level(logging.INFO):
        assert_same(train(), expected)
    assert f"teacher: the checkpoint {newest} is damaged" in caplog.text
    assert (
        f"; trains on after update 4, from {before}" in caplog.text
    )  # killed in the sixth: kept the fifth last
    caplog.clear()
    for path in (newest, before):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with caplog.at_level(logging.INFO):
        assert_same(train(), expected)
    assert caplog.text.count("training starts anew") == 1
    assert "trains on" not in caplog.text


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(scene, tmp_path):
    killed(
        teacher_of(scene), tmp_path
    )  # in the sixth update: the fifth is kept, and the fourth before it
    newest, before = tmp_path / "teacher.ckpt", tmp_path / "teacher.previous.ckpt"
    newest.write_bytes(b"damaged")
    killed(teacher_of(scene), tmp_path, step=2)
    updates = [
        torch.load(path, weights_only=True)["content"]["update"] for path in (before, newest)
    ]
    assert updates == [4, 5]


def test_a_checkpoint_that_would_run_code_is_damaged(scene, tmp_path, caplog, monkeypatch):
    train = teacher_of(scene)
    expected = train()
    keep_in(tmp_path, 0.0)
    monkeypatch.setattr(TrainingState, "state_dict", lambda self: {"update": Scene})
    train()
    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        assert_same(train(), expected)
    assert "is damaged (Weights only load failed" in caplog.text
    assert "trains on" not in caplog.text


def test_a_kill_between_two_renames_loses_one_checkpoint_at_most(scene, tmp_path):
    train = teacher_of(scene)
    expected = train()
    killed(train, tmp_path)
    (tmp_path / "teacher.ckpt").unlink()  # renamed to the one before, and nothing in its place yet
    (tmp_path / ".teacher.ckpt.1.tmp").write_bytes(b"half of it")
    with killed_at_step(4):  # updates 5 to 7 are three
        assert_same(train(), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "teacher.ckpt",
        "teacher.previous.ckpt",
    ]


# --- disks that are full ----------------------------------------------------------------------------------------------


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Let this process write no larger file: what is beyond fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_where_a_checkpoint_cannot_be_written_training_goes_on_and_the_last_one_stays(
    scene, tmp_path, caplog
):
    train = teacher_of(scene)
    expected = train()
    killed(train, tmp_path, step=3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with largest_file(5000):
        assert_same(train(), expected)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert (
        "teacher: the checkpoint of update 3 cannot be written ([Errno 27] File too large): training goes on "
        in (caplog.text)
    )
    assert "of update 2, is kept in" in caplog.text
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_on_a_full_disk_training_goes_on_and_the_last_checkpoint_stays(scene, tmp_path, caplog):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk of 64 kB takes root and the right to mount")
    try:
        train = teacher_of(scene)
        expected = train()
        killed(train, tmp_path, step=3)
        (tmp_path / "others").write_bytes(
            bytes(os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize)
        )
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert_same(train(), expected)
        assert "[Errno 28] No space left on device" in caplog.text
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        (tmp_path / "others").unlink()
        assert_same(train(), expected)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_place_that_cannot_be_written_costs_a_warning(scene, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    expected = teacher_of(scene)()
    keep_in(tmp_path / "file", 0.0)
    assert_same(teacher_of(scene)(), expected)
    assert caplog.text.count("training goes on without checkpoints") == 1


# --- losses that are not finite, memory that is not there -------------------------------------------------------------


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(scene, tmp_path):
    """Weights are infinite long before the next record says so, and are not kept."""
    steep = MOMENTUM.model_copy(update={"learning_rate": 1e20})
    keep_in(tmp_path, 0.0)
    with pytest.raises(InputError) as stopped:
        student_of(
            scene, objective="kd", keep="last", optimizer=steep, n_updates=40, record_every=20
        )()
    sentence = str(stopped.value)
    assert sentence.startswith(
        "student: the loss is nan between update 1 and 20 of 40: lower the learning rate"
    )
    kept = torch.load(tmp_path / "student.ckpt", weights_only=True)["content"]
    assert 0 < kept["update"] < 20
    assert (
        f"checkpoint, of update {kept['update']}, is kept in {tmp_path / 'student.ckpt'}: the same"
        in sentence
    )
    weights = kept["parts"]["trained"].values()
    assert all(bool(value.isfinite().all()) for value in weights)


class Hungry(nn.Module):
    """A network that has memory for so many images at once."""

    def __init__(self, most: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.most, self.error, self.sizes = most, error, []
        self.fc = nn.Linear(64, 5)

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise self.error(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"
            )
        logits: Tensor = self.fc(images.flatten(1))
        return logits


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_inference_goes_on_with_half_a_batch_where_memory_runs_out(scene, error, caplog):
    hungry = Hungry(32, error)
    logits = predict_logits(scene.teacher, scene.pool, COMPUTE, network=hungry)
    hungry.most = 1000
    torch.testing.assert_close(
        logits, predict_logits(scene.teacher, scene.pool, COMPUTE, network=hungry)
    )
    assert hungry.sizes[:7] == [64, 32, 32, 32, 32, 6, 6]
    assert (
        caplog.text.count("memory is not enough for 64 images at once: going on with half of them")
        == 1
    )


def test_inference_that_has_no_memory_for_half_a_batch_says_what_to_lower(scene):
    with pytest.raises(
        InputError, match=r"inference: .*CUDA out of memory.*compute\.inference_batch_size"
    ):
        predict_logits(scene.teacher, scene.pool, COMPUTE, network=Hungry(31))


def test_memory_of_the_machine_itself_is_told_alike(scene):
    def greedy(images: Tensor) -> tuple[Tensor, ...]:
        return (torch.empty(2**48),)

    batches = map_images(greedy, scene.pool, np.arange(10), Normalize([0.5], [0.5]), COMPUTE)
    with pytest.raises(
        InputError, match=r"inference: .*can't allocate memory.*compute\.inference_batch_size"
    ):
        list(batches)


def test_another_fault_of_a_network_stays_what_it_is(scene):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        predict_logits(
            scene.teacher, scene.pool, COMPUTE, network=nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
        )


def test_training_that_has_no_memory_says_what_to_lower_and_goes_on_from_its_checkpoint(
    scene, tmp_path
):
    train = teacher_of(scene)
    expected = train()
    keep_in(tmp_path, 0.0)
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
