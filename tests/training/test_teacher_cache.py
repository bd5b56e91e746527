"""The teacher cache gives the logits of the teacher, for the views that it was filled with."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.mixing import Mixing
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams, OptimizerParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.training.batches import Batch, augmented_batches
from pu_kd_pipeline.training.shared_logits import SharedTeacherLogits
from pu_kd_pipeline.training.teacher_cache import KnownImages, TeacherOutputs

COMPUTE = ComputeParams(
    device="cpu", precision="float32", n_threads=1, resident_limit_gb=1.0, inference_batch_size=64
)


class Images:
    """Random images with the interface of `ImageRows`."""

    device = torch.device("cpu")
    is_resident = True

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (n, 1, 8, 8)
        self.pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: torch.Tensor) -> torch.Tensor:
        return self.pixels[rows]


class Counting(nn.Module):
    """A teacher that counts the images it was given."""

    def __init__(self) -> None:
        super().__init__()
        network = build_network("digits_cnn", 10, 1, {"width": 4})
        self.network = network.eval()
        self.n_images = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.n_images += len(images)
        return self.network(images)


def params_with(**changes: Any) -> DistillationParams:
    optimizer = OptimizerParams(
        algorithm="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0, schedule="constant"
    )
    given = {
        "seed": 0,
        "student_architecture": "digits_cnn",
        "student_options": {},
        "objective": "kd",
        "temperature": 1.0,
        "n_updates": 1000,
        "record_every": 10,
        "batch_size": 16,
        "teacher_cache": "exact",
        "cached_views": 4,
        "keep": "last",
        "optimizer": optimizer,
        "augmentation": AugmentationParams(padding_px=2, horizontal_flip=True),
        "compute": COMPUTE,
    }
    return DistillationParams.model_validate(given | changes)


def record_outputs(
    params: DistillationParams, n: int = 21, mixing: Mixing | None = None
) -> tuple[TeacherOutputs, Counting, list[Any]]:
    """Return the cache of n images, its teacher, and 40 batches of training."""
    images = Images(n)
    teacher = Counting()
    normalize = Normalize([0.5], [0.25])
    outputs = TeacherOutputs(images, teacher, normalize, params)  # type: ignore[arg-type]
    batches = augmented_batches(
        images,  # type: ignore[arg-type]
        normalize,
        params.augmentation,
        params.batch_size,
        params.seed,
        outputs.draw,
        mixing=mixing,
    )
    return outputs, teacher, list(itertools.islice(batches, 40))


@pytest.mark.parametrize("cache", ["exact", "views"])
@pytest.mark.parametrize(
    "augmentation",
    [{"padding_px": 2, "horizontal_flip": True}, {"padding_px": 0, "horizontal_flip": False}],
)
def test_cached_logits_are_those_of_the_teacher(cache, augmentation):
    params = params_with(teacher_cache=cache, augmentation=AugmentationParams(**augmentation))
    outputs, teacher, batches = record_outputs(params)
    n_to_fill = teacher.n_images
    for batch in batches:
        cached = outputs(batch)
        expected = teacher.network(batch.images)
        # To the last bit, because the cache was filled with batches of the same size.
        assert torch.equal(cached, expected)
    assert teacher.n_images == n_to_fill


def recorded_with(
    shared: SharedTeacherLogits, order: list[int], **changes: Any
) -> tuple[TeacherOutputs, Counting]:
    """Return the outputs of a training on some of 21 images, and the teacher that filled them."""
    images = Images(21)
    images.pixels = images.pixels[order]
    torch.manual_seed(0)
    teacher = Counting()
    known = KnownImages(shared, "a teacher", [f"image {number}" for number in order])
    normalize = Normalize([0.5], [0.5], images.device)
    outputs = TeacherOutputs(images, teacher, normalize, params_with(**changes), known_images=known)
    return outputs, teacher


def logits_of(outputs: TeacherOutputs, row: int) -> torch.Tensor:
    views = torch.arange(50)  # 25 shifts, mirrored or not
    batch = Batch(torch.zeros(50, 1, 8, 8), torch.full((50,), row), views)
    return outputs(batch)


def test_trainings_share_the_logits_of_images_to_the_last_bit():
    shared = SharedTeacherLogits()
    recorded_with(shared, list(range(10)))

    # Other images and another order.
    order = [3, 15, 0, 9, 20]
    outputs, teacher = recorded_with(shared, order)
    alone, _ = recorded_with(SharedTeacherLogits(), order)
    for row in range(len(order)):
        assert torch.equal(logits_of(outputs, row), logits_of(alone, row))
    # Of the two new images alone: 100 views are 7 batches of 16.
    assert teacher.n_images == 112

    _, teacher = recorded_with(shared, [20, 15, 20])
    assert teacher.n_images == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 8},
        {"augmentation": AugmentationParams(padding_px=1, horizontal_flip=False)},
        {"compute": COMPUTE.model_copy(update={"precision": "bf16"})},
        {"teacher_cache": "views"},
    ],
)
def test_logits_of_another_setting_are_not_shared(changes):
    shared = SharedTeacherLogits()
    order = list(range(10))
    recorded_with(shared, order)
    _, teacher = recorded_with(shared, order, **changes)
    assert teacher.n_images > 0


def test_the_limit_is_that_of_all_images_whoever_computed_their_logits():
    shared = SharedTeacherLogits()
    # 10 images have 20 kB of logits.
    small = COMPUTE.model_copy(update={"resident_limit_gb": 30e-6})
    recorded_with(shared, list(range(10)), compute=small)
    outputs, teacher = recorded_with(shared, list(range(20)), compute=small)
    n_to_fill = teacher.n_images
    logits_of(outputs, 0)
    # The teacher runs at every step, as without the logits of the others.
    assert teacher.n_images > n_to_fill


def test_logits_beyond_the_limit_are_computed_again():
    shared = SharedTeacherLogits()
    # 10 images have 20 kB of logits.
    compute = COMPUTE.model_copy(update={"resident_limit_gb": 30e-6})
    recorded_with(shared, list(range(10)), compute=compute)
    outputs, teacher = recorded_with(shared, list(range(10, 20)), compute=compute)
    assert teacher.n_images > 0
    _, teacher = recorded_with(shared, list(range(10)), compute=compute)
    assert teacher.n_images == 0
    again, teacher = recorded_with(shared, list(range(10, 20)), compute=compute)
    assert teacher.n_images > 0
    assert torch.equal(logits_of(again, 3), logits_of(outputs, 3))


def n_in_full_batches(n_views_each: int) -> int:
    """Return the number of images that fill a cache of 21 images: whole batches of 16."""
    n_views = 21 * n_views_each
    n_batches = math.ceil(n_views / 16)
    return n_batches * 16


def test_exact_shows_the_views_that_off_shows():
    without_cache = params_with(teacher_cache="off")
    _, _, fresh = record_outputs(without_cache)
    exact = params_with(teacher_cache="exact")
    _, teacher, cached = record_outputs(exact)

    for one, other in zip(fresh, cached, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.rows, other.rows)
    # 25 crops of each image, and their mirror images.
    assert teacher.n_images == n_in_full_batches(50)


def test_views_are_a_few_of_each_image_and_all_are_shown():
    params = params_with(teacher_cache="views")
    _, teacher, batches = record_outputs(params)
    assert teacher.n_images == n_in_full_batches(4)

    shown = set()
    for batch in batches:
        rows = batch.rows.tolist()
        views = batch.views.tolist()
        shown.update(zip(rows, views, strict=True))
    rows_of_views = [row for row, _ in shown]
    per_image = np.bincount(rows_of_views)
    assert per_image.max() <= 4
    assert per_image.sum() > 21 * 3
    # Each image has its own four.
    different_views = {view for _, view in shown}
    assert len(different_views) > 20


# 40 updates show 640 views: `exact` would compute 1,050, and 31 views of each image 651.
FEW = {"n_updates": 40}


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher_cache": "off"},
        {"teacher_cache": "exact", **FEW},
        {"teacher_cache": "views", "cached_views": 31, **FEW},
    ],
)
def test_nothing_is_cached_if_it_is_off_or_more_work(changes):
    params = params_with(**changes)
    outputs, teacher, batches = record_outputs(params)
    assert teacher.n_images == 0

    first = batches[0]
    expected = teacher.network(first.images)
    assert torch.equal(outputs(first), expected)


def test_all_views_are_cached_if_there_are_no_more_than_cached_views():
    # 25 crops of each image, and their mirror images.
    params = params_with(teacher_cache="views", cached_views=50)
    _, teacher, _ = record_outputs(params)
    assert teacher.n_images == n_in_full_batches(50)


def test_logits_that_do_not_fit_switch_exact_off_and_are_refused_for_views():
    tiny = COMPUTE.model_copy(update={"resident_limit_gb": 1e-6})
    exact = params_with(compute=tiny)
    outputs, teacher, batches = record_outputs(exact)
    n_to_find_out = teacher.n_images
    outputs(batches[0])
    # Every batch runs the teacher again.
    assert teacher.n_images > n_to_find_out

    # Without its cache, `views` would train on other views than those that were asked for.
    views = params_with(compute=tiny, teacher_cache="views")
    with pytest.raises(InputError, match="lower cached_views, or set teacher_cache to off"):
        record_outputs(views)


@pytest.mark.parametrize("cache", ["exact", "views"])
def test_mixed_batches_run_the_teacher_and_the_others_read_the_cache(cache):
    params = params_with(teacher_cache=cache, mixing="cutmix", mixing_share=0.5)
    mixing = Mixing("cutmix", alpha=1.0, share=0.5, seed=0)
    outputs, teacher, batches = record_outputs(params, mixing=mixing)
    n_asked = teacher.n_images
    assert n_asked > 0
    for batch in batches:
        expected = teacher.network(batch.images)
        assert torch.equal(outputs(batch), expected)
        if batch.is_mixed:
            n_asked += 16
        assert teacher.n_images == n_asked
    assert outputs.note == (
        "mixed images cannot be cached, so that the teacher runs for 50% of the batches, which "
        "are mixed"
    )


@pytest.mark.parametrize("cache", ["exact", "views"])
def test_nothing_is_cached_if_every_batch_is_mixed(cache, caplog):
    params = params_with(teacher_cache=cache, mixing="mixup")
    with caplog.at_level("INFO"):
        outputs, teacher, _ = record_outputs(params)
    assert teacher.n_images == 0
    assert outputs.note is not None
    assert outputs.note in caplog.text
    without_cache = params_with(teacher_cache="off", mixing="mixup")
    assert record_outputs(without_cache)[0].note is None


PHOTOS = AugmentationParams(
    padding_px=0, horizontal_flip=True, resized_crop_scale=(0.3, 1.0), brightness=0.4
)


def test_a_few_continuous_views_are_cached_and_shown_again():
    params = params_with(teacher_cache="views", augmentation=PHOTOS)
    outputs, teacher, batches = record_outputs(params)
    assert outputs.note is None
    assert teacher.n_images == n_in_full_batches(4)
    shown = set()
    for batch in batches:
        assert torch.equal(outputs(batch), teacher.network(batch.images))
        rows = batch.rows.tolist()
        shown.update(zip(rows, batch.views.tolist(), strict=True))
    # Four of each of 21 images; 640 draws miss hardly any.
    assert 80 <= len(shown) <= 4 * 21
    assert teacher.n_images == n_in_full_batches(4)


def test_continuous_views_cannot_all_be_cached_and_exact_says_so(caplog):
    params = params_with(teacher_cache="exact", augmentation=PHOTOS)
    with caplog.at_level("INFO"):
        outputs, teacher, batches = record_outputs(params)
    assert outputs.note is not None
    assert outputs.note in caplog.text
    assert "exact cannot hold views that are continuous" in outputs.note
    assert teacher.n_images == 0

    # The same batches as without a cache.
    without_cache = params_with(teacher_cache="off", augmentation=PHOTOS)
    _, _, fresh = record_outputs(without_cache)
    for one, other in zip(fresh, batches, strict=True):
        assert torch.equal(one.images, other.images)
    assert torch.equal(outputs(batches[0]), teacher.network(batches[0].images))
