"""Keys and values in the form that MLflow accepts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from pu_kd_pipeline.masking import masked_option
from pu_kd_pipeline.params.flatten import flatten

MAX_KEY_LENGTH = 250
MAX_VALUE_LENGTH = 500
MAX_CLASS_LENGTH = 100
# The first words of a metric that has one value for each class.
PER_CLASS = "per_class_"


def mlflow_key(text: str) -> str:
    """Return `text` with only the characters that MLflow allows in a key."""
    allowed = re.sub(r"[^\w\-. :/]", "_", text)
    return allowed[:MAX_KEY_LENGTH]


def metric_values(metrics: Mapping[str, Any]) -> Iterator[tuple[str, int, Any]]:
    """Yield (key, step, value) of nested metrics.

    A list with one value for each of `metrics["classes"]` gets a key for each class, such as
    `student/per_class_accuracy/cat`. The values of any other list are steps of one key.
    """
    names = class_keys(metrics.get("classes", ()))
    for key, value in flatten(metrics, "/"):
        values = value if isinstance(value, list | tuple) else [value]
        is_per_class = _is_per_class(key) and len(values) == len(names)
        for index, number in enumerate(values):
            if is_per_class:
                yield f"{mlflow_key(key)}/{names[index]}", 0, number
            else:
                yield mlflow_key(key), index, number


def class_keys(classes: Iterable[str]) -> list[str]:
    """Return a name for each class that MLflow accepts as the last part of a key.

    They differ from each other, also in stores that ignore case.
    """
    keys = []
    taken = set()
    for index, name in enumerate(classes):
        key = re.sub(r"[^\w\-. :]", "_", str(name)).strip()
        key = key[:MAX_CLASS_LENGTH].strip()
        # MLflow reads a key as a path.
        if not key.strip("."):
            key = f"class {index}"
        while key.casefold() in taken:
            key = f"{key}_{index}"
        taken.add(key.casefold())
        keys.append(key)
    return keys


def _is_per_class(key: str) -> bool:
    _, _, last = key.rpartition("/")
    return last.startswith(PER_CLASS)


def mlflow_parameters(parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, shortened text of the value) of nested parameters, credentials masked."""
    for key, value in flatten(parameters):
        # A list may hold addresses as well; a key such as `password` masks its whole value.
        text = str(masked_option(key, value))
        yield mlflow_key(key), _shortened(text)


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number that every MLflow store takes as a metric."""
    if not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _shortened(text: str) -> str:
    if len(text) <= MAX_VALUE_LENGTH:
        return text
    return text[:MAX_VALUE_LENGTH] + " …"
