"""The type of a parameter that names a record of a dictionary, such as a selection rule."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError


def one_of(names: Collection[str]) -> BeforeValidator:
    """Return a validator that accepts the names and nothing else, as a Literal of them would.

    Args:
        names: read at every check, so that a record added to a dictionary later is accepted.
    """

    def check(value: Any) -> Any:
        # Lists and dicts cannot be looked up in a dictionary.
        if isinstance(value, str) and value in names:
            return value
        *first, last = [repr(name) for name in names]
        expected = last
        if first:
            expected = f"{', '.join(first)} or {last}"
        raise PydanticCustomError(
            "literal_error", "Input should be {expected}", {"expected": expected}
        )

    # Before: a number is then refused by the same error, which lists the names.
    # The reference of parameters reads the names from the schema.
    return BeforeValidator(check, json_schema_input_type=Literal[tuple(names)])
