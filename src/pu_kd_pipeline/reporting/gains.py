"""The gain of a student over its control as text: one number, one interval, one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pu_kd_pipeline.learning.paired import SIGNIFICANT
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.reporting.style import percent, points

_WHOLE_POOL = "whole_pool_student"
_AGAIN = "Run the stage that evaluates again to have it tested."


@dataclass(frozen=True)
class _Control:
    """A student that the student is compared with, to see what one part of the method gains."""

    model: str
    """Its key in the metrics."""
    block: str
    """Key of the metrics that hold the gain."""
    subject: str
    """What the gain is of, at the start of a sentence."""
    description: str
    """Which student it is, after "a student distilled in the same way"."""
    title: str


_CONTROLS = (
    _Control(
        "random_student",
        "selection",
        "The selection",
        "from as many random pool images",
        "selection gain",
    ),
    _Control(
        "student_without_critic", "critic", "The critic", "without the critic", "gain of the critic"
    ),
)


def gain_title(metrics: Mapping[str, Any]) -> str | None:
    """Return the name of the gain, such as "selection gain"; None without a control."""
    control = _control(metrics)
    if control is None:
        return None
    return control.title


def gain_of(metrics: Mapping[str, Any]) -> float | None:
    """Return the accuracy of the student minus that of its control; None if it is not known."""
    control = _control(metrics)
    if control is None:
        return None
    return _facts_of_gain(metrics, control).get("gain")


def gain_text(metrics: Mapping[str, Any]) -> str | None:
    """Return the gain with its interval, or why there is none; None without a control."""
    control = _control(metrics)
    if control is None:
        return None
    return _text_of_gain(_facts_of_gain(metrics, control))


def whole_pool_gain_text(metrics: Mapping[str, Any]) -> str | None:
    """Return the gain over the student of the whole pool; None where none was trained."""
    facts = _whole_pool_facts(metrics)
    if facts is None:
        return None
    return _text_of_gain(facts)


def _text_of_gain(facts: Mapping[str, Any]) -> str | None:
    gain = facts.get("gain")
    reason = facts.get("gain_reason")
    if gain is None:
        return f"none: {reason}" if reason else None
    text = points(100 * gain)
    if facts.get("gain_p_value") is None:
        return f"{text} (not tested)"
    return f"{text} ({interval_text(facts, 'gain_')})"


def _control(metrics: Mapping[str, Any]) -> _Control | None:
    for control in _CONTROLS:
        is_given = _facts_of_gain(metrics, control).get("gain") is not None
        if is_given or metrics.get(control.model):
            return control
    return None


def _facts_of_gain(metrics: Mapping[str, Any], control: _Control) -> Mapping[str, Any]:
    facts: Mapping[str, Any] = metrics.get(control.block) or {}
    return facts


def gain_sentence(metrics: Mapping[str, Any]) -> str:
    """Return what the student gains over its control and whether chance explains it.

    Otherwise, why this is not known.
    """
    control = _control(metrics)
    if control is None or not metrics.get(control.model):
        return (
            "No student was distilled from random images in this run, "
            "so it does not show what the selection gained."
        )
    facts = _facts_of_gain(metrics, control)
    gain = facts.get("gain")
    if gain is None:
        return _no_gain_sentence(control, facts)
    accuracy = percent(metrics[control.model]["accuracy"])
    description = control.description
    # Samples by relatedness come from the same images as the control's.
    if facts.get("effective_sample_size") is not None:
        description = "from uniform samples of the same images"
    elif _draws_from_entire_pool(facts):
        description = "from the whole pool, drawn evenly,"
    reached = f"a student distilled in the same way {description} reaches {accuracy}"
    gained = _gained(gain, facts.get("gain_p_value"))
    return f"{control.subject} {gained}: {reached}{_certainty(metrics, facts)}"


def whole_pool_sentence(metrics: Mapping[str, Any]) -> str | None:
    """Return what the student gains over the student of the whole pool; None where none was
    trained.
    """
    facts = _whole_pool_facts(metrics)
    if facts is None:
        return None
    gain = facts.get("gain")
    if gain is None:
        reason = facts.get("gain_reason") or "it was not computed"
        return f"No gain over the student of the whole pool is given: {reason}."
    accuracy = percent(metrics[_WHOLE_POOL]["accuracy"])
    p_value = facts.get("gain_p_value")
    return (
        f"Against all pool images, with as many updates and the same share of labeled images per "
        f"batch ({accuracy}), the selection {_gained(gain, p_value)}{_certainty(metrics, facts)}"
    )


def _whole_pool_facts(metrics: Mapping[str, Any]) -> Mapping[str, Any] | None:
    selection = metrics.get("selection") or {}
    facts: Mapping[str, Any] | None = selection.get("whole_pool")
    if facts is None or _WHOLE_POOL not in metrics:
        return None
    return facts


def is_entire_pool(selection: Mapping[str, Any]) -> bool:
    """Return whether all pool images that a student may learn from were selected."""
    n_pool = selection.get("n_pool")
    n_selected = selection.get("n_selected")
    if n_pool is None or n_selected is None:
        return False
    n_excluded = selection.get("n_excluded_pool") or 0
    n_excluded += selection.get("n_yardstick_pool") or 0
    return bool(n_selected >= n_pool - n_excluded)


def _draws_from_entire_pool(facts: Mapping[str, Any]) -> bool:
    """Return whether student and control learned from the same images, drawn differently."""
    rule = RULES.get(str(facts.get("rule")))
    return rule is not None and rule.draws_unevenly and is_entire_pool(facts)


def _no_gain_sentence(control: _Control, facts: Mapping[str, Any]) -> str:
    reason = facts.get("gain_reason") or "it was not computed"
    return (
        f"No {control.title} is given: {reason}. "
        "Train both students again with the same parameters, code and inputs, and evaluate them."
    )


def _gained(gain: float, p_value: float | None) -> str:
    size = size_text(gain, p_value)
    if size is None:
        return "gained nothing here"
    if gain < 0:
        return f"cost {size} here"
    return f"gained {size}"


def size_text(difference: float, p_value: float | None) -> str | None:
    """Return the size of a difference in points, without its sign; None where there is none.

    A significant difference has a size, however small.

    Args:
        difference: in [-1, 1].
        p_value: of the difference; None: it was not tested.
    """
    size = abs(100 * difference)
    if size >= 0.05:
        return f"{size:.1f} points"
    is_significant = p_value is not None and p_value < SIGNIFICANT
    if not is_significant or difference == 0:
        return None
    return f"{size:.2g} points"


def _certainty(metrics: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Return how far chance explains the gain, as the end of its sentence."""
    p_value = facts.get("gain_p_value")
    if p_value is None:
        return f". Whether chance explains the difference was not tested. {_AGAIN}"
    is_significant = p_value < SIGNIFICANT
    verdict = "chance does not explain" if is_significant else "chance can explain"
    n_test = metrics.get("n_test")
    on_images = f" on the same {n_test:,} test images" if n_test else ""
    tested = f"; {verdict} the difference ({interval_text(facts, 'gain_')}, paired{on_images})."
    if facts.get("is_control_verified") is False:
        tested += (
            " Whether both were trained with the same parameters is not known: an earlier version "
            "wrote the cards of these students."
        )
    return tested


def interval_text(facts: Mapping[str, Any], prefix: str = "") -> str:
    """Return the interval in points and the p value of a difference.

    Args:
        facts: shares `lower`, `upper` and `p_value`.
        prefix: of these keys.
    """
    lower = 100 * facts[f"{prefix}lower"]
    upper = 100 * facts[f"{prefix}upper"]
    # A bound that is not zero must not look like it: it decides the verdict.
    digits = 1
    while digits < 3 and any(value != 0 and round(value, digits) == 0 for value in (lower, upper)):
        digits += 1
    return f"95 %: {_signed(lower, digits)} to {_signed(upper, digits)}, {_p_text(facts, prefix)}"


def _signed(value: float, digits: int) -> str:
    if round(value, digits) == 0:
        return f"{0:.{digits}f}"
    sign = "+" if value > 0 else "−"
    return f"{sign}{abs(value):.{digits}f}"


def _p_text(facts: Mapping[str, Any], prefix: str) -> str:
    p_value = facts[f"{prefix}p_value"]
    if p_value < 0.001:
        return "p < 0.001"
    # Two digits would turn 0.0496 into the limit itself.
    if 0.045 <= p_value < 0.055:
        return f"p = {p_value:.4f}"
    return f"p = {p_value:.2g}"
