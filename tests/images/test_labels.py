"""Labels of sources as classes of the teacher, shares, and draws."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.labels import draw, in_share, with_teacher_labels
from tests.images.sources.examples import source_of

CLASSES = ("cat", "dog", "night owl")
NUMBERED_CLASSES = ("0", "1", "2")  # of a teacher whose classes have no names


def table(labels: Any = None, names: Any = None) -> pd.DataFrame:
    """Return the listing of a source that has labels, names of labels, or both."""
    n = len(labels or names)
    nothing = [None] * n
    ids = [f"i{row}" for row in range(n)]
    # The types of a listing, which have a null.
    columns = {
        "id": ids,
        "label": pd.Series(labels or nothing, dtype="Int64"),
        "label_name": pd.Series(names or nothing, dtype="str"),
    }
    return pd.DataFrame(columns)


class Labeled(NamedTuple):
    """The class of every image, and whether it is relevant; None where that is unknown."""

    classes: list[int | None]
    is_relevant: list[bool | None]


def labeled(listing: pd.DataFrame, classes: Any = CLASSES, **parameters: Any) -> Labeled:
    source = source_of("folder", path="x", **parameters)
    result = with_teacher_labels(listing, source, classes, "pool[0]")
    dtypes = result[["label", "relevant"]].dtypes
    assert dtypes.tolist() == ["Int32", "boolean"]

    # pd.NA cannot be compared, None can.
    columns = result[["label", "relevant"]].astype(object)
    as_none = columns.where(columns.notna(), None)
    classes = as_none["label"].tolist()
    is_relevant = as_none["relevant"].tolist()
    return Labeled(classes, is_relevant)


def test_labels_that_are_ignored_are_null() -> None:
    listing = table([0, 1])
    found = labeled(listing)

    assert found.classes == [None, None]
    assert found.is_relevant == [None, None]


def test_a_class_number_is_the_teachers() -> None:
    listing = table([2, 0])
    found = labeled(listing, labels="classes")

    assert found.classes == [2, 0]
    assert found.is_relevant == [True, True]


def test_every_image_needs_a_class_where_labels_are_classes() -> None:
    unknown = table([0, 7, 7, 3])
    message = (
        r"the teacher has 3 classes \(cat, dog, night owl\); the labels of 3 images are none of "
        r"them: 7 \(2\), 3 \(1\)"
    )
    with pytest.raises(InputError, match=message):
        labeled(unknown, labels="classes")


def test_an_image_without_a_label_is_refused_where_labels_are_classes() -> None:
    # Such images belong in the pool, whose labels are ignored or only evaluated.
    without_label = table([0, None])
    with pytest.raises(InputError, match=r"no label \(1\)"):
        labeled(without_label, labels="classes")


def test_the_truth_is_whether_a_label_is_a_class_of_the_teacher() -> None:
    # A class of the teacher, another class, and an image that nobody labeled.
    listing = table([1, 7, None])
    found = labeled(listing, NUMBERED_CLASSES, labels="truth")

    assert found.classes == [1, None, None]
    assert found.is_relevant == [True, False, None]


def test_class_names_are_matched_whatever_their_order_and_spelling() -> None:
    names = ["Night_Owl", "DOG", "cat"]
    without_numbers = table(names=names)
    only_names = labeled(without_numbers, labels="classes")
    assert only_names.classes == [2, 1, 0]

    # Numbers next to names that are all the teacher's: the names count.
    with_numbers = table([0, 1, 2], names)
    both = labeled(with_numbers, labels="classes")
    assert both.classes == [2, 1, 0]


def test_an_image_whose_name_is_not_a_class_is_irrelevant() -> None:
    listing = table(names=["dog", "car"])
    found = labeled(listing, labels="truth")

    assert found.classes == [1, None]
    assert found.is_relevant == [True, False]


def test_sorted_names_are_numbers_only_where_the_source_says_so() -> None:
    # As ImageFolder numbers folders. A teacher may just as well count zero, one, two.
    three_names = table(names=["b", "a", "c"])
    found = labeled(three_names, NUMBERED_CLASSES, labels="classes", sorted_names=True)
    assert found.classes == [1, 0, 2]

    with pytest.raises(InputError, match=r"or `sorted_names: true` if the teacher's classes are"):
        labeled(three_names, NUMBERED_CLASSES, labels="classes")
    two_names = table(names=["b", "a"])
    with pytest.raises(InputError, match=r"one name for each of the teacher's 3 classes.* are 2"):
        labeled(two_names, NUMBERED_CLASSES, labels="classes", sorted_names=True)
    with pytest.raises(InputError, match="is for a teacher whose classes have only numbers"):
        labeled(three_names, labels="classes", sorted_names=True)


def test_names_cannot_be_the_truth_of_a_teacher_that_has_only_numbers() -> None:
    with pytest.raises(InputError, match="which images are relevant is unknown: give label_map"):
        labeled(table(names=["b", "a"]), NUMBERED_CLASSES, labels="truth")


def test_numbers_that_count_other_classes_are_refused() -> None:
    listing = table([0, 1], ["goldfish", "shark"])
    message = "its label 0 is 'goldfish', the teacher's class 0 is 'cat', and whether they are"
    with pytest.raises(InputError, match=message):
        labeled(listing, labels="truth")


def test_a_label_map_takes_numbers_and_names_and_drops_the_rest() -> None:
    listing = table([10, 11, 12], ["tabby", "pug", "car"])
    label_map = {"10": 0, "pug": 1}
    mapped = labeled(listing, labels="truth", label_map=label_map)

    assert mapped.classes == [0, 1, None]
    assert mapped.is_relevant == [True, True, False]


def test_a_label_map_lists_every_label_where_labels_are_classes() -> None:
    listing = table(names=["tabby", "car"])
    # With `truth`, the car would be irrelevant; here its class is missing.
    with pytest.raises(InputError, match="1 images label_map does not list: car"):
        labeled(listing, labels="classes", label_map={"tabby": 0})


def test_a_label_map_with_an_unknown_class_is_refused() -> None:
    tabby = table(names=["tabby"])
    with pytest.raises(InputError, match=r"outside 0..2 of the teacher: \{'tabby': 3\}"):
        labeled(tabby, labels="classes", label_map={"tabby": 3})


def test_a_label_map_with_an_unknown_label_is_refused() -> None:
    # Most likely a typo, whose images would silently lose their class.
    tabby = table(names=["tabby"])
    message = (
        r"has the labels tabyb of label_map \(did you mean 'tabby' for 'tabyb'\?\); found: tabby"
    )
    with pytest.raises(InputError, match=message):
        labeled(tabby, labels="truth", label_map={"tabyb": 0})


def many_ids(n: int) -> pd.Series:
    ids = [f"image-{number}" for number in range(n)]
    return pd.Series(ids)


@given(cuts=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True))
def test_neighboring_shares_divide_a_source(cuts: list[float]) -> None:
    ids = many_ids(300)
    n_shares_with = np.zeros(300, dtype=int)
    edges = [0.0, *sorted(cuts), 1.0]
    for start, end in pairwise(edges):
        n_shares_with += in_share(ids, (start, end))

    # No image is in two shares, and none is in none of them.
    assert (n_shares_with == 1).all()


def test_a_share_is_about_as_large_as_it_says() -> None:
    ids = many_ids(20_000)
    is_in_share = in_share(ids, (0.3, 0.5))
    # Decided by a hash of the id: 0.01 is over three standard deviations of a fair draw.
    assert is_in_share.mean() == pytest.approx(0.2, abs=0.01)


# Four images of class 1, three of class 0, and one without a label.
DRAWN_FROM = pd.Series([0, 1, 1, 0, 1, None, 0, 1], dtype="Int32")
EVERY_ROW = list(range(8))


def drawn(per_class: int | None, limit: int | None, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    rows = draw(DRAWN_FROM, per_class, limit, rng, n_classes=2)
    return rows.tolist()


def test_a_draw_without_limits_keeps_every_image() -> None:
    assert drawn(per_class=None, limit=None) == EVERY_ROW
    assert drawn(per_class=9, limit=None) == EVERY_ROW


def test_a_draw_keeps_so_many_images_of_each_class() -> None:
    rows = drawn(per_class=2, limit=None)
    labels = DRAWN_FROM.iloc[rows]
    counts = labels.value_counts(dropna=False)
    # An image without a label is of no class, and stays.
    assert counts.to_dict() == {0: 2, 1: 2, pd.NA: 1}


def test_smaller_draws_are_parts_of_larger_ones() -> None:
    # Otherwise a comparison of two label budgets would also compare two draws.
    one_each = drawn(per_class=1, limit=None)
    two_each = drawn(per_class=2, limit=None)
    three_each = drawn(per_class=3, limit=None)
    assert set(one_each) < set(two_each)
    assert set(two_each) < set(three_each)

    three_in_all = drawn(per_class=None, limit=3)
    five_in_all = drawn(per_class=None, limit=5)
    assert set(three_in_all) < set(five_in_all)


def test_draws_of_different_seeds_differ() -> None:
    draws = set()
    for seed in range(20):
        rows = drawn(per_class=None, limit=4, seed=seed)
        draws.add(tuple(rows))
    # Some of the twenty may agree by chance: there are only 70 draws of four images.
    assert len(draws) > 5
