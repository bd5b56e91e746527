"""New networks: the teacher of the parameters, and students."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.networks.limits import is_known_to_work
from pu_kd_pipeline.models.cards import CARD, WEIGHTS, ModelCard, read_card
from pu_kd_pipeline.models.model import Model, build_network_of_card
from pu_kd_pipeline.models.weights import load_weights
from pu_kd_pipeline.params.teacher import InputSpec, TeacherParams


def is_sure_to_build(card: ModelCard) -> bool:
    """Return whether the card's network, without weights, is known to build; torch is not imported for it."""
    spec = card.input
    return card.taps is None and is_known_to_work(
        card.architecture, len(card.classes), spec.channels, spec.size_px, card.architecture_options
    )


def _weights_path(teacher: TeacherParams) -> Path | None:
    if teacher.weights is None:
        return None
    try:
        path = Path(teacher.weights).expanduser()
        return path / WEIGHTS if path.is_dir() else path
    except (OSError, RuntimeError, ValueError) as exc:  # no such user, a name that is too long, …
        raise InputError(f"teacher.weights: {teacher.weights!r} is no path ({exc})") from exc


def teacher_card(teacher: TeacherParams) -> ModelCard:
    """Return the teacher's card: the parameters, completed by the card beside its weights where there is one.

    Raises:
        InputError: the weights are missing, neither parameters nor card say what the teacher is, or the card alone
            asks for code to be run.
    """
    weights = _weights_path(teacher)
    if weights is not None and not weights.is_file():
        raise InputError(
            f"teacher.weights: there is no file {weights} (edit parameters_teacher.yml)"
        )
    beside = weights is not None and (weights.parent / CARD).is_file()
    known: dict[str, Any] = (
        json.loads(read_card(weights.parent, ModelCard).model_dump_json())
        if weights and beside
        else {}
    )
    if teacher.architecture is None and ":" in (factory := known.get("architecture", "")):
        raise InputError(
            f"teacher: the {CARD} beside {weights} names a factory of its own, {factory!r}. What comes with weights is "
            "not run: if you trust that code, set teacher.architecture to it (parameters_teacher.yml)"
        )
    given = teacher.model_dump(mode="json", exclude={"weights"}, exclude_none=True)
    if isinstance(teacher.classes, int):
        given["classes"] = [str(index) for index in range(teacher.classes)]
    if not given["architecture_options"] and known:
        del given["architecture_options"]
    merged = {
        **known,
        **given,
        "origin": {"weights": str(weights)} if weights else {"trained": "teacher_training"},
    }
    missing = [name for name in ("architecture", "classes", "input") if name not in merged]
    if missing:
        raise InputError(
            f"teacher: {', '.join(missing)} not given, and there is no {CARD} beside {weights}: set them in "
            "parameters_teacher.yml"
        )
    return ModelCard.model_validate(merged)


def input_contract(teacher: TeacherParams) -> tuple[InputSpec, tuple[str, ...]]:
    """Return what images the teacher expects and the names of its classes."""
    card = teacher_card(teacher)
    return card.input, card.classes


def new_teacher(teacher: TeacherParams) -> Model:
    """Return the teacher of the parameters: with its weights where they are given, else freshly initialized.

    Raises:
        InputError: the architecture, its taps or its weights cannot be used.
    """
    card = teacher_card(teacher)
    model = Model(build_network_of_card(card, is_trained_here=teacher.weights is None), card)
    try:
        taps = model.extractor().taps
    except ValueError as exc:
        raise InputError(f"teacher.taps: {exc}") from exc
    weights = _weights_path(teacher)
    if weights is not None:
        load_weights(model.network, weights)
    return Model(model.network.eval(), card.model_copy(update={"taps": taps}))


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
    return Model(build_network_of_card(card, is_trained_here=True), card)
