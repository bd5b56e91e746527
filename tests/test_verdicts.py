"""What the numbers of an evaluation allow to conclude."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pu_kd_pipeline.learning.paired import paired_difference
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.teacher import InputSpec
from pu_kd_pipeline.storage.manifest import manifest_digest
from pu_kd_pipeline.verdicts import (
    checks_of_models,
    checks_of_selection,
    differences_to_teacher,
    gain_over,
)

CONTROL = "random_student"
CLASSES = ("zero", "one", "two")


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(4, 3)


def model(seed: int = 0, **recipe: Any) -> Model:
    """Return a model with weights of its own; without a recipe, its card says nothing of it."""
    card = ModelCard(
        architecture="digits_cnn",
        classes=CLASSES,
        input=InputSpec(size_px=2, channels=1, mean=(0.5,), std=(0.5,)),
        origin={"training": recipe} if recipe else {},
    )
    return Model(network(seed), card)


def manifest_of(ids: str, teacher_classes: list[int] | None = None) -> pd.DataFrame:
    """Return a manifest of two labeled images and of pool images with ids of one letter."""
    table = pd.DataFrame({"id": ["L0", "L1", *ids]})
    table["origin"] = ["labeled"] * 2 + ["pool"] * len(ids)
    if teacher_classes is not None:
        table["teacher_class"] = pd.array([None, None, *teacher_classes], dtype="Int32")
    return table


def predictions_of(**predicted: list[int]) -> pd.DataFrame:
    return pd.DataFrame(predicted)


PREDICTIONS = predictions_of(
    label=[0, 1, 2, 0, 1, 2, 0, 1] * 10,
    teacher=[0, 1, 2, 0, 1, 2, 0, 1] * 10,
    student=[0, 1, 2, 0, 1, 2, 0, 0] * 10,
    random_student=[0, 1, 2, 0, 1, 1, 1, 1] * 10,
)


def students(student: Model, control: Model) -> dict[str, Model]:
    return {"teacher": model(9), "student": student, CONTROL: control}


def test_the_gain_is_the_paired_difference_of_the_two_students() -> None:
    models = students(model(1, n_pool=3), model(2, n_pool=3))
    found = gain_over(CONTROL, models, PREDICTIONS, {})
    labels = PREDICTIONS["label"]
    expected = paired_difference(
        (PREDICTIONS["student"] == labels).to_numpy(),
        (PREDICTIONS[CONTROL] == labels).to_numpy(),
    )
    assert found["gain"] == pytest.approx(1 / 8)
    values = (found["gain"], found["gain_lower"], found["gain_upper"], found["gain_p_value"])
    assert values == expected
    assert found["gain_reason"] is None
    assert found["is_control_verified"]


def test_a_student_that_was_trained_differently_has_a_reason_instead_of_a_gain() -> None:
    recipe = {"distillation": {"optimizer": {"learning_rate": 0.001}}}
    other = {"distillation": {"optimizer": {"learning_rate": 0.1}}}
    models = students(model(1, **recipe), model(2, **other))
    found = gain_over(CONTROL, models, PREDICTIONS, {})
    for key in ("gain", "gain_lower", "gain_upper", "gain_p_value"):
        assert found[key] is None
    assert found["gain_reason"] == (
        "student and control were trained differently: optimizer.learning_rate 0.001 and 0.1"
    )
    allowed = ("distillation.optimizer",)
    assert gain_over(CONTROL, models, PREDICTIONS, {}, allowed)["gain_reason"] is None


@pytest.mark.parametrize(("name", "word"), [("student", "student"), (CONTROL, "control")])
def test_a_student_of_another_manifest_has_no_gain(name: str, word: str) -> None:
    manifests = {"student": manifest_of("abc"), CONTROL: manifest_of("cde")}
    recipes = {key: {"manifest": manifest_digest(table)} for key, table in manifests.items()}
    models = students(model(1, **recipes["student"]), model(2, **recipes[CONTROL]))
    assert gain_over(CONTROL, models, PREDICTIONS, manifests)["gain_reason"] is None

    changed = {**manifests, name: manifest_of("xyz")}
    reason = gain_over(CONTROL, models, PREDICTIONS, changed)["gain_reason"]
    assert reason == f"the {word} learned from another manifest than the one of this evaluation"


def test_students_of_an_earlier_version_have_a_gain_that_is_not_verified() -> None:
    models = students(model(1), model(2))
    found = gain_over(CONTROL, models, PREDICTIONS, {"student": manifest_of("abc")})
    assert found["gain"] == pytest.approx(1 / 8)
    assert not found["is_control_verified"]


def test_each_student_is_compared_with_the_teacher() -> None:
    found = differences_to_teacher(PREDICTIONS, ("student", CONTROL))
    assert found["student"]["difference"] == pytest.approx(-1 / 8)
    assert found[CONTROL]["difference"] == pytest.approx(-1 / 4)
    assert found["student"]["upper"] < 0
    # As JSON can hold it.
    assert set(found["student"]) == {"difference", "lower", "upper", "p_value"}


def test_chance_is_what_guessing_with_the_same_frequencies_reaches() -> None:
    constant = predictions_of(
        label=[0, 0, 0, 1],
        teacher=[0, 0, 1, 1],
        student=[0, 0, 0, 0],
        random_student=[0, 1, 0, 1],
    )
    found = checks_of_models(students(model(1), model(2)), constant)
    # The student is right on three of four, as whoever always says 0.
    assert found["chance_accuracy"]["student"] == 0.75
    assert found["chance_accuracy"][CONTROL] == 0.5
    assert found["chance_agreement"] == {"student": 0.5, CONTROL: 0.5}
    assert found["n_test_classes"] == 2
    assert found["classes_without_test_images"] == ["two"]


def test_students_with_equal_weights_are_named() -> None:
    models = students(model(1), model(1))
    assert checks_of_models(models, PREDICTIONS)["students_with_equal_weights"] == [CONTROL]
    models = students(model(1), model(2))
    assert checks_of_models(models, PREDICTIONS)["students_with_equal_weights"] == []
    # A student of another architecture has other entries.
    models["student"] = Model(nn.Sequential(nn.Linear(4, 3)), models["student"].card)
    assert checks_of_models(models, PREDICTIONS)["students_with_equal_weights"] == []


def labeled_images(labels: list[int | None]) -> Any:
    ids = [f"L{number}" for number in range(len(labels))]
    index = pd.DataFrame({"id": ids, "label": pd.array(labels, dtype="Int32")})
    return SimpleNamespace(index=index)


def test_a_selection_is_compared_with_chance_and_with_the_classes() -> None:
    models = students(model(1, distillation={"batch_size": 64}), model(2))
    manifest = manifest_of("abcd", teacher_classes=[0, 0, 2, 0])
    found = checks_of_selection(models, manifest, manifest_of("cdef"), labeled_images([1, 1]))
    assert found == {
        "batch_size": 64,
        "n_shared_with_random": 2,
        "classes_without_selected_images": ["one"],
        "classes_without_labeled_images": ["zero", "two"],
    }


def test_labeled_images_that_are_not_used_do_not_count() -> None:
    manifest = manifest_of("a", teacher_classes=[0])
    # The third image was excluded from the manifest, as a copy of a test image.
    images = labeled_images([0, 1, 2])
    found = checks_of_selection(students(model(1), model(2)), manifest, manifest, images)
    assert found["classes_without_labeled_images"] == ["two"]


def test_an_empty_selection_and_unknown_classes_can_be_checked() -> None:
    manifest = manifest_of("")
    images = labeled_images([None, None])
    found = checks_of_selection(students(model(1), model(2)), manifest, manifest, images)
    assert found["n_shared_with_random"] == 0
    assert found["batch_size"] is None
    assert found["classes_without_selected_images"] == list(CLASSES)
    assert np.all(found["classes_without_labeled_images"] == list(CLASSES))
