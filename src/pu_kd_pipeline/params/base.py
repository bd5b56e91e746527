"""What all parameter blocks have in common: how they are checked, and the types of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

SEEDS = 2**32  # number of seeds that every random generator accepts
_MAX_BITS = 63  # of an integer next to its sign: torch and NumPy compute with 64 bits
OFF = "off"  # a choice of some fields
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]


def _without_nulls(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


# An environment's keys are merged into those of conf/base, so null is its way to remove one.
Options = Annotated[dict[str, Any], AfterValidator(_without_nulls)]


class Block(BaseModel):
    """A parameter block: unknown keys are errors, values do not change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    # Former keys, and the key of the same block that has their meaning now, for the message.
    moved_keys: ClassVar[Mapping[str, str]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse integers too large to compute with, and true and false where a number is expected.

        YAML reads `yes`, `no`, `on` and `off` as true and false, too. False is the choice "off" of
        a field that has it.
        """
        if value is False and _has_choice(cls.model_fields[str(info.field_name)].annotation, OFF):
            return OFF
        items = _items(value)
        has_boolean = any(isinstance(item, bool) for item in items)
        if has_boolean and not _accepts_booleans(cls, str(info.field_name)):
            raise ValueError(_boolean_fault(cls, str(info.field_name)))
        for item in items:
            if isinstance(item, int) and item.bit_length() > _MAX_BITS:
                raise ValueError("input should be a number of at most 64 bits")
        return value


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    return [value]


def _boolean_fault(block: type[Block], field: str) -> str:
    fault = "input should not be true or false (nor yes, no, on or off)"
    if _contains(block.model_fields[field].annotation, (str,)):
        fault += ": as texts, these words stand in quotes"
    return fault


def _accepts_booleans(block: type[Block], field: str) -> bool:
    return _contains(block.model_fields[field].annotation, (bool, Any))


def _has_choice(annotation: Any, choice: str) -> bool:
    """Return whether an annotation has a `Literal` with this choice."""
    arguments = get_args(annotation)
    return choice in arguments or any(_has_choice(each, choice) for each in arguments)


def _contains(annotation: Any, types: tuple[Any, ...]) -> bool:
    """Return whether a value of one of the types may be anywhere in an annotated value."""
    if annotation in types:
        return True
    # A nested block checks its own fields.
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_contains(argument, types) for argument in get_args(annotation))
