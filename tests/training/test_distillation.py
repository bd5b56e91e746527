"""Which images, labels and probabilities a student is trained with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.training import distillation
from pu_kd_pipeline.training.batches import Batch, augmented_batches
from pu_kd_pipeline.training.distillation import distill, distill_from_pool, distill_original
from pu_kd_pipeline.training.objectives.base import Objective, ObjectiveContext
from pu_kd_pipeline.training.objectives.factory import make_objective
from tests.training.scene import ATTENTION, COMPUTE, N_CLASSES, are_equal, params_with, store_of


def ids_by_pixels(store: ImageStore) -> dict[bytes, str]:
    """Return the id of every image; the images of a scene all differ."""
    images = store.read(np.arange(len(store)))
    ids = store.index["id"]
    return {image.tobytes(): image_id for image_id, image in zip(ids, images, strict=True)}


def number_of(image_id: str) -> int:
    return int(image_id.removeprefix("i"))


@pytest.mark.parametrize(("order", "held_out_share"), [(0, 0.0), (1, 0.3), (2, 0.5)])
@pytest.mark.parametrize("resident_limit_gb", [1.0, 1e-9])
def test_image_label_and_probability_of_a_position_belong_together(
    digits, tmp_path, monkeypatch, order, held_out_share, resident_limit_gb
):
    labeled = store_of(tmp_path / "labeled", (range(30), "classes"), (range(30, 40), "ignore"))
    labeled_ids = ids_by_pixels(labeled)
    pool_ids = ids_by_pixels(digits.pool)
    origins = ["labeled"] * len(labeled_ids) + ["pool"] * len(pool_ids)
    id_of = labeled_ids | pool_ids
    assert len(id_of) == 40 + 140
    # An index that repeats: rows must be found by position or by id, never by the index.
    index = np.arange(180) % 7
    manifest = pd.DataFrame({"origin": origins, "id": list(id_of.values())}, index=index)
    manifest["sampling_probability"] = np.random.default_rng(order).uniform(size=180)
    manifest = manifest.sample(frac=0.8, random_state=order)
    probability_of = dict(zip(manifest["id"], manifest["sampling_probability"], strict=True))
    seen: dict[str, Any] = {}

    def batches(rows: ImageRows, *args: Any, **options: Any) -> Iterator[Batch]:
        seen["rows"] = rows
        seen["probabilities"] = options["probabilities"]
        return augmented_batches(rows, *args, **options)

    def objective(context: ObjectiveContext) -> Objective:
        seen["labels"] = context.labels
        return make_objective(context)

    monkeypatch.setattr(distillation, "augmented_batches", batches)
    monkeypatch.setattr(distillation, "make_objective", objective)
    compute = COMPUTE.model_copy(update={"resident_limit_gb": resident_limit_gb})
    params = params_with(held_out_share=held_out_share, seed=order, n_updates=1, compute=compute)
    weights = pd.DataFrame(np.ones((1, N_CLASSES)))
    distill(manifest, labeled, digits.pool, digits.teacher, weights, params, name="student")
    n = len(manifest) - int(held_out_share * len(manifest))
    assert len(seen["rows"]) == len(seen["labels"]) == len(seen["probabilities"]) == n
    assert seen["rows"].is_resident == (resident_limit_gb == 1.0)
    images = seen["rows"].batch(torch.arange(n)).numpy()
    found = [id_of[image.tobytes()] for image in images]
    assert len(set(found)) == n
    assert seen["labels"].dtype == torch.int64
    expected_labels = []
    for image_id in found:
        number = number_of(image_id)
        has_label = number < 30
        expected_labels.append(number % N_CLASSES if has_label else -1)
    assert seen["labels"].tolist() == expected_labels
    assert seen["probabilities"].tolist() == [probability_of[image_id] for image_id in found]


def test_original_images_have_labels_and_pool_images_have_none(digits):
    attention = ATTENTION | {"label_weight": 0.1}
    params = digits.params(objective="attention", attention=attention, n_updates=2)
    student, history = distill_original(digits.labeled, digits.teacher, params, "original")
    assert "label_loss" in history
    assert student.card.origin["distilled_by"] == "attention"
    of_pool = digits.manifest.query("origin == 'pool'")
    with pytest.raises(InputError, match="126 of the training images have no label"):
        distill_from_pool(of_pool, digits.pool, digits.teacher, params, "preferential")


def test_an_objective_that_needs_class_weights_is_refused_without_labeled_images(digits):
    params = digits.params(objective="robust_kd")
    with pytest.raises(InputError, match="original.objective: 'robust_kd' belongs to labeled"):
        distill_original(digits.labeled, digits.teacher, params, "original")


def test_images_are_shown_as_often_as_the_manifest_states(digits, monkeypatch):
    shown: list[Tensor] = []

    def batches(rows: ImageRows, *args: Any, **options: Any) -> Iterator[Batch]:
        for batch in augmented_batches(rows, *args, **options):
            shown.append(rows.batch(batch.rows))
            yield batch

    monkeypatch.setattr(distillation, "augmented_batches", batches)
    manifest = digits.manifest
    numbers = manifest["id"].map(number_of).to_numpy()
    classes = numbers % N_CLASSES
    # Class 1 twice as often as class 0, and the others never.
    probabilities = np.where(classes < 2, classes + 1.0, 0.0)
    weighted = manifest.assign(sampling_probability=probabilities)
    few = {"n_updates": 10, "record_every": 5, "held_out_share": 0.3}
    cached, _ = digits.distill(weighted, **few)
    id_of = ids_by_pixels(digits.labeled) | ids_by_pixels(digits.pool)
    shown_ids = [id_of[image.tobytes()] for image in torch.cat(shown).numpy()]
    shown_classes = [number_of(image_id) % N_CLASSES for image_id in shown_ids]
    assert set(shown_classes) == {0, 1}
    assert np.mean(shown_classes) == pytest.approx(2 / 3, abs=0.1)
    uncached, _ = digits.distill(weighted, teacher_cache="off", **few)
    assert are_equal(cached, uncached)
    evenly, _ = digits.distill(manifest, **few)
    assert not are_equal(cached, evenly)


def test_probabilities_for_some_images_only_are_refused(digits):
    manifest = digits.manifest.assign(sampling_probability=1.0)
    manifest.iloc[:9, manifest.columns.get_loc("sampling_probability")] = np.nan
    with pytest.raises(InputError, match="some images have no sampling_probability"):
        digits.distill(manifest, n_updates=1)
