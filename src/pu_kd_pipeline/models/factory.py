"""New networks: the teacher that the parameters describe, and students."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.networks.limits import is_known_to_work
from pu_kd_pipeline.models.cards import CARD, WEIGHTS, ModelCard, read_card
from pu_kd_pipeline.models.model import Model, build_from_card
from pu_kd_pipeline.models.weights import load_weights
from pu_kd_pipeline.params.paths import project_folder, resolved_path
from pu_kd_pipeline.params.teacher import InputSpec, TeacherParams


def is_known_to_build(card: ModelCard) -> bool:
    """Return whether the card's network, without weights, is known to build.

    Torch is not imported to find out, so that most runs are checked without that cost.
    """
    if card.taps is not None:
        return False
    n_classes = len(card.classes)
    spec = card.input
    return is_known_to_work(
        card.architecture, n_classes, spec.channels, spec.size_px, card.architecture_options
    )


def _weights_path(teacher: TeacherParams) -> Path | None:
    if teacher.weights is None:
        return None
    try:
        path = resolved_path(teacher.weights)
        if path.is_dir():
            return path / WEIGHTS
    except (OSError, ValueError) as exc:  # no such user, a name that is too long, …
        raise InputError(f"teacher.weights: {teacher.weights!r} is not a path ({exc})") from exc
    return path


def _shown_path(path: Path) -> str:
    """Return a path below the project folder without it: a card may move with the project."""
    project = project_folder()
    if path.is_relative_to(project):
        path = path.relative_to(project)
    return str(path)


def teacher_card(teacher: TeacherParams) -> ModelCard:
    """Return the teacher's card: the parameters, completed by the card next to its weights.

    Raises:
        InputError: the weights are missing, neither parameters nor card describe the teacher, or
            the card alone asks for code to be run.
    """
    weights = _weights_path(teacher)
    if weights is not None and not weights.is_file():
        raise InputError(
            f"teacher.weights: there is no file {weights} (edit parameters_teacher.yml)"
        )
    known = _card_next_to(weights)
    factory = known.get("architecture", "")
    # A path of a Python object: weights from elsewhere must not choose the code that is run.
    if teacher.architecture is None and ":" in factory:
        raise InputError(
            f"teacher: the {CARD} next to {weights} names a factory of its own, {factory!r}. What "
            "comes with weights is not run: if you trust that code, set teacher.architecture to it "
            "(parameters_teacher.yml)"
        )

    given = teacher.model_dump(mode="json", exclude={"weights"}, exclude_none=True)
    if isinstance(teacher.classes, int):
        given["classes"] = [str(index) for index in range(teacher.classes)]
    # No options means "as the card says", where there is one.
    if known and not given["architecture_options"]:
        del given["architecture_options"]
    described = {**known, **given}
    if weights:
        described["origin"] = {"weights": _shown_path(weights)}
    else:
        described["origin"] = {"trained": "teacher_training"}

    missing = [name for name in ("architecture", "classes", "input") if name not in described]
    if missing:
        raise InputError(
            f"teacher: {', '.join(missing)} not given, and there is no {CARD} next to {weights}: "
            "set them in parameters_teacher.yml"
        )
    return ModelCard.model_validate(described)


def _card_next_to(weights: Path | None) -> dict[str, Any]:
    """Return the fields of the card next to a weights file; empty if there is none."""
    if weights is None or not (weights.parent / CARD).is_file():
        return {}
    card = read_card(weights.parent, ModelCard)
    fields: dict[str, Any] = json.loads(card.model_dump_json())
    return fields


def input_contract(teacher: TeacherParams) -> tuple[InputSpec, tuple[str, ...]]:
    """Return the format of the images that the teacher expects, and the names of its classes."""
    card = teacher_card(teacher)
    return card.input, card.classes


def new_teacher(teacher: TeacherParams) -> Model:
    """Return the teacher that the parameters describe.

    It has the weights that they name, or is freshly initialized.

    Raises:
        InputError: the architecture, its taps or its weights cannot be used.
    """
    card = teacher_card(teacher)
    network = build_from_card(card, is_trained_here=teacher.weights is None)
    model = Model(network, card)
    # The card of a model always names its taps, so that later defaults cannot change them.
    try:
        taps = model.extractor().taps
    except ValueError as exc:
        raise InputError(f"teacher.taps: {exc}") from exc
    weights = _weights_path(teacher)
    if weights is not None:
        load_weights(model.network, weights)
    card = card.model_copy(update={"taps": taps})
    return Model(model.network.eval(), card)


def new_student(
    teacher: Model, architecture: str, options: Mapping[str, Any], origin: Mapping[str, Any]
) -> Model:
    """Return a freshly initialized student with the teacher's classes and input.

    Raises:
        InputError: the architecture cannot be used.
    """
    return untrained(student_card(teacher.card, architecture, options, origin))


def student_card(
    teacher: ModelCard, architecture: str, options: Mapping[str, Any], origin: Mapping[str, Any]
) -> ModelCard:
    """Return the card of a student with the teacher's classes and input."""
    return teacher.model_copy(
        update={
            "architecture": architecture,
            "architecture_options": dict(options),
            "taps": None,
            "origin": dict(origin),
        }
    )


def untrained(card: ModelCard) -> Model:
    """Return the freshly initialized classifier of a card.

    Raises:
        InputError: the architecture cannot be used.
    """
    return Model(build_from_card(card, is_trained_here=True), card)
