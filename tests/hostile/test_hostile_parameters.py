"""Parameters of the wrong type, sign or range: accepted with what they say, or refused with block and key."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.preflight import check
from pu_kd_pipeline.params.environment import IMAGES_VARIABLE, read_parameters
from pu_kd_pipeline.params.validation import check_parameters
from tests.test_environments import ENVIRONMENT_BLOCKS as MODELS

CONF = Path(__file__).resolve().parents[2] / "conf"
HOSTILE = [
    math.nan, math.inf, -math.inf, -0.0, 0, 0.0, -1, 1, 2, 0.5, 1.5, -1e-300, 1e-320, 1e308, 2**31, 2**63, 2**64,
    10**400, -(10**400), 10**5000, -(2**63), True, False, None, "", " ", "0", "-1", "nan", "inf", "1e3", "1_0", "٣",
    "true", "null", "x" * 10_000, "\0", "\n", "\u202e", "é", "e\u0301", "\ud800", "../..", "/", "~nobody/x", "a:b",
    "${oc.env:HOME}", b"\xff", b"1", [], [[]], [None], [math.nan], [True], ["x"], [0] * 1_000, {}, {"": None}, {1: 2},
    {"x": {"y": [{}]}}, {"\ud800": "\0"}, (), 1j, object(),
]  # fmt: skip


@cache
def valid_blocks() -> list[dict[str, Any]]:
    """The blocks of every environment that comes with the project."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(IMAGES_VARIABLE, "/images")
        names = sorted(
            folder.name
            for folder in CONF.iterdir()
            if folder.is_dir() and any(folder.glob("param*.yml"))
        )
        return [read_parameters(CONF, name) for name in names]


def places(value: Any, inside: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where every value is, those that hold others included."""
    for key, each in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield (*inside, key)
        yield from places(each, (*inside, key))


def replaced(block: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a block with another value at one place."""
    block = copy.deepcopy(block)
    holder = block
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return block


def means(given: Any, found: Any) -> bool:
    """Return whether a checked value says what was given."""
    if isinstance(given, Mapping):
        given = {key: value for key, value in given.items() if value is not None or key in found}
        return isinstance(found, Mapping) and all(
            key in found and means(given[key], found[key]) for key in given
        )
    if isinstance(given, list | tuple):
        return (
            isinstance(found, tuple | list)
            and len(given) == len(found)
            and all(map(means, given, found))
        )
    if isinstance(given, bool) or given is None:
        return found is given
    if isinstance(given, int | float) and isinstance(found, int | float):
        is_same = float(given) == float(found) or (
            given != given and found != found
        )  # not a number: options take any
        return is_same and (not isinstance(found, int) or given == found)
    if isinstance(given, str) and isinstance(found, bool):
        return given.lower() in (
            ("true", "1", "yes", "on", "t", "y") if found else ("false", "0", "no", "off", "f", "n")
        )
    if isinstance(given, str) and isinstance(found, int | float):
        return float(given) == found
    if isinstance(given, bytes):
        return found == given or means(given.decode("utf-8", "replace"), found)
    return bool(given == found)


def checked(name: str, block: Any) -> BaseModel:
    return check_parameters({name: block}, {name: MODELS[name]}, files={}, given={})[name]


def test_every_block_of_every_environment_is_accepted_as_it_says() -> None:
    assert set(MODELS) <= set(valid_blocks()[0])
    for blocks in valid_blocks():
        for name in MODELS:
            assert means(blocks[name], checked(name, blocks[name]).model_dump()), name


@settings(max_examples=600, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_one_hostile_value_is_taken_as_it_is_or_refused_by_its_key(data: st.DataObject) -> None:
    environments = valid_blocks()
    blocks = environments[data.draw(st.integers(0, len(environments) - 1))]
    name = data.draw(st.sampled_from(sorted(MODELS)))
    place = data.draw(st.sampled_from(list(places(blocks[name]))))
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=6,
    )
    value = data.draw(st.sampled_from(HOSTILE) | anything)
    try:
        block = checked(name, replaced(blocks[name], place, value))
    except InputError as refusal:
        message = str(refusal)
        assert f"`{name}" in message
        keys = [str(key) for key in place if isinstance(key, str)]
        assert any(key in message for key in keys), (message, place)
        assert len(message) < 2_000
        message.encode()  # can be printed
    else:
        found = block.model_dump()
        for key in place:
            found = found[key] if isinstance(found, tuple | list) or key in found else None
        assert means(value, found), (place, value, found)
        if name == "data_ingestion":
            with suppress(InputError):
                check({name: block})
