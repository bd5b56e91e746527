"""What a card says of a training, and in what two trainings differ."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch

from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.model import load_model, save_model
from pu_kd_pipeline.params.teacher import InputSpec
from pu_kd_pipeline.storage.manifest import manifest_digest
from pu_kd_pipeline.training.recipes import (
    TRAINING,
    differences_text,
    has_recipe,
    learned_manifest,
    recipe_differences,
    training_recipe,
)
from tests.training.scene import COMPUTE, OPTIMIZER, PLAIN, Scene, params_with

INPUT = InputSpec(size_px=8, channels=1, mean=(0.4,), std=(0.25,))
WEIGHTS = {"epsilon": 0.1, "clip": [0.1, 10.0]}


def manifest_of(pool_ids: str, labeled_ids: str = "xy") -> pd.DataFrame:
    """Return a manifest of images with ids of one letter."""
    ids = [*labeled_ids, *pool_ids]
    origins = ["labeled"] * len(labeled_ids) + ["pool"] * len(pool_ids)
    return pd.DataFrame({"id": ids, "origin": origins})


def card_of(
    manifest: pd.DataFrame | None = None,
    weight_facts: dict[str, Any] | None = WEIGHTS,
    start: dict[str, torch.Tensor] | None = None,
    code: str = "c0de",
    device: str = "cpu",
    yardstick: str = "y",
    card: dict[str, Any] | None = None,
    **changes: Any,
) -> ModelCard:
    """Return the card of a student; `changes` are parameters of its training."""
    if manifest is None:
        manifest = manifest_of("abc")
    params = params_with(**changes)
    facts = {"code": code, "pool_images": "p", "device": device, "yardstick": yardstick}
    recipe = training_recipe(manifest, params, weight_facts, start, **facts)
    origin = {
        "distilled_by": params.objective,
        "rule": "nnpu",
        "n_updates": params.n_updates,
        "teacher": "t",
        TRAINING: recipe,
    }
    description = {
        "architecture": params.student_architecture,
        "architecture_options": params.student_options,
        "classes": ("0", "1"),
        "input": INPUT,
        "origin": origin,
        **(card or {}),
    }
    return ModelCard.model_validate(description)


def test_students_of_other_images_alone_do_not_differ() -> None:
    assert recipe_differences(card_of(manifest_of("abc")), card_of(manifest_of("cde"))) == []


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (
            {"optimizer": OPTIMIZER.model_copy(update={"learning_rate": 0.1})},
            "optimizer.learning_rate 0.005 and 0.1",
        ),
        (
            {"optimizer": OPTIMIZER.model_copy(update={"schedule": "cosine"})},
            "optimizer.schedule constant and cosine",
        ),
        ({"n_updates": 80}, "n_updates 40 and 80"),
        ({"batch_size": 64}, "batch_size 32 and 64"),
        ({"seed": 1}, "seed 0 and 1"),
        ({"temperature": 4.0}, "temperature 2.0 and 4.0"),
        ({"objective": "robust_kd"}, "objective kd and robust_kd"),
        ({"keep": "best"}, "keep last and best"),
        ({"teacher_cache": "views"}, "teacher_cache exact and views"),
        (
            {"augmentation": PLAIN.model_copy(update={"horizontal_flip": True})},
            "augmentation.horizontal_flip False and True",
        ),
        ({"mixing": "cutmix"}, "mixing none and cutmix"),
        ({"final_phase": {"share": 0.2}}, "final_phase.share 0.0 and 0.2"),
        ({"weight_averaging": "ema"}, "weight_averaging none and ema"),
        (
            {"augmentation": PLAIN.model_copy(update={"brightness": 0.4})},
            "augmentation.brightness 0.0 and 0.4",
        ),
        ({"student_options": {"width": 8}}, "student_options.width 4 and 8"),
        (
            {"compute": COMPUTE.model_copy(update={"precision": "bfloat16"})},
            "precision float32 and bfloat16",
        ),
        ({"weight_facts": {**WEIGHTS, "epsilon": 0.3}}, "class_weighting.epsilon 0.1 and 0.3"),
        ({"start": {"fc.weight": torch.ones(2)}}, "start differs"),
        ({"code": "other"}, "code differs"),
        ({"device": "cuda"}, "device cpu and cuda"),
        ({"yardstick": "other"}, "yardstick differs"),
        ({"manifest": manifest_of("abcd")}, "n_pool 3 and 4"),
        ({"manifest": manifest_of("abc", labeled_ids="x")}, "n_labeled 2 and 1"),
        ({"manifest": manifest_of("abc", labeled_ids="xz")}, "labeled differs"),
        ({"card": {"architecture": "lenet5"}}, "architecture digits_cnn and lenet5"),
        ({"card": {"classes": ("1", "0")}}, "classes ['0', '1'] and ['1', '0']"),
    ],
)
def test_everything_that_decides_a_student_is_compared(
    changes: dict[str, Any], difference: str
) -> None:
    found = recipe_differences(card_of(), card_of(**changes))
    assert difference in found
    # Both directions find the same keys.
    assert len(recipe_differences(card_of(**changes), card_of())) == len(found)


@pytest.mark.parametrize(
    "changes",
    [
        # Options of an objective that is not used, where a training runs, and how often it reports.
        {"noise_matrix": None},
        {"compute": COMPUTE.model_copy(update={"n_threads": 2, "inference_batch_size": 8})},
        {"record_every": 20},
        {"mixing_alpha": 0.3, "mixing_share": 0.5},
        {"ema_decay": 0.9},
    ],
)
def test_what_does_not_decide_a_student_may_differ(changes: dict[str, Any]) -> None:
    assert recipe_differences(card_of(), card_of(**changes)) == []


def test_records_decide_a_student_that_is_the_best_of_them() -> None:
    found = recipe_differences(card_of(keep="best"), card_of(keep="best", record_every=20))
    assert found == ["record_every 10 and 20"]


def test_differences_on_purpose_are_allowed_by_their_key() -> None:
    with_critic = card_of(objective="pu_critic")
    without = card_of(objective="attention")
    allowed = ("distillation.objective", "distillation.critic")
    assert recipe_differences(with_critic, without, allowed) == []
    other_seed = card_of(objective="attention", seed=7)
    assert recipe_differences(with_critic, other_seed, allowed) == ["seed 0 and 7"]


def test_another_teacher_differs() -> None:
    origin = {**card_of().origin, "teacher": "other"}
    other = card_of(card={"origin": origin})
    assert recipe_differences(card_of(), other) == ["teacher differs"]


def without_recipe(**changes: Any) -> ModelCard:
    """Return the card of a student of an earlier version."""
    card = card_of(**changes)
    origin = {key: value for key, value in card.origin.items() if key != TRAINING}
    return card.model_copy(update={"origin": origin})


def test_cards_of_earlier_versions_are_compared_by_what_they_say() -> None:
    assert not has_recipe(without_recipe())
    assert learned_manifest(without_recipe()) is None
    assert recipe_differences(without_recipe(), without_recipe()) == []
    found = recipe_differences(without_recipe(), without_recipe(n_updates=80))
    assert found == ["n_updates 40 and 80"]


def test_a_card_that_says_less_than_the_other_is_a_difference() -> None:
    found = recipe_differences(card_of(), without_recipe())
    assert found == ["the card of the control has no record of its training, and the other one has"]
    found = recipe_differences(without_recipe(), card_of())
    assert found == ["the card of the student has no record of its training, and the other one has"]


def test_many_differences_are_shortened() -> None:
    assert differences_text(["a", "b"]) == "a, b"
    assert differences_text(list("abcde")) == "a, b, c and 2 more"


def test_a_distilled_student_has_its_recipe_also_after_it_was_saved(
    digits: Scene, tmp_path: Any
) -> None:
    student, _ = digits.distill(n_updates=2)
    other, _ = digits.distill(digits.manifest.iloc[::-1], n_updates=2)
    slower, _ = digits.distill(n_updates=3)
    assert student.card.origin[TRAINING]["device"] == "cpu"
    save_model(student, tmp_path / "student")
    loaded = load_model(tmp_path / "student")
    assert recipe_differences(loaded.card, student.card) == []
    assert recipe_differences(loaded.card, slower.card) == ["n_updates 2 and 3"]
    assert learned_manifest(loaded.card) == manifest_digest(digits.manifest)
    assert learned_manifest(other.card) != manifest_digest(digits.manifest)


def test_a_mixture_differs_from_its_control_in_the_images_alone() -> None:
    manifest = pd.DataFrame({"id": ["a", "b", "c"], "origin": ["labeled", "pool", "pool"]})
    mixture = manifest.assign(related_probability=[None, 0.9, 0.1])
    mixture.attrs["mixture"] = {"first": 1.0, "max_repeats": 5.0}
    recipe = training_recipe(mixture, params_with(), None, None)
    control = training_recipe(manifest, params_with(), None, None)
    assert {key for key in recipe if recipe[key] != control[key]} == {"manifest"}
