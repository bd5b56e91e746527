"""The type of a parameter that names a record of a dictionary, such as a selection rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic_core import PydanticCustomError


def one_of(known: Mapping[str, Any]) -> Callable[[object], str]:
    """Return a check that a value is a key of the mapping, with the error of `Literal` and the nearest key.

    The mapping is read at each check: a record that is added later is accepted, too.

    Use it as `Annotated[str, BeforeValidator(one_of(RULES))]`.
    """

    def check(value: object) -> str:
        if isinstance(value, str) and value in known:
            return value
        *others, last = [repr(name) for name in known]
        expected = f"{', '.join(others)} or {last}" if others else last
        near = get_close_matches(value, known, n=1) if isinstance(value, str) else []
        hint = f"; did you mean '{near[0]}'?" if near else ""
        message = "Input should be {expected}{hint}"
        raise PydanticCustomError("literal_error", message, {"expected": expected, "hint": hint})

    return check
