"""What a run found, in sentences: the student, the gain over its control, and what to doubt.

The sentences are written once, by `with_findings`, into the metrics. The end of a run, the report
and MLflow show those.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pu_kd_pipeline.reporting.degenerate import degenerate_findings
from pu_kd_pipeline.reporting.gains import (
    gain_of,
    gain_sentence,
    interval_text,
    size_text,
    whole_pool_sentence,
)
from pu_kd_pipeline.reporting.style import percent

logger = logging.getLogger(__name__)


def with_findings(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics with `findings` and `doubts` in sentences, and warn of the latter."""
    found = findings(metrics)
    doubts = _doubts(metrics)
    # The summary of the run shows them.
    for sentence in found:
        logger.debug(sentence)
    for sentence in doubts:
        logger.warning(sentence)
    return {**metrics, "findings": found, "doubts": doubts}


def findings_of(metrics: Mapping[str, Any]) -> list[str]:
    """Return the sentences that an evaluation wrote, or those of the numbers of an older one."""
    stored = metrics.get("findings")
    if stored is None:
        return findings(metrics)
    return [str(sentence) for sentence in stored]


def doubts_of(metrics: Mapping[str, Any]) -> list[str]:
    """Return what makes the numbers doubtful; see `findings_of`."""
    stored = metrics.get("doubts")
    if stored is None:
        return _doubts(metrics)
    return [str(sentence) for sentence in stored]


def _doubts(metrics: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the teacher on the labeled images, and what is degenerate."""
    doubts = degenerate_findings(metrics)
    teacher_note = metrics.get("teacher", {}).get("labeled_note")
    if teacher_note:
        doubts.insert(0, teacher_note)
    selection = metrics.get("selection") or {}
    prior_warning = selection.get("class_prior_warning")
    if prior_warning:
        doubts.append(prior_warning)
    for facts in metrics.values():
        if isinstance(facts, Mapping) and facts.get("yardstick_note"):
            doubts.append(facts["yardstick_note"])
    return doubts


def findings(metrics: Mapping[str, Any]) -> list[str]:
    """Return two to four sentences: the student, its gain over each control, the certainty."""
    if "student" not in metrics or "teacher" not in metrics:
        return []
    sentences = [_student_sentence(metrics), gain_sentence(metrics)]
    over_whole_pool = whole_pool_sentence(metrics)
    if over_whole_pool is not None:
        sentences.append(over_whole_pool)
    if gain_of(metrics) is not None:
        sentences.append(
            "This is one run: the test covers which images are in the test set, "
            "and not how the random numbers of a training fall. "
            "Repeat the run with other seeds before relying on it."
        )
    return sentences


def _student_sentence(metrics: Mapping[str, Any]) -> str:
    student = metrics["student"]
    teacher = metrics["teacher"]
    accuracy = percent(student["accuracy"])
    tested = (metrics.get("difference_to_teacher") or {}).get("student")
    difference = student["accuracy"] - teacher["accuracy"]
    size = size_text(difference, tested["p_value"] if tested else None)
    # "0.0 points below" would contradict the two equal numbers around it.
    if size is None:
        comparison = "as many as"
    elif difference < 0:
        comparison = f"{size} below"
    else:
        comparison = f"{size} above"
    in_brackets = percent(teacher["accuracy"])
    if tested:
        in_brackets += f"; difference {interval_text(tested)}"
    ratio = _fewer(teacher["parameters"], student["parameters"])
    sentence = (
        f"The student classifies {accuracy} of the test images correctly, {comparison} its teacher "
        f"({in_brackets}), with {ratio} parameters."
    )
    agreement = student.get("agreement")
    if agreement is not None:
        sentence += f" It agrees with its teacher on {percent(agreement)} of them."
    return sentence


def _fewer(larger: float, smaller: float) -> str:
    """Return how the smaller of two counts compares, such as "6.0 times fewer"."""
    ratio = larger / smaller
    # Within rounding and a new head for the classes, two networks of one kind have the same size.
    if 0.95 <= ratio <= 1.05:
        return "as many"
    if ratio > 1:
        return f"{ratio:.1f} times fewer"
    return f"{1 / ratio:.1f} times more"
