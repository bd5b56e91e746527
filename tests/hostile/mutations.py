"""Hypothesis strategies that damage valid files: byte by byte, or value by value in JSON."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# Sizes and offsets in binary formats: all bits clear, all bits set, and the limits of integers.
_ODD_NUMBERS = [bytes(size) for size in (1, 2, 4, 8)]
_ODD_NUMBERS += [b"\xff" * size for size in (1, 2, 4, 8)]
for _number in (1, 0x7FFF, 0x7FFFFFFF, 0x80000000):
    _ODD_NUMBERS += [struct.pack("<I", _number), struct.pack(">I", _number)]

_ODD_TEXTS = [b"-", b"9" * 30, b"null", b"[", b'"', b"{}", b"1e999", b".."]
_BYTE_MUTATIONS = ["bits", "odd", "cut", "drop", "double", "swap", "text", "insert"]


@st.composite
def damaged_bytes(draw: st.DrawFn, valid_files: list[bytes]) -> bytes:
    """Draw one of the valid files and damage it in one to six places."""
    valid = draw(st.sampled_from(valid_files))
    data = bytearray(valid)
    n_places = draw(st.integers(1, 6))
    for _ in range(n_places):
        kind = draw(st.sampled_from(_BYTE_MUTATIONS))
        _damage_once(draw, data, kind)
    return bytes(data)


def _positions(size: int) -> st.SearchStrategy[int]:
    # Headers and footers sit at the ends, so positions near them come up as often as all others.
    start_limit = min(64, size)
    end_limit = max(0, size - 64)
    near_start = st.integers(0, start_limit)
    near_end = st.integers(end_limit, size)
    anywhere = st.integers(0, size)
    return near_start | near_end | anywhere


def _damage_once(draw: st.DrawFn, data: bytearray, kind: str) -> None:
    positions = _positions(len(data))
    start = draw(positions)
    if kind == "bits" and start < len(data):
        data[start] ^= draw(st.integers(1, 255))
    elif kind == "odd":
        number = draw(st.sampled_from(_ODD_NUMBERS))
        end = start + len(number)
        data[start:end] = number
    elif kind == "cut":
        del data[start:]
    elif kind == "drop":
        end = start + draw(st.integers(1, 64))
        del data[start:end]
    elif kind == "double":
        end = start + draw(st.integers(1, 64))
        data[start:start] = data[start:end]
    elif kind == "swap":
        other_start = draw(positions)
        length = draw(st.integers(1, 16))
        end = start + length
        other_end = other_start + length
        part = data[start:end]
        other_part = data[other_start:other_end]
        # The parts may overlap, or the file may end in one: then its length may change.
        data[start:end] = other_part
        data[other_start:other_end] = part
    elif kind == "text":
        data[start : start + 1] = draw(st.sampled_from(_ODD_TEXTS))
    else:
        data[start:start] = draw(st.binary(min_size=1, max_size=16))


_ODD_VALUES: list[Any] = [None, True, -1, 0, 1, 2**31, 2**63, 10**30]
_ODD_VALUES += [1.5, float("nan"), float("inf"), "", "x", "..", "../x", "/", "\0"]
# Half of a surrogate pair is valid in JSON, but cannot be encoded as UTF-8.
_ODD_VALUES += ["\ud800", "a" * 5_000, [], [None], [[]], {}, {"": 1}, {"a": {"b": []}}]


@st.composite
def damaged_json(draw: st.DrawFn, valid_files: list[bytes]) -> bytes:
    """Draw valid JSON with one to three values replaced, removed or added: it still parses."""
    valid = draw(st.sampled_from(valid_files))
    value = json.loads(valid)
    n_changes = draw(st.integers(1, 3))
    for _ in range(n_changes):
        # An empty container has no value to change.
        containers = [container for container in _containers(value) if container]
        if not containers:
            break
        container = draw(st.sampled_from(containers))
        _change_one_value(draw, container)
    return json.dumps(value).encode()


def _change_one_value(draw: st.DrawFn, container: Any) -> None:
    key = draw(st.sampled_from(_keys(container)))
    # "replace" is listed twice, so that it is drawn twice as often.
    kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    # A copy, since a later change may reach into a value that was put in.
    odd_value = draw(st.sampled_from(_ODD_VALUES))
    new_value = copy.deepcopy(odd_value)
    if kind == "replace":
        container[key] = new_value
    elif kind == "remove":
        del container[key]
    elif isinstance(container, dict):
        new_key = draw(st.sampled_from(["surprise", "", "n"]))
        container[new_key] = new_value
    else:
        container.append(new_value)


def _keys(container: Any) -> list[Any]:
    """Return the keys of a dict, or the positions of a list."""
    if isinstance(container, dict):
        return sorted(container)
    positions = range(len(container))
    return list(positions)


def _containers(value: Any) -> Iterator[Any]:
    """Yield every dict and list in a JSON value, the outermost first."""
    if isinstance(value, dict):
        children = list(value.values())
    elif isinstance(value, list):
        children = value
    else:
        return
    yield value
    for child in children:
        yield from _containers(child)
