"""Parameters as texts that differ whenever the values, their types or their structure do."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from pu_kd_pipeline.masking import MASK, is_secret_option, without_credentials

_PLAIN_KEY = re.compile(r"\w[\w -]*")
# Types whose `str` says everything.
_PRINTABLE = (
    PurePath,
    complex,
    range,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)
_MAX_DECIMAL_BITS = 10_000  # Python refuses to write larger integers as decimal numbers


class NotComparableError(TypeError):
    """A value of a type that cannot be compared with one of another process."""

    def __init__(self, key: str, value: Any) -> None:
        super().__init__(f"{key} is of type {type(value).__qualname__}, which cannot be compared")


def parameter_texts(name: str, value: Any) -> dict[str, str]:
    """Return dotted key -> text of a parameter or a block.

    Mappings, models and lists that hold them have a key per item, other lists are one text.

    Raises:
        NotComparableError: it holds an object whose value is not known.
    """
    try:
        return dict(_leaves(name, value))
    except RecursionError:
        raise NotComparableError(name, value) from None


def _leaves(key: str, value: Any) -> Iterator[tuple[str, str]]:
    items = _items(value)
    if items:
        for step, inner in items:
            yield from _leaves(f"{key}.{step}", inner)
    elif isinstance(value, list | tuple) and any(map(_items, value)):
        # So that a list and a tuple of the same items differ.
        yield key, f"{type(value).__name__} of {len(value)}"
        for position, inner in enumerate(value):
            yield from _leaves(f"{key}[{position}]", inner)
    else:
        yield key, _leaf_text(key, value)


def _leaf_text(key: str, value: Any) -> str:
    text = _text(key, value)
    name = key.rpartition(".")[2]
    if isinstance(value, str) and is_secret_option(name):
        # No record keeps a password. Another one counts, because its name may mean something else.
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return f"{MASK} ({digest})"
    return text


def _items(value: Any) -> list[tuple[str, Any]]:
    """Return (text of the key, value) of what a mapping or model holds."""
    items = []
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            items.append((name, getattr(value, name)))
        extra = value.model_extra or {}
        items.extend(extra.items())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            items.append((field.name, getattr(value, field.name)))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            items.append((_key_text(key), inner))
    return items


def _key_text(key: Any) -> str:
    """Return a key as it is if it is a simple name; else so that it cannot be confused with one."""
    if type(key) is str and _PLAIN_KEY.fullmatch(key):
        return key
    return f"<{_text('a key', key)}>"


def _text(key: str, value: Any) -> str:
    kind = type(value)
    if value is None or kind is bool:
        return json.dumps(value)
    if isinstance(value, Enum):
        return f"{kind.__qualname__}.{value.name}"
    for base in (int, float, str):
        # Such as a number of NumPy, which computes in another way.
        if isinstance(value, base) and kind is not base:
            plain_text = _text(key, base(value))
            return f"{kind.__qualname__} {plain_text}"
    if kind is int:
        return _integer_text(value)
    if kind is float:
        return repr(value)
    if kind is str:
        # A token that was renewed makes nothing stale, and no record keeps one.
        shown = without_credentials(value)
        return json.dumps(shown, ensure_ascii=False)
    if kind is bytes:
        digest = hashlib.sha256(value)
        return f"bytes {digest.hexdigest()}"
    if isinstance(value, _PRINTABLE):
        return f"{kind.__qualname__} {value}"
    return _container_text(key, value)


def _container_text(key: str, value: Any) -> str:
    kind = type(value)
    texts = []
    if isinstance(value, BaseModel | Mapping):
        for step, inner in _items(value):
            text = _text(key, inner)
            texts.append(f"{step}: {text}")
        joined = ", ".join(texts)
        return f"{{{joined}}}"
    if not isinstance(value, list | tuple | set | frozenset):
        raise NotComparableError(key, value)
    for item in value:
        texts.append(_text(key, item))
    if isinstance(value, set | frozenset):
        # They are in another order in every process.
        texts.sort()
    joined = ", ".join(texts)
    if kind is list:
        return f"[{joined}]"
    if kind is tuple:
        return f"({joined})"
    return f"{kind.__qualname__}({joined})"


def _integer_text(value: int) -> str:
    if value.bit_length() > _MAX_DECIMAL_BITS:
        return hex(value)
    return str(value)
