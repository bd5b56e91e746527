"""Every value of a parameter that can be written out: literals, names of records, true and false.

They are read off the types of the parameters, so that a new value is in the tests by itself.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

# No parameter has it, so that the error lists the accepted values.
_UNKNOWN = "no value has this name"


@dataclass(frozen=True)
class Documented:
    """One value of a parameter.

    Attributes:
        path: key of the parameter, such as `pu_training.optimizer.algorithm`.
        value: a text, true, false or null.
    """

    path: str
    value: Any

    def __str__(self) -> str:
        return f"{self.path}={self.value}"


def documented_values(model: type[BaseModel], path: str) -> Iterator[Documented]:
    """Yield the values of all fields of a block and of the blocks in it, but not of its lists."""
    for name, field in model.model_fields.items():
        key = f"{path}.{name}"
        for value in [*_texts(model, name), *_constants(field)]:
            yield Documented(key, value)
        nested = _nested_block(field.annotation)
        if nested is not None:
            yield from documented_values(nested, key)


def _texts(model: type[BaseModel], name: str) -> list[str]:
    """Return the texts that a field accepts, where they can be counted."""
    try:
        model.model_validate({name: _UNKNOWN})
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            if fault["loc"][:1] == (name,) and fault["type"] == "literal_error":
                return re.findall(r"'([^']*)'", fault["ctx"]["expected"])
    return []


def _constants(field: FieldInfo) -> list[Any]:
    """Return true, false and null where a field accepts them."""
    members = _members(field.annotation)
    values: list[Any] = []
    if bool in members:
        values += [True, False]
    if type(None) in members:
        values.append(None)
    return values


def _nested_block(annotation: Any) -> type[BaseModel] | None:
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)
