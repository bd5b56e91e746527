"""The cached teacher says what the teacher says, of the views that it is said to know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams, OptimizerParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.training.batches import augmented_batches
from pu_kd_pipeline.training.teacher_cache import TeacherOutputs

COMPUTE = ComputeParams(
    device="cpu", precision="float32", n_threads=1, resident_limit_gb=1.0, inference_batch_size=64
)


class Images:
    """Random images, held as `ImageRows` holds them."""

    device = torch.device("cpu")
    is_resident = True

    def __init__(self, n: int) -> None:
        self.pixels = torch.randint(
            0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: torch.Tensor) -> torch.Tensor:
        return self.pixels[rows]


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.n_asked = build_network("digits_cnn", 10, 1, {"width": 4}).eval(), 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.n_asked += len(images)
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
        "held_out_share": 0.0,
        "teacher_cache": "exact",
        "cached_views": 4,
        "keep": "last",
        "optimizer": optimizer,
        "augmentation": AugmentationParams(padding_px=2, horizontal_flip=True),
        "compute": COMPUTE,
    }
    return DistillationParams.model_validate(given | changes)


def outputs_of(
    params: DistillationParams, n: int = 21
) -> tuple[TeacherOutputs, Counting, list[Any]]:
    images, teacher, normalize = Images(n), Counting(), Normalize([0.5], [0.25])
    outputs = TeacherOutputs(images, teacher, normalize, params)  # type: ignore[arg-type]
    batches = augmented_batches(
        images,  # type: ignore[arg-type]
        normalize,
        params.augmentation,
        params.batch_size,
        params.seed,
        outputs.draw,
    )
    return outputs, teacher, [next(batches) for _ in range(40)]


@pytest.mark.parametrize("cache", ["exact", "views"])
@pytest.mark.parametrize(
    "augmentation",
    [{"padding_px": 2, "horizontal_flip": True}, {"padding_px": 0, "horizontal_flip": False}],
)
def test_what_is_remembered_is_what_the_teacher_says(cache, augmentation):
    params = params_with(teacher_cache=cache, augmentation=AugmentationParams(**augmentation))
    outputs, teacher, batches = outputs_of(params)
    assert outputs.is_cached
    asked = teacher.n_asked
    for batch in batches:
        remembered = outputs(batch)
        assert torch.equal(
            remembered, teacher.network(batch.images)
        )  # to the last bit, for the batches are alike
    assert teacher.n_asked == asked


def test_exact_shows_the_views_that_off_shows():
    _, _, fresh = outputs_of(params_with(teacher_cache="off"))
    outputs, teacher, cached = outputs_of(params_with())
    assert all(
        torch.equal(a.images, b.images) and torch.equal(a.rows, b.rows)
        for a, b in zip(fresh, cached, strict=True)
    )
    assert outputs.is_cached
    assert teacher.n_asked == -(-21 * 50 // 16) * 16  # 25 crops and their mirror images of each


def test_views_are_a_few_of_each_image_and_all_are_shown():
    outputs, teacher, batches = outputs_of(params_with(teacher_cache="views"))
    assert teacher.n_asked == -(-21 * 4 // 16) * 16
    shown = {
        (row, view)
        for batch in batches
        for row, view in zip(batch.rows.tolist(), batch.views.tolist(), strict=True)
    }
    per_image = np.bincount([row for row, _ in shown])
    assert per_image.max() <= 4
    assert per_image.sum() > 21 * 3
    assert len({view for _, view in shown}) > 20  # not the same four for all
    assert outputs.is_cached


def test_nothing_is_remembered_where_it_would_be_more_work_or_is_not_wanted():
    fewer = {
        "n_updates": 40
    }  # which show 640 views: exact would ask for 1,050, 31 views of each for 651
    for params in (
        params_with(**fewer),
        params_with(teacher_cache="off"),
        params_with(teacher_cache="views", cached_views=31, **fewer),
    ):
        outputs, teacher, batches = outputs_of(params)
        assert not outputs.is_cached
        assert teacher.n_asked == 0
        assert torch.equal(outputs(batches[0]), teacher.network(batches[0].images))


def test_all_views_are_taken_where_there_are_no_more_than_asked_for():
    _, teacher, _ = outputs_of(params_with(teacher_cache="views", cached_views=50))
    assert teacher.n_asked == -(-21 * 50 // 16) * 16


def test_what_does_not_fit_is_not_remembered_or_refused():
    tiny = COMPUTE.model_copy(update={"resident_limit_gb": 1e-6})
    outputs, _, _ = outputs_of(params_with(compute=tiny))
    assert not outputs.is_cached
    with pytest.raises(InputError, match="lower cached_views, or set teacher_cache to off"):
        outputs_of(params_with(compute=tiny, teacher_cache="views"))
