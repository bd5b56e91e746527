"""Nested parameters as dotted keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel


def flatten(
    tree: Any, separator: str = ".", prefix: str = "", *, expand_lists: bool = True
) -> Iterator[tuple[str, Any]]:
    """Yield (joined key, leaf) of nested mappings and models.

    Args:
        tree: a mapping, a model, or a leaf.
        separator: text between two keys.
        prefix: key of the tree itself.
        expand_lists: whether a list of mappings is expanded too, by position; otherwise it is a leaf.
    """
    if isinstance(tree, BaseModel):
        tree = tree.model_dump(mode="json")
    if (
        expand_lists
        and isinstance(tree, list | tuple)
        and any(isinstance(item, Mapping | BaseModel) for item in tree)
    ):
        tree = dict(enumerate(tree))
    if isinstance(tree, Mapping) and (tree or not prefix):
        for key, value in tree.items():
            joined = f"{prefix}{separator}{key}" if prefix else str(key)
            yield from flatten(value, separator, joined, expand_lists=expand_lists)
    else:
        yield prefix, tree
