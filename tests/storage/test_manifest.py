"""A manifest that was edited by hand is accepted as it is, or refused with what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.storage.manifest import check_manifest

GOOD = {"id": ["a", "b/../c", "d"], "origin": ["labeled", "pool", "pool"]}


@pytest.mark.parametrize(
    "more", [{}, {"sampling_probability": [0.5, 0.5, 0.0]}, {"note": [None, 1, "x"]}]
)
def test_a_table_that_lists_images_is_a_manifest(more):
    columns = {**GOOD, **more}
    manifest = pd.DataFrame(columns)
    check_manifest(manifest)


def test_an_empty_manifest_is_a_manifest():
    # pandas cannot know the types of empty columns, which are then not those of text.
    manifest = pd.DataFrame({"id": [], "origin": []})
    check_manifest(manifest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": None}, "there is no column 'id'"),
        ({"origin": None, "id": None}, "there is no column 'id' and no 'origin'"),
        ({"id": [1, 2, 3]}, "'id' holds something else than text"),
        ({"id": ["a", None, "b"]}, "'id' holds something else than text"),
        ({"id": ["a", "b", "a"]}, "1 ids are there twice, such as 'a'"),
        ({"origin": ["labeled", "Pool", "pool"]}, "origin 'Pool' is neither 'labeled' nor 'pool'"),
        ({"origin": [None, "pool", "pool"]}, "is neither 'labeled' nor 'pool'"),
        ({"sampling_probability": ["a", "b", "c"]}, "holds no probabilities"),
        ({"sampling_probability": [True, False, True]}, "holds no probabilities"),
        ({"sampling_probability": [0.5, -0.1, np.nan]}, "holds no probabilities"),
    ],
)
def test_any_other_table_is_refused_with_the_way_to_fix_it(changes: dict[str, Any], message: str):
    columns = {**GOOD, **changes}
    # None stands for a column that is missing.
    for name in changes:
        if changes[name] is None:
            del columns[name]
    manifest = pd.DataFrame(columns)

    with pytest.raises(InputError, match=message) as caught:
        check_manifest(manifest)
    assert "kedro run --pipeline=subset_materialization" in str(caught.value)
