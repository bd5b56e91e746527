"""Labels that a source excludes."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_keys import SourceLabel, match_keys
from pu_kd_pipeline.images.labels import with_teacher_labels
from pu_kd_pipeline.params.data_ingestion import ImageSource


def kept_rows(*excluded: int | str, **options: Any) -> list[int]:
    """Return which of four images are kept when labels are excluded."""
    listing = pd.DataFrame(
        {
            "label": pd.array([0, 1, 2, None], dtype="Int64"),
            "label_name": pd.Series(["zero", "one", None, "three"], dtype="str"),
        }
    )
    source = ImageSource(type="folder", path="x", exclude_labels=excluded, **options)
    classes = ("zero", "one", "two")
    return with_teacher_labels(listing, source, classes, "pool[0]").index.tolist()


def test_labels_can_be_excluded_by_number_or_name():
    assert kept_rows(1, "three") == [0, 2]
    assert kept_rows("2", labels="truth") == [0, 1, 3]


def test_excluded_labels_that_no_image_has_are_refused():
    expected = r"pool\[0\]: no image has the labels 7, four of exclude_labels; found: zero"
    with pytest.raises(InputError, match=expected):
        kept_rows(7, "four")


def test_an_excluded_label_is_spelled_like_one_label():
    assert kept_rows("Zero") == [1, 2, 3]
    # A number and its text are the same label.
    assert kept_rows(1, "1") == [0, 2, 3]


def test_an_excluded_name_is_still_a_name_of_its_own():
    # "ZERO" may be another class than "zero", which is excluded.
    listing = pd.DataFrame(
        {
            "label": pd.array([None, None], dtype="Int64"),
            "label_name": pd.Series(["zero", "ZERO"], dtype="str"),
        }
    )
    source = ImageSource(type="folder", path="x", exclude_labels=("zero",), labels="truth")
    with pytest.raises(InputError, match="the label 'ZERO' is not spelled like a class"):
        with_teacher_labels(listing, source, ("zero", "one"), "pool[0]")


def test_a_label_without_a_number_does_not_have_the_number_none():
    labels = [SourceLabel(None, "none"), SourceLabel(None, "one")]
    assert match_keys(labels, ["None"], "label_map", "pool[0]") == [["None"], []]
