"""Parameters in layers, of which the later ones win."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_overrides(base: Mapping[str, Any], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base with the values of each layer in turn; nested mappings merge key by key."""
    result = dict(base)
    for layer in layers:
        for key, value in layer.items():
            current = result.get(key)
            if isinstance(value, Mapping) and isinstance(current, Mapping):
                result[key] = with_overrides(current, value)
            else:
                result[key] = value
    return result
