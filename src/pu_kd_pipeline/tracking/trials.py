"""What MLflow gets of one trial of a run, such as a cell of a comparison: a child run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pu_kd_pipeline.tracking.keys import is_finite_number, mlflow_key

# Columns of a history, by the step of a trial's curves.
HISTORY = "history"
UPDATE = "update"
# What a result keeps of it, which a cell of an earlier run has, too.
CURVE_UPDATES = "curve_updates"
CURVE_ACCURACY = "curve_accuracy"
WATCHED_ACCURACY = "watched_accuracy"

# What a result and its row in a file have exactly alike.
IDENTIFYING = ("seconds", "test_images", "failure")

Metric = tuple[str, float, int, int]
"""(key, value, time in milliseconds, step)"""


@dataclass(frozen=True)
class Trial:
    """A finished trial."""

    key: str
    """By which its run is found again."""
    computation: str
    """By which a run finds that an earlier one has logged the same computation."""
    name: str
    parameters: Mapping[str, str]
    metrics: Sequence[Metric]
    start_ms: int
    end_ms: int
    failure: str
    """Why it failed; "" if it did not."""
    is_reused: bool
    """Whether an earlier run computed it."""


def computation_digest(name: str, parameters: Mapping[str, str], metrics: Mapping[str, Any]) -> str:
    """Return a digest of one computation, also when its result is read from a file later.

    Its duration, which no other one has to the nanosecond, is what tells it from a repetition.
    """
    facts = [name, dict(parameters), *(metrics.get(key) for key in IDENTIFYING)]
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def trial_metrics(metrics: Mapping[str, Any], start_s: float, end_s: float) -> list[Metric]:
    """Return the finite numbers of a trial, and the points of its curves.

    Args:
        metrics: name -> number; other values are left out. The curves are the columns of
            `history`, a mapping of lists with the column `update`, and without one
            `curve_accuracy` at `curve_updates`.
        start_s: when the trial started, seconds since 1970; its last update was at `end_s`.
        end_s: when it ended.
    """
    end_ms = int(1000 * end_s)
    found: list[Metric] = []
    for name, value in metrics.items():
        if is_finite_number(value):
            found.append((mlflow_key(name), float(value), end_ms, 0))
    for name, steps, values in _curves(metrics):
        last = max(steps, default=0) or 1
        for step, value in zip(steps, values, strict=False):
            if is_finite_number(value):
                at_s = start_s + (end_s - start_s) * step / last
                found.append((f"curves/{mlflow_key(name)}", float(value), int(1000 * at_s), step))
    return found


def _curves(metrics: Mapping[str, Any]) -> Iterator[tuple[str, list[int], Sequence[Any]]]:
    history = metrics.get(HISTORY)
    if isinstance(history, Mapping) and UPDATE in history:
        steps = [int(step) for step in history[UPDATE]]
        for name, values in history.items():
            if name != UPDATE:
                yield name, steps, values
        return
    steps = metrics.get(CURVE_UPDATES) or []
    yield WATCHED_ACCURACY, [int(step) for step in steps], metrics.get(CURVE_ACCURACY) or []
