"""Spellings of one name, and names that only look alike."""

from __future__ import annotations

import unicodedata

import pytest

from pu_kd_pipeline.images.label_names import match_names, plain_spelling, whole_number

DECOMPOSED = unicodedata.normalize("NFD", "Café")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Night_Owl", "night owl"),
        ("T-Shirt", "t_shirt"),
        ("night  owl ", "night owl"),
        (DECOMPOSED, "café"),
    ],
)
def test_case_separators_and_unicode_form_do_not_count(name: str, other: str) -> None:
    assert match_names([name], [other]).known == {name: other}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("-1", "1"),  # a sign
        ("A-", "A"),  # a grade
        ("class -1", "class 1"),
        ("Maße", "Masse"),  # two words of German, which casefold makes one
        ("m²", "m2"),
        ("tshirt", "t-shirt"),
        ("007", "7"),
        ("1.0", "1"),
    ],
)
def test_what_may_be_another_name_is_another_name(name: str, other: str) -> None:
    matches = match_names([name], [other])
    assert not matches.known
    assert not matches.unclear
    assert plain_spelling(name) != plain_spelling(other)


def test_an_exact_name_is_that_name_whatever_else_there_is() -> None:
    names = ["A", "a", "t-shirt", "t_shirt", "t shirt", "Straße", "strasse"]
    matches = match_names(names, names)
    assert matches.known == {name: name for name in names}


def test_a_spelling_of_two_known_names_is_unclear() -> None:
    matches = match_names(["T SHIRT"], ["t-shirt", "t_shirt", "dress"])
    assert not matches.known
    assert matches.unclear == {"T SHIRT": ["t-shirt", "t_shirt"]}


def test_two_spellings_of_one_known_name_are_unclear() -> None:
    # They may be two classes of the source, as A and a are.
    assert match_names(["Cat", "CAT"], ["cat"]).unclear == {
        "Cat": ["CAT", "cat"],
        "CAT": ["Cat", "cat"],
    }
    with_exact = match_names(["cat", "CAT"], ["cat"])
    assert with_exact.known == {"cat": "cat"}
    assert with_exact.unclear == {"CAT": ["cat"]}


@pytest.mark.parametrize("name", ["", "07", "1.0", "+1", "-0", "١", " 1", "9" * 30])
def test_only_the_usual_way_to_write_a_number_is_one(name: str) -> None:
    assert whole_number(name) is None
    assert whole_number("-7") == -7
