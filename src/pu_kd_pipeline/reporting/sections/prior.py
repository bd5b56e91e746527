"""The class prior by each way in which it was read, next to the truth where it is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pu_kd_pipeline.learning.class_prior.methods import METHODS, method_title
from pu_kd_pipeline.params.pu_training import AUDIT
from pu_kd_pipeline.reporting.style import percent


@dataclass(frozen=True)
class Reading:
    """One value of the class prior; places are shares of the axis, in [0, 1]."""

    name: str
    text: str
    place: float
    lower: float | None
    upper: float | None
    kind: str
    """"used", "other", "truth", or "hollow" for a reference."""


@dataclass(frozen=True)
class Prior:
    """The readings, and the value at the end of the axis."""

    readings: list[Reading]
    axis_end: str
    notes: list[str]


def prior_of(class_prior: Mapping[str, Any], metrics: Mapping[str, Any]) -> Prior | None:
    """Return the readings of the class prior; None where there is none."""
    value = class_prior.get("value")
    if value is None or not np.isfinite(value):
        return None
    entries: list[tuple[str, float, float | None, float | None, str]] = []
    bounds = class_prior.get("lower"), class_prior.get("upper")
    if bounds[0] == bounds[1]:
        bounds = None, None
    entries.append((_used_name(class_prior), value, *bounds, "used"))
    readings = class_prior.get("readings") or {}
    for key, name in (
        ("outputs", "the teacher's outputs, DEDPUL"),
        ("outputs_bbe", "the teacher's outputs, BBE"),
    ):
        found = readings.get(key)
        if found is not None:
            entries.append((name, float(found), None, None, "other"))
    selection = metrics.get("selection") or {}
    truth = selection.get("true_class_prior")
    if truth is not None:
        entries.append(("hidden truth", float(truth), None, None, "truth"))

    ends = [number for entry in entries for number in (entry[1], entry[3]) if number is not None]
    axis_end = min(1.0, 1.15 * max(ends)) or 1.0
    notes = [str(class_prior[key]) for key in ("note", "warning") if class_prior.get(key)]
    return Prior([_reading(*entry, axis_end) for entry in entries], percent(axis_end, 0), notes)


def _used_name(class_prior: Mapping[str, Any]) -> str:
    method = class_prior.get("method")
    if method == AUDIT:
        return "audit of the pool (used)"
    if method in METHODS:
        return f"trained classifier, {method_title(str(method))} (used)"
    return "given (used)"


def _reading(
    name: str, value: float, lower: float | None, upper: float | None, kind: str, end: float
) -> Reading:
    text = percent(value)
    if lower is not None and upper is not None:
        text += f" ({100 * lower:.1f} to {100 * upper:.1f})"
        return Reading(name, text, value / end, lower / end, min(1.0, upper / end), kind)
    return Reading(name, text, value / end, None, None, kind)
