"""`label_ranks` and `other_labels`: a labeled file as labeled images, test images and pool."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.labels import rank_in_label
from pu_kd_pipeline.images.listing import list_images
from tests.images.numbered_images import plan_of
from tests.images.sources.examples import source_of

N_PER_LABEL = 10
LABELS = [number % 3 for number in range(3 * N_PER_LABEL)]  # class 2 is none of the teacher's


def listing_of(labels: list[int | None], ids: list[str] | None = None) -> pd.DataFrame:
    n = len(labels)
    columns = {
        "id": ids or [f"i{row}" for row in range(n)],
        "label": pd.Series(labels, dtype="Int64"),
        "label_name": pd.Series([None] * n, dtype="str"),
    }
    return pd.DataFrame(columns)


def selected(file: Path, **source: Any) -> dict[str, int | None]:
    """Return id -> class of the images that a source of two classes selects."""
    plan = plan_of(file, source=source)
    plan = dataclasses.replace(plan, class_names=("0", "1"))
    table, _ = list_images(plan)
    labels = table["label"].astype(object)
    return dict(zip(table["id"], labels.where(labels.notna(), None), strict=True))


def labeled_file(folder: Path, labels: list[int]) -> Path:
    """Write a Parquet file; listings do not decode images."""
    ids = [f"i{number}" for number in range(len(labels))]
    file = folder / "a.parquet"
    pq.write_table(pa.table({"id": ids, "image": [b"x"] * len(ids), "label": labels}), file)
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ten images of each of three labels, of which the teacher has two."""
    return labeled_file(tmp_path, LABELS)


def test_labeled_test_and_pool_are_disjoint_and_complete(file: Path) -> None:
    split = {"labels": "classes", "other_labels": "leave_out"}
    labeled = selected(file, **split, label_ranks=[0, 2])
    test = selected(file, **split, label_ranks=[2, 5])
    pool = selected(file, labels="truth", label_ranks=[5, None])

    # Exact numbers of each class; the pool has everything else, also what is of no class.
    assert sorted(labeled.values()) == [0] * 2 + [1] * 2
    assert sorted(test.values()) == [0] * 3 + [1] * 3
    classes_of_pool = list(pool.values())
    assert classes_of_pool.count(0) == classes_of_pool.count(1) == N_PER_LABEL - 5
    assert classes_of_pool.count(None) == N_PER_LABEL

    everything = [*labeled, *test, *pool]
    assert len(everything) == len(set(everything)) == len(LABELS)


@given(
    labels=st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=60),
    seed=st.integers(0, 9),
)
def test_ranks_count_the_images_of_each_label_whatever_their_order(
    labels: list[int | None], seed: int
) -> None:
    listing = listing_of(labels)
    ranks = rank_in_label(listing)

    for label in {*labels}:
        of_label = [rank for rank, each in zip(ranks, labels, strict=True) if each == label]
        assert sorted(of_label) == list(range(len(of_label)))

    order = np.random.default_rng(seed).permutation(len(listing))
    shuffled = listing.iloc[order].reset_index(drop=True)
    assert rank_in_label(shuffled).tolist() == ranks[order].tolist()


def test_other_parameters_of_a_source_do_not_change_the_ranks(file: Path) -> None:
    # With ranks among the remaining images, some of `test` would be labeled images.
    split = {"labels": "classes", "other_labels": "leave_out"}
    labeled = selected(file, **split, label_ranks=[0, 4], share=[0.3, 1.0])
    test = selected(file, **split, label_ranks=[4, None])
    complete = selected(file, **split, label_ranks=[0, 4])

    assert labeled.keys() <= complete.keys()
    assert not labeled.keys() & test.keys()
    named = selected(file, **split, label_ranks=[0, 4], name="photos")
    assert named.keys() == {f"photos/{image_id}" for image_id in complete}


def test_a_later_draw_is_made_of_the_images_in_the_range(file: Path) -> None:
    split = {"labels": "classes", "other_labels": "leave_out"}
    in_range = selected(file, **split, label_ranks=[0, 4])
    drawn = selected(file, **split, label_ranks=[0, 4], per_class=2)
    assert drawn.keys() <= in_range.keys()
    assert sorted(drawn.values()) == [0, 0, 1, 1]


def test_a_class_without_an_image_in_the_range_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = labeled_file(tmp_path, [0, 0, 0, 0, 1])
    message = r"data_ingestion\.pool: label_ranks asks for images of every class.*class 1"
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match=message):
        selected(file, labels="classes", label_ranks=[1, 3])
    assert "label_ranks asks for 2 images of each label, and these have fewer: 1 (0)" in caplog.text
    # A pool may lack a class.
    assert len(selected(file, labels="truth", label_ranks=[1, 3])) == 2


def test_ranks_without_any_class_are_refused(tmp_path: Path) -> None:
    file = labeled_file(tmp_path, [7, 8, 9])
    with pytest.raises(InputError, match="splits the images of each class of the teacher, and no"):
        selected(file, labels="truth", label_ranks=[1, None])


@pytest.mark.parametrize("labels", ["truth", "classes"])
def test_ranks_of_an_empty_share_are_reported_as_no_image(file: Path, labels: str) -> None:
    split = {"share": [0.0, 1e-9], "label_ranks": [0, 2]}
    with pytest.raises(InputError, match="no image is left of 30: check `share`"):
        selected(file, labels=labels, **split)


def test_labels_that_are_left_out_are_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match="set `other_labels: leave_out`, or set labels to"):
        selected(file, labels="classes")
    with caplog.at_level(logging.INFO):
        found = selected(file, labels="classes", other_labels="leave_out")
    assert set(found.values()) == {0, 1}
    assert "left out, because their labels are no class: 10 images: 2 (10)" in caplog.text


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"label_ranks": [0, 8]}, "label_ranks needs labels: set labels to 'classes', or to"),
        ({"label_ranks": [8, 8], "labels": "truth"}, r"with from < to, got \[8, 8\]"),
        ({"label_ranks": [-1, 8], "labels": "truth"}, "greater than or equal to 0"),
        ({"label_ranks": [8], "labels": "truth"}, "Field required"),
        ({"label_ranks": [True, 8], "labels": "truth"}, "should not be true or false"),
        ({"other_labels": "leave_out", "labels": "truth"}, "leave_out is for `labels: classes`"),
        ({"other_labels": "leave_out"}, "leave_out is for `labels: classes`"),
    ],
)
def test_ranges_and_keys_that_make_no_sense_are_refused(
    parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        source_of("folder", path="x", **parameters)
