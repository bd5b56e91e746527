"""Labels of sources as classes of the teacher, shares, and draws."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

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
    n = len(labels or names)
    return pd.DataFrame(
        {
            "id": [f"i{row}" for row in range(n)],
            "label": pd.Series(labels or [None] * n, dtype="Int64"),
            "label_name": pd.Series(names or [None] * n, dtype="str"),
        }
    )


def labeled(listing: pd.DataFrame, classes: Any = CLASSES, **parameters: Any) -> list[list[Any]]:
    """Return the classes of a listing's images, and whether each is relevant."""
    source = source_of("folder", path="x", **parameters)
    result = with_teacher_labels(listing, source, classes, "pool[0]")
    assert result["label"].dtype == "Int32"
    assert result["relevant"].dtype == "boolean"
    columns = result[["label", "relevant"]].astype(object)
    as_none = columns.where(columns.notna(), None)
    return [as_none["label"].tolist(), as_none["relevant"].tolist()]


def test_labels_that_are_ignored_are_null() -> None:
    assert labeled(table([0, 1])) == [[None, None], [None, None]]


def test_a_class_number_is_the_teachers_and_every_image_needs_one() -> None:
    assert labeled(table([2, 0]), labels="classes") == [[2, 0], [True, True]]
    message = (
        r"the teacher has 3 classes \(cat, dog, night owl\); the labels of 3 images are none of "
        r"them: 7 \(2\), 3 \(1\)"
    )
    with pytest.raises(InputError, match=message):
        labeled(table([0, 7, 7, 3]), labels="classes")
    with pytest.raises(InputError, match=r"no label \(1\)"):
        labeled(table([0, None]), labels="classes")


def test_the_truth_is_whether_a_label_is_a_class_of_the_teacher() -> None:
    assert labeled(table([1, 7, None]), labels="truth") == [[1, None, None], [True, False, None]]


def test_class_names_are_matched_whatever_their_order_and_spelling() -> None:
    names = ["Night_Owl", "DOG", "cat"]
    assert labeled(table(names=names), labels="classes")[0] == [2, 1, 0]
    # numbers next to names that are all the teacher's: the names count
    assert labeled(table([0, 1, 2], names), labels="classes")[0] == [2, 1, 0]
    assert labeled(table(names=["dog", "car"]), labels="truth") == [[1, None], [True, False]]


def test_sorted_names_are_the_classes_of_a_teacher_that_has_only_numbers() -> None:
    three_names = table(names=["b", "a", "c"])
    assert labeled(three_names, NUMBERED_CLASSES, labels="classes")[0] == [1, 0, 2]
    two_names = table(names=["b", "a"])
    with pytest.raises(InputError, match="the teacher has 3 classes"):
        labeled(two_names, NUMBERED_CLASSES, labels="classes")
    with pytest.raises(InputError, match="which images are relevant is unknown: give label_map"):
        labeled(two_names, NUMBERED_CLASSES, labels="truth")


def test_numbers_that_count_other_classes_are_refused() -> None:
    listing = table([0, 1], ["goldfish", "shark"])
    message = "its label 0 is 'goldfish', the teacher's class 0 is 'cat'"
    with pytest.raises(InputError, match=message):
        labeled(listing, labels="truth")


def test_a_label_map_takes_numbers_and_names_and_drops_the_rest() -> None:
    listing = table([10, 11, 12], ["tabby", "pug", "car"])
    mapped = labeled(listing, labels="truth", label_map={"10": 0, "pug": 1})
    assert mapped == [[0, 1, None], [True, True, False]]
    with pytest.raises(InputError, match="1 images label_map does not list: car"):
        labeled(table(names=["tabby", "car"]), labels="classes", label_map={"tabby": 0})


def test_a_label_map_with_an_unknown_class_or_label_is_refused() -> None:
    tabby = table(names=["tabby"])
    with pytest.raises(InputError, match=r"outside 0..2 of the teacher: \{'tabby': 3\}"):
        labeled(tabby, labels="classes", label_map={"tabby": 3})
    message = r"no key of label_map \(tabyb\) is a label there; found: tabby \(1\)"
    with pytest.raises(InputError, match=message):
        labeled(tabby, labels="truth", label_map={"tabyb": 0})


@given(cuts=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True))
def test_neighboring_shares_divide_a_source(cuts: list[float]) -> None:
    ids = pd.Series([f"image-{number}" for number in range(300)])
    edges = [0.0, *sorted(cuts), 1.0]
    is_in_part = [in_share(ids, (start, end)) for start, end in pairwise(edges)]
    assert (np.sum(is_in_part, axis=0) == 1).all()


def test_a_share_is_about_as_large_as_it_says() -> None:
    ids = pd.Series([f"image-{number}" for number in range(20_000)])
    assert in_share(ids, (0.3, 0.5)).mean() == pytest.approx(0.2, abs=0.01)


def test_draws_keep_so_many_of_each_class_and_nest() -> None:
    labels = pd.Series([0, 1, 1, 0, 1, None, 0, 1], dtype="Int32")

    def drawn(per_class: int | None, limit: int | None, seed: int = 0) -> list[int]:
        rng = np.random.default_rng(seed)
        return draw(labels, per_class, limit, rng, n_classes=2).tolist()

    assert drawn(None, None) == list(range(8))
    two = drawn(2, None)
    # an image without a label is of no class, and stays
    assert labels.iloc[two].value_counts(dropna=False).to_dict() == {0: 2, 1: 2, pd.NA: 1}
    assert set(drawn(1, None)) < set(two) < set(drawn(3, None))
    assert drawn(9, None) == list(range(8))
    assert set(drawn(None, 3)) < set(drawn(None, 5))
    assert len({tuple(drawn(None, 4, seed)) for seed in range(20)}) > 5
