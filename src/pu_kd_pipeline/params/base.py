"""What all parameter blocks have in common: how they are checked, and the types of their values."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

SEEDS = 2**32  # as many as every generator takes
_BITS = 63  # of a whole number, beside its sign, that torch and NumPy can count with
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


# An environment's keys are laid over those of conf/base: with null it takes one away.
Options = Annotated[dict[str, Any], AfterValidator(_given)]


class Block(BaseModel):
    """A parameter block: unknown keys are errors, values do not change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse numbers that nothing can count with, and true and false where only numbers are meant.

        YAML reads `yes`, `no`, `on` and `off` as true and false, too.
        """
        values = (
            value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, list | tuple)
            else [value]
        )
        if any(isinstance(each, bool) for each in values) and not _takes_truth_values(
            cls, str(info.field_name)
        ):
            raise ValueError("input should not be true or false (nor yes, no, on or off)")
        if any(isinstance(each, int) and each.bit_length() > _BITS for each in values):
            raise ValueError("input should be a number of at most 64 bits")
        return value


def _takes_truth_values(block: type[Block], name: str) -> bool:
    def inside(annotation: Any) -> bool:
        is_block = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        return (
            is_block
            or annotation in (bool, Any)
            or any(inside(each) for each in get_args(annotation))
        )

    return inside(block.model_fields[name].annotation)
