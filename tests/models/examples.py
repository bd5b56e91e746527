"""Parameters of a small teacher, and changes of its card."""

from __future__ import annotations

import json

from pu_kd_pipeline.params.teacher import TeacherParams

INPUT = {"size_px": 8, "channels": 1, "mean": [0.3], "std": [0.4]}


def teacher_params(**changes):
    block = {
        "architecture": "digits_cnn",
        "architecture_options": {"width": 4},
        "weights": None,
        "classes": 3,
        "input": INPUT,
        "taps": None,
        **changes,
    }
    return TeacherParams.model_validate(block)


def params_of_card(weights):
    """Return parameters that leave everything to the card next to the weights."""
    return teacher_params(
        weights=str(weights), architecture=None, architecture_options={}, classes=None, input=None
    )


def change_card(folder, **changes):
    """Change fields in the card of a saved model."""
    file = folder / "card.json"
    card = json.loads(file.read_text())
    card.update(changes)
    text = json.dumps(card)
    file.write_text(text)
