"""Which images, labels and probabilities a student is trained with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
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
from tests.training.scene import (
    ATTENTION,
    COMPUTE,
    N_CLASSES,
    Scene,
    are_equal,
    params_with,
    store_of,
)


def ids_by_pixels(store: ImageStore) -> dict[bytes, str]:
    """Return the id of every image; the images of a scene all differ."""
    rows = np.arange(len(store))
    images = store.read(rows)
    ids = {}
    for image_id, image in zip(store.index["id"], images, strict=True):
        pixels = image.tobytes()
        ids[pixels] = image_id
    return ids


def number_of(image_id: str) -> int:
    digits = image_id.removeprefix("i")
    return int(digits)


def shuffled_manifest(labeled: ImageStore, pool: ImageStore, seed: int) -> pd.DataFrame:
    """Return most of the images in random order, each with its own probability."""
    parts = []
    for origin, store in (("labeled", labeled), ("pool", pool)):
        ids = store.index[["id"]]
        part = ids.assign(origin=origin)
        parts.append(part)
    manifest = pd.concat(parts)

    n = len(manifest)
    # An index that repeats: rows must be found by position or by id, never by the index.
    manifest.index = np.arange(n) % 7
    rng = np.random.default_rng(seed)
    manifest["sampling_probability"] = rng.uniform(size=n)

    return manifest.sample(frac=0.8, random_state=seed)


@dataclass
class Seen:
    """What the training was given: images, labels and probabilities by position."""

    rows: Any = None
    labels: Any = None
    probabilities: Any = None


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Return a record that the next training fills."""
    found = Seen()

    def batches(rows: ImageRows, *args: Any, **options: Any) -> Iterator[Batch]:
        found.rows = rows
        found.probabilities = options["probabilities"]
        return augmented_batches(rows, *args, **options)

    def objective(context: ObjectiveContext) -> Objective:
        found.labels = context.labels
        return make_objective(context)

    monkeypatch.setattr(distillation, "augmented_batches", batches)
    monkeypatch.setattr(distillation, "make_objective", objective)
    return found


EQUAL_WEIGHTS = pd.DataFrame(np.ones((1, N_CLASSES)))


@pytest.fixture
def partly_labeled(tmp_path: Path) -> ImageStore:
    """A store of 40 images, of which the first 30 have labels."""
    with_labels = (range(30), "classes")
    without_labels = (range(30, 40), "ignore")
    return store_of(tmp_path / "labeled", with_labels, without_labels)


def ids_of_rows(rows: ImageRows, labeled: ImageStore, pool: ImageStore) -> list[str]:
    """Return the id of the image at each position."""
    id_of = ids_by_pixels(labeled) | ids_by_pixels(pool)
    # There are fewer if two images have the same pixels.
    assert len(id_of) == len(labeled) + len(pool)

    positions = torch.arange(len(rows))
    images = rows.batch(positions).numpy()
    ids = []
    for image in images:
        pixels = image.tobytes()
        ids.append(id_of[pixels])
    return ids


def expected_label(image_id: str) -> int:
    """Return the class of an image, or -1: only the first 30 have labels that may be read."""
    number = number_of(image_id)
    if number >= 30:
        return -1
    return number % N_CLASSES


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("resident_limit_gb", [1.0, 1e-9])
def test_image_label_and_probability_of_a_position_belong_together(
    digits, partly_labeled, seen, order, resident_limit_gb
):
    # The arrays are made in different places: a student of shuffled labels would still train.
    teacher = digits.teacher
    pool = digits.pool
    manifest = shuffled_manifest(partly_labeled, pool, order)
    compute = COMPUTE.model_copy(update={"resident_limit_gb": resident_limit_gb})
    params = params_with(seed=order, n_updates=1, compute=compute)
    distill(manifest, partly_labeled, pool, teacher, EQUAL_WEIGHTS, params, name="student")

    is_resident = resident_limit_gb == 1.0
    assert seen.rows.is_resident == is_resident
    assert seen.labels.dtype == torch.int64

    # Recognized by their pixels, since a row says nothing about its image.
    ids = ids_of_rows(seen.rows, partly_labeled, pool)
    n_images = len(manifest)
    assert len(ids) == n_images
    assert len(set(ids)) == len(ids)

    probability_of = manifest.set_index("id")["sampling_probability"]
    for image_id, label, probability in zip(ids, seen.labels, seen.probabilities, strict=True):
        assert label == expected_label(image_id)
        assert probability == probability_of[image_id]


