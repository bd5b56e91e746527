"""Turns what pydantic says about a parameter into a sentence: which key, what is wrong, where to mend it.

Kedro validates parameters too, but names neither the file nor the key that was probably meant, and lets a block that
nobody knows pass in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.flatten import flatten

_MOST_OF_A_VALUE, _MOST_OF_A_COMPLAINT = 100, 600  # letters of either in a message


def check_parameters(
    parameters: Mapping[str, Any],
    models: Mapping[str, type[BaseModel]],
    *,
    files: Mapping[str, Path],
    given: Mapping[str, Any],
    other_names: Iterable[str] = (),
) -> dict[str, BaseModel]:
    """Return the checked blocks.

    Args:
        parameters: block name -> the values as they were read.
        models: the blocks that are needed, and their types.
        files: block name -> the file that sets it.
        given: what came with `--params`, nested.
        other_names: names that `--params` may set although no parameter file has them.

    Raises:
        InputError: all faults together, each with its key and its file.
    """
    faults = [
        unknown_name(f"--params: the block `{name}`", name, [*files, *other_names])
        for name in given
        if name not in {*files, *other_names}
    ]
    blocks = {}
    given_keys = {key for key, _ in flatten(given)}
    for name, model in models.items():
        if name not in parameters:
            faults.append(
                f"the block `{name}` is missing: add it to conf/base/parameters_{name}.yml"
            )
            continue
        where = files.get(name, Path(f"conf/base/parameters_{name}.yml"))
        try:
            blocks[name] = model.model_validate(parameters[name])
        except ValidationError as error:
            faults += sentences(error, model, name=name, where=str(where), given=given_keys)
    if faults:
        raise InputError(
            "The parameters cannot be used.\n" + "\n".join(f"  - {fault}" for fault in faults)
        )
    return blocks


def sentences(
    error: ValidationError,
    model: type[BaseModel],
    *,
    name: str,
    where: str,
    given: Iterable[str] = (),
) -> list[str]:
    """Return one sentence per fault of a block.

    Args:
        error: what pydantic raised.
        model: the type it raised it for.
        name: of the block; starts the dotted keys. Empty for a file that is one block.
        where: the file to edit.
        given: dotted keys that came with `--params` instead.
    """
    faults = error.errors(include_url=False)
    # of a list with a faulty item pydantic says, too, that it holds nothing
    told = [
        fault
        for fault in faults
        if not any(_is_inside(other["loc"], fault["loc"]) for other in faults)
    ]
    return [_sentence(fault, model, name, where, set(given)) for fault in told]


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return "`what` is not known: did you mean `x`?", or all that is known where nothing is near."""
    known = sorted(set(known))
    name = _printable(name)
    near = get_close_matches(name, known, n=1)
    meant = (
        f"did you mean `{near[0]}`?"
        if near
        else f"known are {', '.join(f'`{each}`' for each in known)}"
    )
    return f"{what} is not known; {meant}"


def _sentence(fault: Any, model: type[BaseModel], name: str, where: str, given: set[str]) -> str:
    location = fault["loc"]
    key = ".".join(_printable(str(part)) for part in (name, *location) if part != "")
    source = "--params" if key in given else where
    if fault["type"] == "extra_forbidden":
        return f"{source}: " + unknown_name(
            f"the key `{key}`", str(location[-1]), _fields(model, location[:-1])
        )
    if fault["type"] == "missing":
        return f"{source}: the key `{key}` is missing{_meaning(model, location)}"
    complaint = _printable(fault["msg"].removeprefix("Value error, "), _MOST_OF_A_COMPLAINT)
    complaint = complaint[:1].lower() + complaint[1:]
    if fault["type"] == "literal_error":
        complaint += _nearest_choice(fault)
    is_whole = isinstance(fault["input"], Mapping | BaseModel)
    value = "" if is_whole else f" is {_shown(fault['input'])}"
    return f"{source}: `{key}`{value}: {complaint}{_meaning(model, location)}"


def _nearest_choice(fault: Any) -> str:
    """Return "; did you mean `x`?" for a value near one of the accepted ones, else nothing."""
    # pydantic gives the choices only as text: 'a', 'b' or 'c'
    choices = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
    near = get_close_matches(_printable(str(fault["input"])), choices, n=1)
    if not near:
        return ""
    return f"; did you mean `{near[0]}`?"


def _shown(value: object) -> str:
    """Return a value as a message can hold it, however large it is."""
    try:
        return _printable(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits; a list in itself
        return f"too large a value ({type(value).__name__})"


def _printable(text: str, most: int = _MOST_OF_A_VALUE) -> str:
    """Return a text without line breaks, half characters and the like, and shortened."""
    text = text if len(text) <= most else f"{text[:most]}…"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _is_inside(inner: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _fields(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Return the keys that the model at `location` knows."""
    for part in location:
        if part in model.model_fields:
            model = next(iter(_models_in(model.model_fields[part].annotation)), model)
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside an annotation such as `tuple[Block, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _meaning(model: type[BaseModel], location: tuple[Any, ...]) -> str:
    """Return the field's description in brackets, where it has one."""
    for depth, part in enumerate(location):
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is not None and depth == len(location) - 1 and field.description:
            return f" ({field.description})"
        if field is not None:
            model = next(iter(_models_in(field.annotation)), model)
    return ""
