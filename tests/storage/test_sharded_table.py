"""Sharded tables: made once, in order, bounded, and never half-written."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.storage.checked_json import to_checked_json
from pu_kd_pipeline.storage.sharded_table import ShardedTable, as_array, fixed_size_list
from pu_kd_pipeline.storage.table import read_table, write_table


def _shard(name):
    """Return the table of a shard: one row, with a descriptor that is different for each name."""
    descriptor = np.full((1, 3), ord(name), np.float16)
    return pa.table({"id": [name], "descriptor": fixed_size_list(descriptor)})


def _write(folder, *names, made=None):
    """Write a table of shards; the names of those that are made join `made`."""
    if made is None:
        made = []

    def make(name):
        made.append(name)
        return _shard(name)

    makers = {name: partial(make, name) for name in names}
    return ShardedTable.write(folder, makers)


def test_present_shards_are_kept_and_new_ones_made(tmp_path):
    made = []
    _write(tmp_path, "a", "b", made=made)
    table = _write(tmp_path, "a", "b", "c", made=made)

    # Each once: features of a large pool take hours.
    assert made == ["a", "b", "c"]
    ids = table.arrays("id")
    assert ids.tolist() == ["a", "b", "c"]
    opened = ShardedTable.open(tmp_path)
    assert len(opened) == 3


def test_shards_that_no_longer_belong_are_removed(tmp_path):
    _write(tmp_path, "a", "b")
    _write(tmp_path, "b")
    left = [path.stem for path in tmp_path.glob("*.parquet")]
    assert left == ["b"]


def test_a_maker_that_fails_leaves_no_shard_and_the_finished_ones_stay(tmp_path):
    def fail():
        raise RuntimeError("cut")

    (tmp_path / ".b.parquet.12345.tmp").touch()  # left behind by a process that was killed
    makers = {"a": partial(_shard, "a"), "b": fail}
    with pytest.raises(RuntimeError, match="cut"):
        ShardedTable.write(tmp_path, makers)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ["a.parquet"]

    made = []
    _write(tmp_path, "a", "b", made=made)
    assert made == ["b"]


def test_a_folder_without_a_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no table at"):
        ShardedTable.open(tmp_path)


def test_a_table_that_is_not_complete_is_refused(tmp_path):
    _write(tmp_path, "a")
    shard = tmp_path / "a.parquet"
    shard.unlink()
    with pytest.raises(InputError, match="1 of 1 shards are missing, such as a"):
        ShardedTable.open(tmp_path)


def test_fingerprint_follows_the_shards(tmp_path):
    one = _write(tmp_path / "x", "a")
    two = _write(tmp_path / "y", "a", "b")
    # What was made of the table knows by it that the table is another one.
    assert one.fingerprint != two.fingerprint


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_fixed_size_lists_come_back_as_they_were(tmp_path, dtype):
    rng = np.random.default_rng(0)
    doubles = rng.normal(size=(7, 5))
    values = doubles.astype(dtype)
    table = pa.table({"x": fixed_size_list(values)})
    ShardedTable.write(tmp_path, {"a": lambda: table})

    again = ShardedTable.open(tmp_path)
    values_again = again.arrays("x")
    np.testing.assert_array_equal(values_again, values)

    # Not converted: float16 descriptors take half of the disk.
    element_type = pa.from_numpy_dtype(dtype)
    [shard] = again.shards()
    column = shard.schema.field("x")
    assert column.type == pa.list_(element_type, 5)


def test_a_column_of_several_chunks_becomes_one_array():
    first = np.zeros((3, 5), dtype=np.float32)
    second = np.ones((4, 5), dtype=np.float32)
    chunks = [fixed_size_list(first), fixed_size_list(second)]
    column = pa.chunked_array(chunks)

    # pyarrow reads a file with several row groups as such a column.
    values = as_array(column)
    expected = np.concatenate([first, second])
    np.testing.assert_array_equal(values, expected)


def test_facts_of_a_table_live_in_its_metadata(tmp_path):
    unknown_class = pd.array([None], dtype="Int32")
    table = pd.DataFrame({"id": ["a"], "teacher_class": unknown_class})
    table.attrs = {"rule": "nnpu", "threshold": None, "fingerprints": {"pool": "f"}}
    file = tmp_path / "t.parquet"
    write_table(table, file)

    again = read_table(file)
    assert again.attrs == table.attrs
    assert again["id"].tolist() == ["a"]

    # Under its own key: other programs may add metadata as well.
    metadata = pa.parquet.read_schema(file).metadata
    assert b"pu_kd_pipeline" in metadata


def test_a_file_that_is_not_a_table_is_refused(tmp_path):
    file = tmp_path / "t.parquet"
    file.write_bytes(b"PAR1 cut short")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_table(file)


def test_a_table_that_does_not_exist_is_refused(tmp_path):
    missing = tmp_path / "none.parquet"
    with pytest.raises(InputError, match="there is no table"):
        read_table(missing)


def test_the_facts_of_a_table_are_what_its_makers_wrote(tmp_path):
    shard = _shard("a")
    with_metadata = shard.replace_schema_metadata({"teacher": "3fa9"})
    table = ShardedTable.write(tmp_path / "with", {"a": lambda: with_metadata})
    assert table.facts["teacher"] == "3fa9"

    without_facts = _write(tmp_path / "without", "b")
    assert "teacher" not in without_facts.facts

    # There is no shard that it could read facts from.
    empty = ShardedTable.write(tmp_path / "empty", {})
    assert empty.facts == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (to_checked_json({"shards": ["../a"]}), "leads out of the table"),
        (to_checked_json({"shards": ["a", "a"]}), "names a shard twice"),
        (to_checked_json({}), "is not a list of names"),
        ('{"shards": ["a"]}', "has no checksum"),
        ('["a"]', "has no checksum"),  # as earlier versions wrote it
        ("[", "cannot be used"),
        ("3", "cannot be used"),
    ],
)
def test_a_list_of_shards_that_was_tampered_with_is_refused(tmp_path, text, message):
    # The shard outside of the table exists, so that its name leads to a file.
    _write(tmp_path, "a")
    inner = tmp_path / "inner"
    _write(inner, "a")
    shards = inner / "shards.json"
    shards.write_text(text)

    with pytest.raises(InputError, match=message):
        ShardedTable.open(inner)


@pytest.mark.parametrize("read", [len, lambda table: table.facts, lambda table: table.arrays("id")])
def test_a_damaged_shard_is_named(tmp_path, read):
    table = _write(tmp_path, "a")
    shard = tmp_path / "a.parquet"
    shard.write_bytes(b"cut short")
    message = r"a.parquet is damaged .*: delete it, and run the stage that wrote it again"
    with pytest.raises(InputError, match=message):
        read(table)
