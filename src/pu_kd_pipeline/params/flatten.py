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
        expand_lists: whether a list of mappings is expanded by position, too; otherwise it is a
            leaf.
    """
    if isinstance(tree, BaseModel):
        tree = tree.model_dump(mode="json")
    if expand_lists and _is_list_of_mappings(tree):
        tree = dict(enumerate(tree))
    is_root = not prefix
    # Below the root, an empty mapping is a leaf: it would leave no trace otherwise.
    is_branch = isinstance(tree, Mapping) and (tree or is_root)
    if not is_branch:
        yield prefix, tree
        return
    for key, value in tree.items():
        joined_key = str(key)
        if not is_root:
            joined_key = prefix + separator + joined_key
        yield from flatten(value, separator, joined_key, expand_lists=expand_lists)


def _is_list_of_mappings(tree: Any) -> bool:
    if not isinstance(tree, list | tuple):
        return False
    return any(isinstance(item, Mapping | BaseModel) for item in tree)
