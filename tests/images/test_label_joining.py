"""A label is joined to the class of its name, or refused; never to another class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_joining import Rule, join_labels
from pu_kd_pipeline.images.label_keys import SourceLabel
from pu_kd_pipeline.images.label_names import plain_spelling
from tests.images.sources.examples import source_of

CIFAR10 = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]
STL10 = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
CLASSES = ["cat", "dog", "night owl"]


def joined(
    source_labels: Sequence[Any],
    class_names: Sequence[str] = CLASSES,
    **parameters: Any,
) -> list[int | None]:
    block = {"labels": "truth", **parameters}
    source = source_of("folder", path="x", **block)
    # Tuples of number, name, and the file where that matters.
    distinct = [SourceLabel(*label) for label in source_labels]
    found = join_labels(distinct, source, class_names, "pool[0]")
    return [each.class_index for each in found]


def refusal(*arguments: Any, **parameters: Any) -> str:
    with pytest.raises(InputError) as error:
        joined(*arguments, **parameters)
    return str(error.value)


# Few characters, so that equal, similar and confusable names are frequent.
NAMES = st.text(alphabet="aAbB1-_ ßs", min_size=1, max_size=4).filter(str.strip)
CLASS_SETS = st.lists(NAMES, min_size=2, max_size=5, unique=True)
LABEL_SETS = st.lists(NAMES, min_size=1, max_size=6, unique=True)


@given(class_names=CLASS_SETS, names=LABEL_SETS, mode=st.sampled_from(["classes", "truth"]))
def test_a_name_is_its_own_class_or_one_that_only_it_is_spelled_like(
    class_names: list[str], names: list[str], mode: str
) -> None:
    labels = [(None, name) for name in names]
    try:
        found = joined(labels, class_names, labels=mode)
    except InputError:
        # Never where every name is a class exactly.
        assert not set(names) <= set(class_names)
        return

    for name, index in zip(names, found, strict=True):
        if name in class_names:
            assert index == class_names.index(name)
        elif index is not None:
            spelling = plain_spelling(name)
            spelled_classes = list(map(plain_spelling, class_names))
            spelled_names = list(map(plain_spelling, names))
            assert spelled_classes.index(spelling) == index
            # No other class, and no other name, is spelled like it.
            assert spelled_classes.count(spelling) == 1
            assert spelled_names.count(spelling) == 1


@given(
    class_names=CLASS_SETS,
    names=LABEL_SETS,
    numbers=st.lists(st.one_of(st.none(), st.integers(-1, 6)), min_size=6, max_size=6),
    data=st.data(),
)
def test_permuted_classes_permute_the_result(
    class_names: list[str], names: list[str], numbers: list[int | None], data: st.DataObject
) -> None:
    labels = list(zip(numbers, names, strict=False))
    permuted = data.draw(st.permutations(class_names))
    try:
        found = joined(labels, class_names, labels="classes")
        found_permuted = joined(labels, permuted, labels="classes")
    except InputError:
        assume(False)
    for index, index_permuted in zip(found, found_permuted, strict=True):
        if index is None or index_permuted is None:
            assert index is index_permuted
        else:
            assert class_names[index] == permuted[index_permuted]


@given(order=st.permutations(range(10)))
def test_names_decide_whatever_the_numbers_next_to_them_are(order: list[int]) -> None:
    labels = list(zip(order, CIFAR10, strict=True))
    assert joined(labels, CIFAR10) == list(range(10))


def test_a_numbering_that_partly_agrees_is_not_the_teachers() -> None:
    labels = list(enumerate(STL10))
    found = joined(labels, CIFAR10)
    # Car and monkey are no names of CIFAR-10's classes.
    assert found == [0, 2, None, 3, 4, 5, 7, None, 8, 9]


def test_another_name_with_the_number_of_a_class_is_unclear() -> None:
    names = ["airplane", "car", *CIFAR10[2:]]
    message = refusal(list(enumerate(names)), CIFAR10)
    assert "its label 1 is 'car', the teacher's class 1 is 'automobile'" in message
    # A map to complete.
    assert 'label_map: {"airplane": 0, "car": ?, "bird": 2' in message


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [(0, "cat"), (1, "dog"), (1, "cat")],
            "the number 1 is cat, dog",
        ),
        (
            [(0, "cat"), (3, "cat")],
            "'cat' has the numbers 0, 3",
        ),
        (
            [(None, "Cat"), (None, "CAT")],
            "the label 'CAT' is not spelled like a class",
        ),
        (
            [(None, "1"), (None, "cat")],
            "the teacher's class 1 is 'dog', and whether",
        ),
        (
            [(None, "0.0"), (None, "1.0"), (None, "7.0")],
            "its label 0 is '0.0', the teacher's class 0 is 'cat', and whether",
        ),
        (
            [(None, "01"), (None, "nan"), (None, "0.5")],
            "its label 1 is '01', the teacher's class 1 is 'dog', and whether",
        ),
        (
            [(0, None), (7, None)],
            "7 are no positions among the teacher's 3 classes",
        ),
        (
            [(0, "dog", 0), (0, None, 1)],
            "elsewhere in this source the number 0 is 'dog'",
        ),
    ],
)
def test_labels_that_may_be_one_class_or_another_are_refused(labels: Any, message: str) -> None:
    assert message in refusal(labels)


def test_every_file_counts_in_its_own_way() -> None:
    labels = [(0, "cat", 0), (1, "dog", 0), (0, "dog", 1), (1, "cat", 1)]
    assert joined(labels) == [0, 1, 1, 0]
    # Where classes have only numbers, the two ways cannot be distinguished.
    assert "the number 0 is 'cat' in one file and 'dog' in another" in refusal(labels, ["0", "1"])


def test_files_may_have_labels_of_different_kinds() -> None:
    labels = [(0, None, 0), (1, None, 0), (None, "dog", 1), (None, "Night_owl", 1)]
    assert joined(labels) == [0, 1, 1, 2]


def test_a_number_is_the_class_that_is_called_so() -> None:
    # A teacher that counts from one: by its position, 1 would be the class 2.
    numbers = [(1, None), (3, None)]
    assert joined(numbers, ["1", "2", "3"]) == [0, 2]
    mixed = [(1, None), (0, None)]
    assert joined(mixed, ["cat", "1"], labels="classes") == [1, None]
    # Sources have read "1.0" as 1.
    assert joined(numbers, ["1.0", "2.0", "3.0"]) == [0, 2]
    assert "1 may be the teacher's class '1' or '1.0'" in refusal(numbers, ["1.0", "1", "3.0"])
    # Padded names are names. 1 may be the first or the second of them.
    one = [(1, None)]
    assert joined(one, ["01", "02"], labels="classes") == [None]


def test_other_spellings_of_classes_that_are_numbers_are_refused() -> None:
    digits = [str(number) for number in range(11)]
    # Of padded numbers, only the last one is a class.
    padded = [(None, f"{number:02}") for number in range(11)]
    message = refusal(padded, digits)
    assert "its label '00' is not spelled like the teacher's class '0'" in message
    assert 'label_map: {"00": ?' in message
    label_map = {f"{number:02}": number for number in range(11)}
    assert joined(padded, digits, label_map=label_map) == list(range(11))
    # Numbers of no class are no other spelling.
    assert joined([(None, "5"), (None, "11.0"), (None, "inf")], digits) == [5, None, None]


def test_a_number_and_a_name_that_is_another_number_are_refused() -> None:
    # What sorting "0", "1", "10", "2" as text does.
    digits = [str(number) for number in range(11)]
    message = refusal([(0, "0"), (2, "10")], digits)
    assert "its label 2 has the name '10'" in message
    others = [(3, "3 - three"), (None, "5"), (40, "letter e")]
    assert joined(others, digits) == [3, 5, None]


def test_a_name_twice_is_no_fault_where_only_numbers_count() -> None:
    # ImageNet has two classes that are called crane.
    assert joined([(0, "crane"), (1, "crane")], ["0", "1"]) == [0, 1]


def test_a_key_is_the_label_that_is_spelled_exactly_so() -> None:
    labels = [(None, "cat"), (None, "Cat"), (None, "Dog")]
    assert joined(labels, label_map={"cat": 2, "dog": 1}) == [2, None, 1]


@pytest.mark.parametrize(
    ("labels", "label_map", "message"),
    [
        (
            [(None, "cat"), (None, "CAT")],
            {"Cat": 0},
            "may mean more than one of CAT, cat",
        ),
        (
            [(None, "tabby")],
            {"tabby": 0, "tabyb": 1},
            "did you mean 'tabby' for 'tabyb'?",
        ),
        (
            [(0, "tabby")],
            {"0": 0, "tabby": 1},
            "of the same images to different classes",
        ),
        (
            [(1, "10"), (0, "1")],
            {"1": 0},
            "the number of '10' and the name of other images",
        ),
    ],
)
def test_keys_that_may_mean_one_label_or_another_are_refused(
    labels: Any, label_map: dict[str, int], message: str
) -> None:
    assert message in refusal(labels, label_map=label_map)


def test_the_rule_is_reported() -> None:
    source = source_of("folder", path="x", labels="truth")
    labels = [
        SourceLabel(None, "cat"),
        SourceLabel(None, "DOG"),
        SourceLabel(2, None),
        SourceLabel(None, "car"),
    ]
    found = join_labels(labels, source, CLASSES, "pool[0]")
    rules = [each.rule for each in found]
    assert rules == [Rule.NAME, Rule.SPELLING, Rule.POSITION, Rule.NONE]
