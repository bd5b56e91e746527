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
    ids = {}
    for image_id, image in zip(store.index["id"], images, strict=True):
        ids[image.tobytes()] = image_id
    return ids


def number_of(image_id: str) -> int:
    return int(image_id.removeprefix("i"))


def shuffled_manifest(labeled: ImageStore, pool: ImageStore, seed: int) -> pd.DataFrame:
    """Return most of the images in random order, each with its own probability."""
    parts = []
    for origin, store in (("labeled", labeled), ("pool", pool)):
        rows = store.index[["id"]].assign(origin=origin)
        parts.append(rows)
    manifest = pd.concat(parts)
    n = len(manifest)
    # An index that repeats: rows must be found by position or by id, never by the index.
    manifest.index = np.arange(n) % 7
    manifest["sampling_probability"] = np.random.default_rng(seed).uniform(size=n)
    return manifest.sample(frac=0.8, random_state=seed)


@pytest.mark.parametrize(("order", "held_out_share"), [(0, 0.0), (1, 0.3), (2, 0.5)])
@pytest.mark.parametrize("resident_limit_gb", [1.0, 1e-9])
def test_image_label_and_probability_of_a_position_belong_together(
    digits, tmp_path, monkeypatch, order, held_out_share, resident_limit_gb
):
    labeled = store_of(tmp_path / "labeled", (range(30), "classes"), (range(30, 40), "ignore"))
    id_of = ids_by_pixels(labeled) | ids_by_pixels(digits.pool)

    assert len(id_of) == 40 + 140

    manifest = shuffled_manifest(labeled, digits.pool, order)
    probability_of = manifest.set_index("id")["sampling_probability"]
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
    rows = seen["rows"]
    labels = seen["labels"]
    probabilities = seen["probabilities"]

    assert len(rows) == len(labels) == len(probabilities) == n
    assert rows.is_resident == (resident_limit_gb == 1.0)
    assert labels.dtype == torch.int64

    images = rows.batch(torch.arange(n)).numpy()
    ids = [id_of[image.tobytes()] for image in images]

    assert len(set(ids)) == n
    for image_id, label, probability in zip(ids, labels, probabilities, strict=True):
        number = number_of(image_id)
        # Only the first 30 images have labels that training may read.
        expected_label = -1
        if number < 30:
            expected_label = number % N_CLASSES
        assert label == expected_label
        assert probability == probability_of[image_id]


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
    shown_classes = []
    for image in torch.cat(shown).numpy():
        image_id = id_of[image.tobytes()]
        shown_classes.append(number_of(image_id) % N_CLASSES)

    assert set(shown_classes) == {0, 1}
    assert np.mean(shown_classes) == pytest.approx(2 / 3, abs=0.1)

    # The same draws with and without the cache, and others without probabilities.
    uncached, _ = digits.distill(weighted, teacher_cache="off", **few)

    assert are_equal(cached, uncached)

    evenly, _ = digits.distill(manifest, **few)

    assert not are_equal(cached, evenly)


def test_probabilities_for_some_images_only_are_refused(digits):
    probabilities = np.ones(len(digits.manifest))
    probabilities[:9] = np.nan
    manifest = digits.manifest.assign(sampling_probability=probabilities)

    with pytest.raises(InputError, match="some images have no sampling_probability"):
        digits.distill(manifest, n_updates=1)
