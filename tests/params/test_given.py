"""Values of `--params`: typed as YAML types them, and as text where a text is expected."""

from __future__ import annotations

from copy import deepcopy

import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.given import parse_given, with_texts
from tests.configuration import BLOCKS
from tests.test_environments import ENVIRONMENT_BLOCKS


@pytest.mark.parametrize(
    ("typed", "value", "text"),
    [
        ("1e3", 1000.0, "1e3"),
        ("007", 7, "007"),
        ("1_000", 1000, "1_000"),
        ("0x10", 16, "0x10"),
        ("1.10", 1.1, "1.10"),
        ("+5", 5, "+5"),
        ("12:30", 750, "12:30"),
        ("true", True, "true"),
        ("null", None, "null"),
        ("2026-11-28", "2026-11-28", "2026-11-28"),
        (" x ", "x", "x"),
        ("/a=b", "/a=b", "/a=b"),
        ("/a:b", "/a:b", "/a:b"),
        # No YAML at all
        ("@x", "@x", "@x"),
        ("'/a,b'", "/a,b", "/a,b"),
        ('"007"', "007", "007"),
        ("it's", "it's", "it's"),
        # Lists and mappings
        ("[3]", [3], "[3]"),
        ("[3,4,5]", [3, 4, 5], "[3,4,5]"),
        (" [3, 4] ", [3, 4], "[3, 4]"),
        ("[[0.5,1],[2,'x,]']]", [[0.5, 1], [2, "x,]"]], "[[0.5,1],[2,'x,]']]"),
        ("['x,,y', 'z']", ["x,,y", "z"], "['x,,y', 'z']"),
        ("{a: 1,b: [2,3]}", {"a": 1, "b": [2, 3]}, "{a: 1,b: [2,3]}"),
        ("'[3,4]'", "[3,4]", "[3,4]"),
        # Brackets elsewhere are part of a text.
        ("/a[1", "/a[1", "/a[1"),
        ("[0-9]*.png", "[0-9]*.png", "[0-9]*.png"),
    ],
)
def test_a_value_has_the_type_of_yaml_and_keeps_its_text(typed, value, text):
    given = parse_given(f"seed=1,block.key={typed}, other = 2")

    assert given == {"seed": 1, "block": {"key": value}, "other": 2}
    assert type(given["block"]["key"]) is type(value)
    assert given.texts == {"seed": "1", "block.key": text, "other": "2"}


def test_the_last_of_two_values_counts():
    given = parse_given("data=007,data=008x")

    assert given == {"data": "008x"}
    assert given.texts == {"data": "008x"}


def test_texts_survive_the_copy_that_kedro_makes():
    assert deepcopy(parse_given("data=007")).texts == {"data": "007"}


@pytest.mark.parametrize("typed", ["data=/a,b", "data", "=3", "a=1,,b"])
def test_an_item_without_key_or_value_is_refused_with_the_way_to_write_commas(typed):
    with pytest.raises(InputError, match="A value that holds a comma stands in quotes"):
        parse_given(typed)


@pytest.mark.parametrize("typed", ["data=[1", "seed=1,data=[1,2", "data={a: [1},seed=1"])
def test_a_bracket_that_is_not_closed_is_refused(typed):
    with pytest.raises(InputError, match="not closed"):
        parse_given(typed)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        # Blocks expect text.
        ("reporting.title=007", "007"),
        ("reporting.title=true", "true"),
        ("reporting.title=null", "null"),
        ("teacher.architecture=1e3", "1e3"),
        ("comparison.variants.fskd.rule=007", "007"),
        ("comparison.sweeps.critic=1.10", "1.10"),
        # null is a value of its own there.
        ("teacher.architecture=null", None),
        # Numbers stay numbers, also where a text would do.
        ("teacher.classes=010", 8),
        ("pu_training.epochs=1e1", 10.0),
        ("comparison.variants.fskd.budget=1_000", 1000),
        ("teacher.architecture_options.depth=007", 7),
        # A block or key that does not exist is refused later, by its name.
        ("teachr.architecture=007", 7),
        ("teacher.architectur=007", 7),
        ("teacher.input.size_px.x=007", 7),
    ],
)
def test_a_block_that_expects_text_gets_what_was_typed(typed, expected):
    given = parse_given(typed)
    value = with_texts(given, given.texts, ENVIRONMENT_BLOCKS)
    for part in typed.partition("=")[0].split("."):
        value = value[part]

    assert value == expected
    assert type(value) is type(expected)


def test_a_value_that_a_later_one_replaced_has_no_text():
    given = parse_given("reporting.title=007,reporting=3")

    assert with_texts(given, given.texts, BLOCKS) == {"reporting": 3}
