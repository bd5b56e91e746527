"""Fields of the samples in WebDataset shards: how parameters name them, and their values.

A field is a file of the sample, such as `cls`, or an entry of a JSON file, such as `json.label`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_names import whole_number
from pu_kd_pipeline.images.sources.limits import MAX_TEXT_CHARACTERS
from pu_kd_pipeline.masking import visible_name

MAX_FIELD_BYTES = 2**20  # of a file that labels are read from
# More digits than `whole_number` reads; 19 of them may still be 64 bits.
_LONG_NUMBER = re.compile(r"-?[1-9][0-9]{17,}", re.ASCII)
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Field:
    """Where a value of a sample stands.

    Attributes:
        extension: of the file, in lower case, such as `cls` or `meta.json`.
        keys: those that lead to the value in a JSON file, from the outside in.
    """

    extension: str
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ".".join([self.extension, *self.keys])


DEFAULT_LABELS = (Field("cls"), Field("json", ("label",)))


def field_named(text: str) -> Field:
    """Return the field that a parameter names: `cls`, `txt`, `json.label`, `meta.json.a.b`."""
    parts = text.lstrip(".").split(".")
    lower = [part.lower() for part in parts]
    if "json" not in lower:
        return Field(".".join(lower))
    end = lower.index("json") + 1
    return Field(".".join(lower[:end]), tuple(parts[end:]))


def read_field(field: Field, content: bytes, where: str) -> tuple[int | str | None, bool]:
    """Return the value of a field, None where it is empty, and whether the file has the field.

    Args:
        field: which value.
        content: of the file that the field names.
        where: shard and sample, for messages.

    Raises:
        InputError: it is neither a whole number nor a text, or the file cannot be read.
    """
    if field.extension.split(".")[-1] == "json":
        value, is_there = _entry(_parsed(content, where), field.keys)
        return _plain_value(value, field, where), is_there
    text = _decoded(content, where).strip()
    number = whole_number(text)
    if _LONG_NUMBER.fullmatch(text):
        # 30 digits are too many, too, and Python refuses to read thousands.
        number = _checked_number(int(text[:30]), where)
    if number is not None:
        return number, True
    # Also "001", which may be the name of a folder.
    return _checked_text(text, where) or None, True


def names_of_entries(content: bytes, where: str) -> list[str]:
    """Return the keys of a JSON file, for messages."""
    parsed = _parsed(content, where)
    if not isinstance(parsed, dict):
        return []
    return [str(key) for key in parsed]


def _plain_value(value: Any, field: Field, where: str) -> int | str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return _checked_text(value.strip(), where) or None
    # As in a column of a Parquet file, where pandas writes a missing label so.
    if isinstance(value, float) and math.isnan(value):
        return None
    # `true` need not be class 1: it is a name.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return _checked_number(value, where)
    shown = visible_name(json.dumps(value)[:50])
    raise InputError(
        f"{where}: {field} is {shown}; a label must be a text or a whole number: name another "
        "field as `label_column` or `label_name_column` of the source"
    )


def _entry(parsed: Any, keys: tuple[str, ...]) -> tuple[Any, bool]:
    """Return the value that keys lead to, and whether there is one."""
    dotted = ".".join(keys)
    if isinstance(parsed, dict) and dotted in parsed:
        return parsed[dotted], True
    for key in keys:
        if not isinstance(parsed, dict) or key not in parsed:
            return None, False
        parsed = parsed[key]
    return parsed, True


def _parsed(content: bytes, where: str) -> Any:
    text = _decoded(content, where)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{where}: its JSON cannot be read ({exc}): fix the shard") from exc


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError(f"{where}: its label is not UTF-8 ({exc}): fix the shard") from exc


def _checked_text(text: str, where: str) -> str:
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InputError(
            f"{where}: its label has {len(text):,} characters, and {MAX_TEXT_CHARACTERS:,} are "
            "allowed: name another field as `label_column` of the source"
        )
    return text


def _checked_number(number: int, where: str) -> int:
    if not -_LARGEST - 1 <= number <= _LARGEST:
        raise InputError(f"{where}: its label has more than 64 bits: fix the shard")
    return number
