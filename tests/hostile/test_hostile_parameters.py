"""Parameters of the wrong type, sign or range: accepted as given, or refused with block and key."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
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

HOSTILE_NUMBERS: list[Any] = [math.nan, math.inf, -math.inf, -0.0, 0, 0.0, -1, 1, 2, 0.5, 1.5]
# Denormal, near the largest float, beyond 32 and 64 bits, and beyond any float.
HOSTILE_NUMBERS += [-1e-300, 1e-320, 1e308, 2**31, 2**63, 2**64, -(2**63)]
HOSTILE_NUMBERS += [10**400, -(10**400), 10**5000, True, False, None, 1j]
HOSTILE_TEXTS: list[Any] = ["", " ", "0", "-1", "nan", "inf", "1e3", "1_0", "٣", "true", "null"]
HOSTILE_TEXTS += ["x" * 10_000, "\0", "\n", "\u202e", "é", "e\u0301", "\ud800", "../..", "/"]
HOSTILE_TEXTS += ["~nobody/x", "a:b", "${oc.env:HOME}", b"\xff", b"1"]
HOSTILE_CONTAINERS: list[Any] = [[], [[]], [None], [math.nan], [True], ["x"], [0] * 1_000, ()]
HOSTILE_CONTAINERS += [{}, {"": None}, {1: 2}, {"x": {"y": [{}]}}, {"\ud800": "\0"}, object()]
HOSTILE_VALUES = HOSTILE_NUMBERS + HOSTILE_TEXTS + HOSTILE_CONTAINERS

TRUE_TEXTS = ("true", "1", "yes", "on", "t", "y")
FALSE_TEXTS = ("false", "0", "no", "off", "f", "n")


@cache
def valid_blocks() -> list[dict[str, Any]]:
    """Return the blocks of every environment that comes with the project."""
    environments = []
    with pytest.MonkeyPatch.context() as patch:
        # Some environments read their images from this folder; it need not exist.
        patch.setenv(IMAGES_VARIABLE, "/images")
        for name in sorted(environment_names()):
            environments.append(read_parameters(CONF, name))
    return environments


def environment_names() -> set[str]:
    """Return the folders of conf/ that hold parameters."""
    return {file.parent.name for file in CONF.glob("*/param*.yml")}


def places(value: Any, parents: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value, containers included."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, child in items:
        yield (*parents, key)
        yield from places(child, (*parents, key))


def replaced(block: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a block with another value at one place."""
    block = copy.deepcopy(block)
    container = block
    for key in place[:-1]:
        container = container[key]
    container[place[-1]] = value
    return block


def value_at(block: Any, place: tuple[Any, ...]) -> Any:
    """Return the value at one place of a checked block; None where a key is left out."""
    value = block
    for key in place:
        if not isinstance(value, tuple | list) and key not in value:
            return None
        value = value[key]
    return value


# --- whether a checked value means what was given


def means(given: Any, found: Any) -> bool:
    """Return whether a checked value has the meaning of the given one."""
    if isinstance(given, Mapping):
        return isinstance(found, Mapping) and mapping_means(given, found)
    if isinstance(given, list | tuple):
        return isinstance(found, tuple | list) and list_means(given, found)
    # Before numbers: True is an int in Python.
    if isinstance(given, bool) or given is None:
        return found is given
    if isinstance(given, int | float) and isinstance(found, int | float):
        return number_means(given, found)
    if isinstance(given, str) and isinstance(found, int | float):
        return text_means_number(given, found)
    if isinstance(given, bytes) and found != given:
        # pydantic reads bytes where a text is expected.
        return means(given.decode("utf-8", "replace"), found)
    return bool(given == found)


def list_means(given: Sequence[Any], found: Sequence[Any]) -> bool:
    if len(given) != len(found):
        return False
    return all(map(means, given, found))


def text_means_number(given: str, found: float) -> bool:
    # YAML 1.1 and pydantic read more words than true and false as truth values.
    if found is True:
        return given.lower() in TRUE_TEXTS
    if found is False:
        return given.lower() in FALSE_TEXTS
    return float(given) == found


def mapping_means(given: Mapping[Any, Any], found: Mapping[Any, Any]) -> bool:
    for key, value in given.items():
        # A key without a value may be left out.
        if value is None and key not in found:
            continue
        if key not in found or not means(value, found[key]):
            return False
    return True


def number_means(given: float, found: float) -> bool:
    # Options of architectures take any number, and nan is not equal to itself.
    are_both_nan = given != given and found != found
    if isinstance(found, int):
        # 1.5 must not have become 1.
        return given == found
    return are_both_nan or float(given) == float(found)


# --- tests


def checked(name: str, block: Any) -> BaseModel:
    """Return the typed block of one name."""
    models = {name: MODELS[name]}
    blocks = check_parameters({name: block}, models, files={}, given={})
    return blocks[name]


def test_every_block_of_every_environment_is_accepted_as_given() -> None:
    environments = valid_blocks()
    assert set(MODELS) <= set(environments[0])

    for blocks in environments:
        for name in MODELS:
            given_block = blocks[name]
            found = checked(name, given_block).model_dump()
            assert means(given_block, found), name


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


def containers_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for lists and dicts of what another one draws."""
    lists = st.lists(inner, max_size=3)
    dicts = st.dictionaries(st.text(max_size=5), inner, max_size=3)
    return lists | dicts


ANYTHING = st.recursive(SCALARS, containers_of, max_leaves=6)


@settings(max_examples=600, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_one_hostile_value_is_taken_as_it_is_or_refused_by_its_key(data: st.DataObject) -> None:
    environments = valid_blocks()
    # By number: drawn blocks themselves would be printed in full where the test fails.
    number = data.draw(st.integers(0, len(environments) - 1))
    blocks = environments[number]
    name = data.draw(st.sampled_from(sorted(MODELS)))
    valid_block = blocks[name]
    all_places = list(places(valid_block))
    place = data.draw(st.sampled_from(all_places))
    value = data.draw(st.sampled_from(HOSTILE_VALUES) | ANYTHING)
    hostile_block = replaced(valid_block, place, value)
    try:
        block = checked(name, hostile_block)
    except InputError as error:
        assert_names_the_place(str(error), name, place)
        return
    found = value_at(block.model_dump(), place)

    assert means(value, found), (place, value, found)

    if name == "data_ingestion":
        # The checks before a run must not fail on it in any other way.
        with suppress(InputError):
            check({name: block})


def assert_names_the_place(message: str, name: str, place: tuple[Any, ...]) -> None:
    assert f"`{name}" in message
    # Positions in lists need not be in the message.
    keys = [key for key in place if isinstance(key, str)]
    named_keys = [key for key in keys if key in message]
    assert named_keys, (message, place)
    assert len(message) < 2_000
    message.encode()  # fails where the message cannot be printed
