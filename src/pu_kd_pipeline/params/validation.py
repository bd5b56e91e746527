"""Turns pydantic's errors about parameters into messages: the key, the fault, where to fix it.

Kedro validates parameters too, but it names neither the file nor the key that was probably meant,
and it ignores a block that no stage knows.
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

# In characters: a value or a complaint in a message may come from a hostile file.
_MAX_VALUE_LENGTH = 100
_MAX_COMPLAINT_LENGTH = 600
_MAX_SHOWN_FAULTS = 10  # a list of a thousand wrong values would fill the screen


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
        models: block name -> its type, for every block that is needed.
        files: block name -> the file that sets it.
        given: values given with `--params`, nested.
        other_names: names that `--params` may set although no parameter file has them.

    Raises:
        InputError: all faults together, each with its key and its file.
    """
    known_names = {*files, *other_names}
    faults = []
    for name in given:
        if name not in known_names:
            what = f"--params: the block `{name}`"
            faults.append(unknown_name(what, name, known_names))
    blocks = {}
    given_keys = {key for key, _ in flatten(given)}
    for name, model in models.items():
        default_file = Path(f"conf/base/parameters_{name}.yml")
        if name not in parameters:
            faults.append(f"the block `{name}` is missing: add it to {default_file}")
            continue
        try:
            blocks[name] = model.model_validate(parameters[name])
        except ValidationError as error:
            file = files.get(name, default_file)
            faults += fault_messages(error, model, name=name, where=str(file), given=given_keys)
    # All at once: otherwise each run would report only the next fault.
    if faults:
        lines = ["The parameters cannot be used."]
        n_more = len(faults) - _MAX_SHOWN_FAULTS
        if n_more > 1:
            faults = [*faults[:_MAX_SHOWN_FAULTS], f"and {n_more:,} more"]
        for fault in faults:
            lines.append(f"  - {fault}")
        raise InputError("\n".join(lines))
    return blocks


