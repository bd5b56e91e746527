"""When kedro-viz's sizes of a data set are read again."""

from __future__ import annotations

import os

import pytest

from pu_kd_pipeline.hooks.viz import _changed_ns

LONG_AGO = (10**18, 10**18)


@pytest.mark.parametrize("sub_folder", [".", "shards", "shards/of_class"])
def test_a_file_that_is_replaced_anywhere_below_a_folder_changes_it(tmp_path, sub_folder):
    folder = tmp_path / "images"
    place = folder / sub_folder
    place.mkdir(parents=True)
    (place / "a.parquet").write_bytes(b"one")
    (tmp_path / "new").write_bytes(b"two")
    for each in (folder, folder / "shards", place):
        if each.exists():
            os.utime(each, ns=LONG_AGO)
    assert _changed_ns(folder) == LONG_AGO[1]
    os.replace(tmp_path / "new", place / "a.parquet")
    assert _changed_ns(folder) > LONG_AGO[1]
