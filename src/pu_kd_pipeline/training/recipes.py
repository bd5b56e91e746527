"""How a student was trained, as its card says it, and in what the trainings of two students differ.

A student and its control may be compared if they differ in their images alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd
from torch import Tensor

from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.weights import tensor_bytes
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.flatten import flatten
from pu_kd_pipeline.storage.manifest import images_digest, manifest_digest

TRAINING = "training"  # key of the recipe in `origin` of a card
SAMPLING = "sampling"  # key of the facts about batches in it, see `training.sampling`
MANIFEST = "manifest"
YARDSTICK = "yardstick"  # key of `origin` and of the recipe: on which images it was measured

# What a control differs in, and must.
_OF_THE_IMAGES = frozenset({MANIFEST})
_MAX_NAMED = 3  # differences in a sentence
# Their values would tell a reader nothing.
_DIGESTS = frozenset(
    {
        "code",
        "factory_code",
        "labeled",
        "labeled_images",
        "pool_images",
        "start",
        "teacher",
        YARDSTICK,
    }
)


def training_recipe(
    manifest: pd.DataFrame,
    params: DistillationParams,
    weight_facts: Mapping[str, Any] | None,
    start: Mapping[str, Tensor] | None,
    **facts: Any,
) -> dict[str, Any]:
    """Return all that decides the student of a manifest, as JSON can hold it.

    Args:
        manifest: the images; in the recipe, how many there are of each origin, and a digest.
        params: the block; compute settings and option blocks of other objectives are left out.
        weight_facts: how the class weights were made; None: the objective reads none.
        start: the state that the student started from; None: freshly initialized.
        facts: further ones, such as fingerprints and the kind of device.
    """
    unread = params.unread_keys()
    block = params.model_dump(mode="json", exclude={"compute", "training_workers", *unread})
    if params.keep == "last":
        # Only the choice of the best record depends on how many there are.
        block.pop("record_every")
    block["precision"] = params.compute.precision
    origins = manifest["origin"]
    is_labeled = origins == "labeled"
    return {
        "distillation": block,
        "class_weighting": weight_facts,
        "start": _state_digest(start),
        "n_labeled": int(is_labeled.sum()),
        "n_pool": int((~is_labeled).sum()),
        "labeled": images_digest(manifest[is_labeled]),
        MANIFEST: manifest_digest(manifest),
        **facts,
    }


def _state_digest(state: Mapping[str, Tensor] | None) -> str | None:
    if state is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def recipe_differences(
    student: ModelCard, control: ModelCard, allowed: Collection[str] = ()
) -> list[str]:
    """Return in what two trainings differ besides their images, such as "seed 0 and 1".

    Cards of earlier versions hold no recipe. If neither card has one, what else both say is
    compared; if one of them has, the list says that the other does not.

    Args:
        student: the card of the student.
        control: the card of the student that it is compared with.
        allowed: dotted keys that may differ, with all keys below them.
    """
    is_student_known = has_recipe(student)
    if is_student_known != has_recipe(control):
        older = "control" if is_student_known else "student"
        return [f"the card of the {older} has no record of its training, and the other one has"]
    first = _facts(student)
    second = _facts(control)
    differences = []
    for key in sorted(first.keys() | second.keys()):
        if key in _OF_THE_IMAGES or _is_allowed(key, allowed):
            continue
        one = first.get(key)
        other = second.get(key)
        if one != other:
            differences.append(_difference(key, one, other))
    return differences


def has_recipe(card: ModelCard) -> bool:
    """Return whether a card says how its network was trained."""
    return isinstance(card.origin.get(TRAINING), Mapping)


def learned_manifest(card: ModelCard) -> str | None:
    """Return the digest of the manifest that a student learned from; None if it is not known."""
    recipe = card.origin.get(TRAINING)
    if not isinstance(recipe, Mapping):
        return None
    return recipe.get(MANIFEST)


def learned_store(card: ModelCard) -> str | None:
    """Return the fingerprint of the labeled images that a student saw; None if it is not known.

    Those of a student of `critic_distillation` are the teacher's training images.
    """
    recipe = card.origin.get(TRAINING)
    if not isinstance(recipe, Mapping):
        return None
    return recipe.get("labeled_images")


def differences_text(differences: list[str]) -> str:
    """Return differences as a part of a sentence, the first few by name."""
    named = ", ".join(differences[:_MAX_NAMED])
    n_more = len(differences) - _MAX_NAMED
    if n_more > 0:
        named += f" and {n_more} more"
    return named


def _facts(card: ModelCard) -> dict[str, Any]:
    """Return what a card says of the network and its training, by dotted keys."""
    description = card.model_dump(mode="json", exclude={"origin"})
    # The selection rule is what the two are compared for.
    kept = {"distilled_by", "n_updates", "teacher"}
    origin = {key: value for key, value in card.origin.items() if key in kept}
    recipe = card.origin.get(TRAINING)
    if isinstance(recipe, Mapping):
        # It says the same in more detail.
        origin = {"teacher": origin.get("teacher"), **recipe}
    return dict(flatten({**description, **origin}))


def _is_allowed(key: str, allowed: Collection[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def _difference(key: str, one: Any, other: Any) -> str:
    name = key.removeprefix("distillation.")
    if key in _DIGESTS:
        return f"{name} differs"
    return f"{name} {one} and {other}"