def fault_messages(
    error: ValidationError,
    model: type[BaseModel],
    *,
    name: str,
    where: str,
    given: Iterable[str] = (),
) -> list[str]:
    """Return one message per fault of a block.

    Args:
        error: the error that pydantic raised.
        model: type of the block.
        name: name of the block, which starts the dotted keys; empty for a file that is one block.
        where: the file to edit.
        given: dotted keys that were given with `--params` instead.
    """
    given_keys = set(given)
    faults = error.errors(include_url=False)
    locations = [fault["loc"] for fault in faults]
    messages = []
    for fault in faults:
        # For a list with a faulty item, pydantic also reports the list itself as too short.
        outer = fault["loc"]
        has_inner_fault = any(_is_inside(location, outer) for location in locations)
        if not has_inner_fault:
            message = _message(fault, model, name, where, given_keys)
            messages.append(message)
    return messages


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return "`what` is not known; did you mean `x`?", or all known names if none is similar."""
    known_names = sorted(set(known))
    suggestion = _nearest(name, known_names)
    if suggestion is not None:
        return f"{what} is not known; did you mean `{suggestion}`?"
    listed = ", ".join(f"`{each}`" for each in known_names)
    return f"{what} is not known; known are {listed}"


def _nearest(text: str, choices: list[str]) -> str | None:
    """Return the choice that is most similar to a text, if any is near enough."""
    # Shortened: comparing a text of megabytes would take minutes.
    short_text = _printable(text)
    matches = get_close_matches(short_text, choices, n=1)
    if not matches:
        return None
    return matches[0]


def _message(
    fault: Any, model: type[BaseModel], name: str, where: str, given_keys: set[str]
) -> str:
    location = fault["loc"]
    kind = fault["type"]
    key = _dotted_key(name, location)
    source = where
    if key in given_keys:
        source = "--params"
    if kind == "extra_forbidden":
        unknown_key = str(location[-1])
        block = _model_at(model, location[:-1])
        moved_to = getattr(block, "moved_keys", {}).get(unknown_key)
        if moved_to is not None:
            return f"{source}: the key `{key}` is now {moved_to}, in the same block"
        known = list(block.model_fields)
        message = unknown_name(f"the key `{key}`", unknown_key, known)
        return f"{source}: {message}"
    meaning = _meaning(model, location)
    if kind == "missing":
        return f"{source}: the key `{key}` is missing{meaning}"
    complaint = _complaint(fault)
    value = fault["input"]
    # A fault of a whole block is explained by the complaint alone; its value would fill the screen.
    if isinstance(value, Mapping | BaseModel):
        return f"{source}: `{key}`: {complaint}{meaning}"
    value_text = _value_text(value)
    return f"{source}: `{key}` is {value_text}: {complaint}{meaning}"


def _dotted_key(name: str, location: tuple[Any, ...]) -> str:
    """Return the key of a location in a block; a file that is one block has no name."""
    parts = []
    for part in (name, *location):
        if part != "":
            parts.append(_printable(str(part)))
    return ".".join(parts)


def _complaint(fault: Any) -> str:
    """Return what pydantic says is wrong, to stand after a colon."""
    # The prefix of errors that validators of this package raise.
    text = fault["msg"].removeprefix("Value error, ")
    complaint = _printable(text, _MAX_COMPLAINT_LENGTH)
    complaint = complaint[:1].lower() + complaint[1:]
    is_plain_value = isinstance(fault["input"], int | float)
    if fault["type"] == "string_type" and is_plain_value:
        complaint += ": a text that looks like a number stands in quotes"
    if fault["type"] == "literal_error":
        complaint += _nearest_choice(fault)
    return complaint


def _nearest_choice(fault: Any) -> str:
    """Return "; did you mean `x`?" for a value near one of the accepted ones, else nothing."""
    # pydantic gives the choices only as text: 'a', 'b' or 'c'
    expected = fault["ctx"]["expected"]
    choices = re.findall(r"'([^']*)'", expected)
    value = str(fault["input"])
    suggestion = _nearest(value, choices)
    if suggestion is None:
        return ""
    return f"; did you mean `{suggestion}`?"


def _value_text(value: object) -> str:
    """Return the text of a value, short enough for a message."""
    try:
        return _printable(repr(value))
    # An integer of thousands of digits, or a list that contains itself.
    except (ValueError, RecursionError):
        return f"too large a value ({type(value).__name__})"


def _printable(text: str, max_length: int = _MAX_VALUE_LENGTH) -> str:
    """Return a text shortened, with line breaks, lone surrogates and the like escaped."""
    if len(text) > max_length:
        text = f"{text[:max_length]}…"
    characters = []
    for character in text:
        if not character.isprintable():
            escaped = repr(character)
            character = escaped[1:-1]  # without the quotes
        characters.append(character)
    return "".join(characters)


def _is_inside(inner: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    depth = len(outer)
    is_deeper = len(inner) > depth
    return is_deeper and inner[:depth] == outer


def _model_at(model: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel]:
    """Return the model at `location`."""
    for part in location:
        if part in model.model_fields:
            field = model.model_fields[part]
            model = _first_model(field.annotation) or model
    return model


def _meaning(model: type[BaseModel], location: tuple[Any, ...]) -> str:
    """Return the field's description in parentheses, if it has one."""
    last = len(location) - 1
    for depth, part in enumerate(location):
        # Numbers are positions in lists; the model is that of the list's items.
        if not isinstance(part, str) or part not in model.model_fields:
            continue
        field = model.model_fields[part]
        if depth == last and field.description:
            return f" ({field.description})"
        model = _first_model(field.annotation) or model
    return ""


def _first_model(annotation: Any) -> type[BaseModel] | None:
    """Return the first model in an annotation such as `tuple[Block, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        model = _first_model(argument)
        if model is not None:
            return model
    return None
