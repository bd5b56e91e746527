"""Parameters as texts: types, structure and order count."""

from __future__ import annotations

import datetime
import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pu_kd_pipeline.incremental.parameter_texts import NotComparableError, parameter_texts
from pu_kd_pipeline.params.data_ingestion import ImageSource
from pu_kd_pipeline.params.teacher import InputSpec

DIFFERENT: list[Any] = [
    None,
    1,
    True,
    1.0,
    "1",
    "true",
    "null",
    0,
    False,
    0.0,
    -0.0,
    math.nan,
    math.inf,
    "NaN",
    "",
    b"1",
    Path("1"),
    datetime.date(2026, 1, 1),
    "2026-01-01",
    [],
    (),
    {},
    [1],
    (1,),
    [True],
    (1.0,),
    {1},
    frozenset({1}),
    [[1]],
    [[1], []],
    ["1, 2"],
    ["1", "2"],
    [1, 2],
    {"b.c": 1},
    {"b": {"c": 1}},
    {"b": {"c": True}},
    {"b": {"c": None}},
    {"b": {}},
    {"b": None},
    {1: 1},
    {"1": 1},
    {True: 1},
    {None: 1},
    [{"b": 1}],
    ({"b": 1},),
    {"[0]": {"b": 1}},
    [{"b": 1}, {}],
    2**5000,
    2**50_000,
    np.float64(1),
    "\ud800",
    "\\ud800",
]


def test_values_of_other_types_or_structure_have_other_texts():
    texts = [parameter_texts("p", value) for value in DIFFERENT]
    for one, other in itertools.combinations(texts, 2):
        assert one != other


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(leaves, inner, max_size=3),
    max_leaves=8,
)


def without_keys_that_equal(value: Any) -> Any:
    """Return a text that is equal for equal values of equal types and orders."""
    return re.sub(r"\s", " ", repr(value))


@given(one=values, other=values)
def test_equal_texts_mean_equal_values(one, other):
    texts = [list(parameter_texts("p", value).items()) for value in (one, other)]
    is_equal = without_keys_that_equal(one) == without_keys_that_equal(other)
    assert (texts[0] == texts[1]) == is_equal


def test_a_block_has_a_readable_text_per_key():
    block = InputSpec(size_px=8, channels=1, mean=(0.5,), std=(1.0,))
    assert parameter_texts("input", block) == {
        "input.size_px": "8",
        "input.channels": "1",
        "input.mean": "(0.5)",
        "input.std": "(1.0)",
        "input.resize": '"squash"',
        "input.crop_ratio": "0.875",
        "input.interpolation": '"bilinear"',
        "input.channel_order": '"rgb"',
        "input.value_range": "(0.0, 1.0)",
    }


def test_each_source_of_a_list_has_its_own_keys():
    source = ImageSource.model_validate({"type": "folder", "path": "images"})
    texts = parameter_texts("pool", (source,))
    assert texts["pool"] == "tuple of 1"
    assert texts["pool[0].path"] == '"images"'


def test_an_object_whose_value_is_not_known_is_refused():
    with pytest.raises(NotComparableError, match=r"p\.a is of type ndarray"):
        parameter_texts("p", {"a": np.zeros(3)})
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(NotComparableError):
        parameter_texts("p", endless)


def test_no_record_keeps_a_password_and_another_one_is_seen():
    first = parameter_texts("source", {"options": {"password": "hunter2"}})
    second = parameter_texts("source", {"options": {"password": "hunter3"}})
    assert "hunter" not in str([first, second])
    assert first != second
    assert parameter_texts("teacher", {"output": {"key": "logits"}}) == {
        "teacher.output.key": '"logits"'
    }
