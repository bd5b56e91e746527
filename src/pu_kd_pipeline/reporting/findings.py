"""What a run found, in sentences: the student, the gain of the selection, and how certain it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pu_kd_pipeline.reporting.style import percent

CONFIDENCE_95 = 1.96  # standard errors on either side


def findings(metrics: Mapping[str, Any]) -> list[str]:
    """Return sentences: the student, the gain of the selection, its certainty, and the teacher.

    The last one is there only if something is wrong with the teacher on the labeled images.
    """
    sentences = [_student_sentence(metrics), _selection_sentence(metrics)]
    certainty = _certainty_sentence(metrics)
    if certainty:
        sentences.append(certainty)
    teacher_note = metrics["teacher"].get("labeled_note")
    if teacher_note:
        sentences.append(teacher_note)
    return sentences


def selection_gain(metrics: Mapping[str, Any]) -> float | None:
    """Return the accuracy of the student minus that of the random student; None if unknown."""
    if not metrics.get("random_student"):
        return None
    return metrics.get("selection", {}).get("gain")


def _student_sentence(metrics: Mapping[str, Any]) -> str:
    student = metrics["student"]
    teacher = metrics["teacher"]
    accuracy = percent(student["accuracy"])
    difference = 100 * (student["accuracy"] - teacher["accuracy"])
    # "0.0 points below" would contradict the two equal numbers around it.
    if not round(difference, 1):
        comparison = "as many as"
    elif difference < 0:
        comparison = f"{_size(difference)} below"
    else:
        comparison = f"{_size(difference)} above"
    ratio = _fewer(teacher["parameters"], student["parameters"])
    sentence = (
        f"The student classifies {accuracy} of the test images correctly, {comparison} its teacher "
        f"({percent(teacher['accuracy'])}), with {ratio} parameters."
    )
    agreement = student.get("agreement")
    if agreement is not None:
        sentence += f" It agrees with its teacher on {percent(agreement)} of them."
    return sentence


def _selection_sentence(metrics: Mapping[str, Any]) -> str:
    gain = selection_gain(metrics)
    if gain is None:
        return (
            "No student was distilled from random images in this run, "
            "so it does not show what the selection gained."
        )
    accuracy = percent(metrics["random_student"]["accuracy"])
    control = (
        f"a student distilled in the same way from as many random pool images reaches {accuracy}."
    )
    if round(100 * gain, 1) == 0:
        return f"The selection gained nothing here: {control}"
    if gain < 0:
        return f"The selection cost {_size(100 * gain)} here: {control}"
    return f"The selection gained {_size(100 * gain)}: {control}"


def _certainty_sentence(metrics: Mapping[str, Any]) -> str | None:
    """Return how far chance alone moves the gain; None where there is no gain or no test set size.

    The interval is that of a difference of two independent shares, each with the standard error
    sqrt(p (1 - p) / n). Both students see the same test images, which makes it rather too wide.
    """
    n_test = metrics.get("n_test")
    gain = selection_gain(metrics)
    if not n_test or gain is None:
        return None
    student = metrics["student"]["accuracy"]
    control = metrics["random_student"]["accuracy"]
    # Var(a - b) = Var(a) + Var(b) for independent shares.
    variance = sum(share * (1 - share) for share in (student, control)) / n_test
    chance = 100 * CONFIDENCE_95 * math.sqrt(variance)
    scatter = (
        f"drawing {n_test:,} test images moves such a difference "
        f"by up to ±{chance:.1f} points (95 %)"
    )
    if round(100 * gain, 1) == 0:
        verdict = f"Note that {scatter}."
    elif abs(100 * gain) > chance:
        verdict = f"That is more than chance explains: {scatter}."
    else:
        verdict = f"That is no more than chance explains: {scatter}."
    return f"{verdict} It is also one run: repeat it with other seeds before relying on it."


def _size(difference_points: float) -> str:
    return f"{abs(difference_points):.1f} points"


def _fewer(larger: float, smaller: float) -> str:
    """Return how the smaller of two counts compares, such as "6.0 times fewer"."""
    ratio = larger / smaller
    # Within rounding and a new head for the classes, two networks of one kind have the same size.
    if 0.95 <= ratio <= 1.05:
        return "as many"
    if ratio > 1:
        return f"{ratio:.1f} times fewer"
    return f"{1 / ratio:.1f} times more"
