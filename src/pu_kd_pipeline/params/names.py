"""The type of a parameter that names a record of a dictionary, such as a selection rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic_core import PydanticCustomError


def one_of(known: Mapping[str, Any]) -> Callable[[object], str]:
    """Return a check that a value is a key of a mapping, for `Annotated[str, BeforeValidator(…)]`.

    Its error is that of `Literal`, with the nearest key.
    """

    def check(value: object) -> str:
        # Read at each check: a record that is added to the mapping later is accepted, too.
        if isinstance(value, str) and value in known:
            return value
        context = {"expected": _listed(list(known)), "hint": _nearest(value, known)}
        raise PydanticCustomError("literal_error", "Input should be {expected}{hint}", context)

    return check


def _listed(names: list[str]) -> str:
    quoted = [repr(name) for name in names]
    if len(quoted) == 1:
        return quoted[0]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _nearest(value: object, known: Mapping[str, Any]) -> str:
    if not isinstance(value, str):
        return ""
    near = get_close_matches(value, known, n=1)
    if not near:
        return ""
    return f"; did you mean '{near[0]}'?"