def test_original_images_have_labels_and_pool_images_have_none(digits):
    attention = ATTENTION | {"label_weight": 0.1}
    params = digits.params(objective="attention", attention=attention, n_updates=2)
    student, history = distill_original(digits.labeled, digits.teacher, params, "original")

    assert "label_loss" in history
    origin = student.card.origin
    assert origin["distilled_by"] == "attention"

    of_pool = digits.manifest.query("origin == 'pool'")
    with pytest.raises(InputError, match="140 of the training images have no label"):
        distill_from_pool(of_pool, digits.pool, digits.teacher, params, "preferential")


def test_an_objective_that_needs_class_weights_is_refused_without_labeled_images(digits):
    params = digits.params(objective="robust_kd")
    message = "original.objective: 'robust_kd' belongs to labeled"
    with pytest.raises(InputError, match=message):
        distill_original(digits.labeled, digits.teacher, params, "original")


FEW_UPDATES = {"n_updates": 10, "record_every": 5}


@pytest.fixture
def weighted_manifest(digits: Scene) -> pd.DataFrame:
    """Return a manifest that shows class 1 twice as often as class 0, and the others never."""
    manifest = digits.manifest
    numbers = manifest["id"].map(number_of).to_numpy()
    classes = numbers % N_CLASSES
    probabilities = np.where(classes < 2, classes + 1.0, 0.0)
    return manifest.assign(sampling_probability=probabilities)


def test_images_are_shown_as_often_as_the_manifest_states(digits, weighted_manifest, monkeypatch):
    shown: list[Tensor] = []

    def batches(rows: ImageRows, *args: Any, **options: Any) -> Iterator[Batch]:
        for batch in augmented_batches(rows, *args, **options):
            images = rows.batch(batch.rows)
            shown.append(images)
            yield batch

    monkeypatch.setattr(distillation, "augmented_batches", batches)
    digits.distill(weighted_manifest, **FEW_UPDATES)

    id_of = ids_by_pixels(digits.labeled) | ids_by_pixels(digits.pool)
    images = torch.cat(shown).numpy()
    classes = []
    for image in images:
        pixels = image.tobytes()
        image_id = id_of[pixels]
        class_index = number_of(image_id) % N_CLASSES
        classes.append(class_index)
    assert set(classes) == {0, 1}
    # About 0.026 is one standard deviation of the 320 draws.
    assert np.mean(classes) == pytest.approx(2 / 3, abs=0.1)


def test_the_teacher_cache_does_not_change_the_draws_of_a_manifest(digits, weighted_manifest):
    cached, _ = digits.distill(weighted_manifest, **FEW_UPDATES)
    without_cache = {**FEW_UPDATES, "teacher_cache": "off"}
    uncached, _ = digits.distill(weighted_manifest, **without_cache)
    assert are_equal(cached, uncached)

    # Equal students would prove nothing if the probabilities had no effect.
    evenly, _ = digits.distill(digits.manifest, **FEW_UPDATES)
    assert not are_equal(cached, evenly)


def test_probabilities_for_some_images_only_are_refused(digits):
    manifest = digits.manifest
    n_images = len(manifest)
    probabilities = np.ones(n_images)
    probabilities[:9] = np.nan
    incomplete = manifest.assign(sampling_probability=probabilities)

    with pytest.raises(InputError, match="some images have no sampling_probability"):
        digits.distill(incomplete, n_updates=1)
