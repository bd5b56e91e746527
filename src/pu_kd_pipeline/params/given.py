"""Values given with `--params`: their types, and their texts as they were typed.

YAML reads `1e3`, `007`, `1_000`, `true` and `null` as numbers, booleans and nothing. Where a text
is expected, such as the name of a folder, what was typed is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from pu_kd_pipeline.errors import InputError, first_line

# `key='value'` as a whole, also if the value holds commas; else everything up to the next comma.
_ITEM = re.compile(r"""[^,=]*=\s*'[^']*'\s*(?=,|$)|[^,=]*=\s*"[^"]*"\s*(?=,|$)|[^,]+""")
_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")


class GivenParameters(dict[str, Any]):
    """Nested values, typed as YAML types them, and the text of each.

    Attributes:
        texts: dotted key -> what was typed, without quotes; empty for values that were no text.
    """

    def __init__(
        self, values: Mapping[str, Any] | None = None, texts: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(values or {})
        self.texts = dict(texts or {})


def parse_given(text: str) -> GivenParameters:
    """Return the values of `key=value,block.key=[1,2]`; a text with a comma stands in quotes.

    Raises:
        InputError: an item is no key with a value, or a bracket is not closed.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values = OmegaConf.create({})
    texts = {}
    for item in _items(text):
        key, equals, typed = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(
                f"`{item.strip()}` is no `key=value`. A value that holds a comma stands in quotes "
                "of its own: --params=\"data='/a,b'\""
            )
        typed = typed.strip()
        texts[key] = typed
        if _QUOTED.fullmatch(typed):
            texts[key] = typed[1:-1]
        try:
            OmegaConf.update(values, key, _typed_value(typed), merge=True)
        except OmegaConfBaseException as exc:
            reason = first_line(exc)
            raise InputError(f"`{item.strip()}` cannot be used: {reason}") from exc
    container: Any = OmegaConf.to_container(values)
    return GivenParameters(container, texts)


def _items(text: str) -> list[str]:
    """Split at the commas that are neither in a quoted value nor in one that starts with a bracket.

    Raises:
        InputError: a bracket is not closed.
    """
    items: list[str] = []
    start = 0  # of the last item
    for match in _ITEM.finditer(text):
        if items and _is_open(items[-1]):
            # With everything between the parts: commas may follow each other in a quoted text.
            items[-1] = text[start : match.end()]
        elif match.group().strip():
            start = match.start()
            items.append(match.group())
    if items and _is_open(items[-1]):
        raise InputError(
            f"`{items[-1].strip()}` has a bracket that is not closed. A text that starts with a "
            "bracket stands in quotes of its own: --params=\"data='[1'\""
        )
    return items


def _is_open(item: str) -> bool:
    """Return whether a value is a list or a mapping of YAML whose end is missing."""
    _, _, value = item.partition("=")
    if not value.lstrip().startswith(("[", "{")):
        return False
    unquoted = _QUOTED.sub("", value)
    opened = unquoted.count("[") + unquoted.count("{")
    return opened > unquoted.count("]") + unquoted.count("}")


def _typed_value(text: str) -> Any:
    """Return a value as YAML reads it, or the text itself if it is no YAML."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    if _QUOTED.fullmatch(text):
        return text[1:-1]
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except YAMLError:
        return text
    return parsed["value"]


def with_texts(
    given: Mapping[str, Any], texts: Mapping[str, str], models: Mapping[str, type[BaseModel]]
) -> dict[str, Any]:
    """Return the values with the typed text wherever a block expects text.

    Args:
        given: nested values.
        texts: dotted key -> what was typed.
        models: block name -> its type.
    """
    changed = deepcopy(dict(given))
    for key, text in texts.items():
        block, *path = key.split(".")
        if block not in models or not path:
            continue
        parent = _parent(changed, key)
        expected = _expected_types(models[block], path)
        name = path[-1]
        if name in parent and str in expected and type(parent[name]) not in expected:
            parent[name] = text
    return changed


def _parent(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the dictionary that holds a dotted key; an empty one if there is none."""
    parent: Any = values
    for part in key.split(".")[:-1]:
        # A later value of the same command may have replaced a block by something else.
        if not isinstance(parent, dict) or part not in parent:
            return {}
        parent = parent[part]
    if not isinstance(parent, dict):
        return {}
    return parent


def _expected_types(model: type[BaseModel], path: list[str]) -> set[Any]:
    """Return the types that a value at a path in a block may have; empty if it is not known."""
    annotation: Any = model
    for part in path:
        annotation = _inner_annotation(annotation, part)
    expected = set(_leaves(annotation))
    # A whole number is accepted in the form of a float, too.
    if int in expected:
        expected.add(float)
    return expected


def _inner_annotation(annotation: Any, part: str) -> Any:
    """Return the annotation of a key in a block or dictionary, or None if there is no such key."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(part)
        if field is None:
            return None
        return field.annotation
    if get_origin(annotation) is dict:
        _, value_annotation = get_args(annotation)
        return value_annotation
    # such as `Block | None`
    for choice in get_args(annotation):
        inner = _inner_annotation(choice, part)
        if inner is not None:
            return inner
    return None


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union; any other type is the only one."""
    if get_origin(annotation) not in (Union, UnionType):
        yield annotation
        return
    for choice in get_args(annotation):
        yield from _leaves(choice)
