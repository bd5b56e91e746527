"""Nested parameters as dotted keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel


def flatten(tree: Any, separator: str = ".", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (joined key, leaf) of nested mappings and models; lists of mappings are counted through."""
    if isinstance(tree, BaseModel):
        tree = tree.model_dump(mode="json")
    if isinstance(tree, list | tuple) and any(
        isinstance(item, Mapping | BaseModel) for item in tree
    ):
        tree = dict(enumerate(tree))
    if isinstance(tree, Mapping) and (tree or not prefix):
        for key, value in tree.items():
            yield from flatten(value, separator, f"{prefix}{separator if prefix else ''}{key}")
    else:
        yield prefix, tree
