"""Keys and values in the form that MLflow accepts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from pu_kd_pipeline.masking import masked_option
from pu_kd_pipeline.params.flatten import flatten

MAX_KEY_LENGTH = 250
MAX_VALUE_LENGTH = 500


def mlflow_key(text: str) -> str:
    """Return `text` with only the characters that MLflow allows in a key."""
    allowed = re.sub(r"[^\w\-. :/]", "_", text)
    return allowed[:MAX_KEY_LENGTH]


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
