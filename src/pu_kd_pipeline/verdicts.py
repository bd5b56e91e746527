"""What the numbers of an evaluation allow to conclude: differences, gains, and degenerate runs.

Everything here is a fact in `metrics.json`; `reporting.findings` turns facts into sentences.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.metrics import chance_agreement
from pu_kd_pipeline.learning.paired import PairedDifference, paired_difference
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.storage.manifest import manifest_digest
from pu_kd_pipeline.training.recipes import (
    TRAINING,
    differences_text,
    has_recipe,
    learned_manifest,
    recipe_differences,
)

TEACHER = "teacher"
STUDENT = "student"
WHOLE_POOL = "whole_pool_student"
# In what the student of the whole pool differs on purpose: its pool images, and a labeled share
# that is given, where the student has the same from its manifest.
OF_THE_WHOLE_POOL = ("n_pool", "distillation.labeled_share")


def difference_of(predictions: pd.DataFrame, first: str, second: str) -> PairedDifference:
    """Return the accuracy of one model minus that of another, on the same test images.

    Args:
        predictions: `label` and a column of predicted classes per model.
        first: name of a model.
        second: name of the other.
    """
    labels = predictions["label"]
    first_correct = predictions[first] == labels
    second_correct = predictions[second] == labels
    return paired_difference(first_correct.to_numpy(bool), second_correct.to_numpy(bool))


def differences_to_teacher(predictions: pd.DataFrame, students: Collection[str]) -> dict[str, Any]:
    """Return for each student its paired difference to the teacher, as JSON can hold it."""
    differences = {}
    for name in students:
        differences[name] = difference_of(predictions, name, TEACHER)._asdict()
    return differences


def gain_over(
    control: str,
    models: Mapping[str, Model],
    predictions: pd.DataFrame,
    manifests: Mapping[str, pd.DataFrame],
    allowed: Collection[str] = (),
) -> dict[str, Any]:
    """Return the gain of the student over a control, or the reason why there is none.

    Args:
        control: name of the control among the models.
        models: networks by name, `student` and the control among them.
        predictions: their classes of the test images.
        manifests: by name of a model, the manifest that is reported as the one it learned from.
        allowed: keys of the training in which student and control differ on purpose.

    Returns:
        `gain` with `gain_lower`, `gain_upper` and `gain_p_value`, all None where the two students
        cannot be compared; `gain_reason` is None otherwise. `is_control_verified`: whether the
        cards say that both students were trained in the same way.
    """
    student_card = models[STUDENT].card
    control_card = models[control].card
    reason = _reason_against_gain(control, models, manifests, allowed)
    facts: dict[str, Any] = {
        "gain": None,
        "gain_lower": None,
        "gain_upper": None,
        "gain_p_value": None,
        "gain_reason": reason,
        "is_control_verified": has_recipe(student_card) and has_recipe(control_card),
    }
    if reason is None:
        found = difference_of(predictions, STUDENT, control)
        facts["gain"] = found.difference
        facts["gain_lower"] = found.lower
        facts["gain_upper"] = found.upper
        facts["gain_p_value"] = found.p_value
    return facts


def _reason_against_gain(
    control: str,
    models: Mapping[str, Model],
    manifests: Mapping[str, pd.DataFrame],
    allowed: Collection[str],
) -> str | None:
    differences = recipe_differences(models[STUDENT].card, models[control].card, allowed)
    if differences:
        return f"student and control were trained differently: {differences_text(differences)}"
    for name, manifest in manifests.items():
        learned = learned_manifest(models[name].card)
        if learned is None or learned == manifest_digest(manifest):
            continue
        in_words = "control"
        if name == STUDENT:
            in_words = "student"
        return f"the {in_words} learned from another manifest than the one of this evaluation"
    return None


def checks_of_models(models: Mapping[str, Model], predictions: pd.DataFrame) -> dict[str, Any]:
    """Return what shows that an evaluation says little: chance levels, and missing test images."""
    labels = predictions["label"].to_numpy()
    teacher_classes = predictions[TEACHER].to_numpy()
    chance_accuracy = {}
    chance_of_agreement = {}
    for name in models:
        predicted = predictions[name].to_numpy()
        chance_accuracy[name] = chance_agreement(predicted, labels)
        if name != TEACHER:
            chance_of_agreement[name] = chance_agreement(predicted, teacher_classes)
    classes = models[TEACHER].card.classes
    return {
        "chance_accuracy": chance_accuracy,
        "chance_agreement": chance_of_agreement,
        "n_test_classes": len(np.unique(labels)),
        "classes_without_test_images": _names_without(classes, labels),
        "students_with_equal_weights": _equal_students(models),
    }


def _names_without(classes: tuple[str, ...], found: np.ndarray) -> list[str]:
    """Return the names of the classes that are not among the found numbers."""
    present = set(found.tolist())
    return [name for number, name in enumerate(classes) if number not in present]


def _equal_students(models: Mapping[str, Model]) -> list[str]:
    """Return the names of the models that are the same network as the student."""
    student = models[STUDENT]
    equal = []
    for name, model in models.items():
        if name != STUDENT and _have_equal_weights(model, student):
            equal.append(name)
    return equal


def _have_equal_weights(model: Model, other: Model) -> bool:
    state = model.network.state_dict()
    other_state = other.network.state_dict()
    if state.keys() != other_state.keys():
        return False
    return all(torch.equal(value, other_state[key]) for key, value in state.items())


def checks_of_selection(
    models: Mapping[str, Model],
    manifest: pd.DataFrame,
    random_manifest: pd.DataFrame,
    labeled_images: ImageStore,
) -> dict[str, Any]:
    """Return what shows that a selection decides little: its overlap with chance, and gaps."""
    is_labeled = manifest["origin"] == "labeled"
    selected = manifest[~is_labeled]
    is_random = random_manifest["origin"] == "pool"
    is_shared = selected["id"].isin(random_manifest["id"][is_random])

    classes = models[TEACHER].card.classes
    # The truth is not known: the classes are those that the teacher sees.
    teacher_classes = _column(selected, "teacher_class")
    index = labeled_images.index
    is_used = index["id"].isin(manifest["id"][is_labeled])
    labels = _column(index[is_used], "label")
    recipe = models[STUDENT].card.origin.get(TRAINING) or {}
    distillation = recipe.get("distillation", {})
    return {
        "batch_size": distillation.get("batch_size"),
        "n_shared_with_random": int(is_shared.sum()),
        "classes_without_selected_images": _names_without(classes, teacher_classes),
        "classes_without_labeled_images": _names_without(classes, labels),
    }


def _column(table: pd.DataFrame, name: str) -> np.ndarray:
    """Return the known values of a column that a table may lack, as integers."""
    if name not in table:
        return np.zeros(0, dtype=int)
    known = table[name].dropna()
    return known.to_numpy(dtype=int)
