"""Sharded tables: made once, in order, bounded, and never half-written."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.storage.sharded_table import ShardedTable, as_array, fixed_size_list
from pu_kd_pipeline.storage.table import read_table, write_table


def _write(folder, *names, made=None):
    """Write a table of shards with one row each; the names of those that are made join `made`."""

    def make(name):
        if made is not None:
            made.append(name)
        descriptor = np.full((1, 3), ord(name), np.float16)
        return pa.table({"id": [name], "descriptor": fixed_size_list(descriptor)})

    return ShardedTable.write(folder, {name: partial(make, name) for name in names})


def test_present_shards_are_kept_and_new_ones_made(tmp_path):
    made = []
    _write(tmp_path, "a", "b", made=made)
    table = _write(tmp_path, "a", "b", "c", made=made)
    assert made == ["a", "b", "c"]
    assert table.arrays("id").tolist() == ["a", "b", "c"]
    assert len(ShardedTable.open(tmp_path)) == 3


def test_shards_that_no_longer_belong_are_removed(tmp_path):
    _write(tmp_path, "a", "b")
    _write(tmp_path, "b")
    assert [path.stem for path in tmp_path.glob("*.parquet")] == ["b"]


def test_a_maker_that_fails_leaves_no_shard_and_the_finished_ones_stay(tmp_path):
    def fail():
        raise RuntimeError("cut")

    (tmp_path / ".b.parquet.12345.tmp").touch()  # left behind by a process that was killed
    with pytest.raises(RuntimeError, match="cut"):
        ShardedTable.write(tmp_path, {"a": lambda: pa.table({"id": ["a"]}), "b": fail})
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]

    made = []
    _write(tmp_path, "a", "b", made=made)
    assert made == ["b"]


def test_a_folder_without_a_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no table at"):
        ShardedTable.open(tmp_path)


def test_a_table_that_is_not_complete_is_refused(tmp_path):
    _write(tmp_path, "a")
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(InputError, match="1 of 1 shards are missing, such as a"):
        ShardedTable.open(tmp_path)


def test_fingerprint_follows_the_shards(tmp_path):
    one = _write(tmp_path / "x", "a")
    two = _write(tmp_path / "y", "a", "b")
    assert one.fingerprint != two.fingerprint


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_fixed_size_lists_come_back_as_they_were(tmp_path, dtype):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 5)).astype(dtype)
    table = pa.table({"x": fixed_size_list(values)})
    ShardedTable.write(tmp_path, {"a": lambda: table})

    again = ShardedTable.open(tmp_path)
    np.testing.assert_array_equal(again.arrays("x"), values)
    shard = next(again.shards())
    # Not converted: float16 descriptors take half of the disk.
    element_type = pa.from_numpy_dtype(dtype)
    assert shard.schema.field("x").type == pa.list_(element_type, 5)


def test_a_column_of_several_chunks_becomes_one_array():
    values = np.arange(35, dtype=np.float32).reshape(7, 5)
    first = fixed_size_list(values[:3])
    second = fixed_size_list(values[3:])
    column = pa.chunked_array([first, second])
    np.testing.assert_array_equal(as_array(column), values)


def test_facts_of_a_table_live_in_its_metadata(tmp_path):
    table = pd.DataFrame({"id": ["a"], "teacher_class": pd.array([None], dtype="Int32")})
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
    (tmp_path / "t.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_table(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="there is no table"):
        read_table(tmp_path / "none.parquet")


def test_the_facts_of_a_table_are_what_its_makers_wrote(tmp_path):
    def make():
        table = pa.table({"id": ["a"]})
        return table.replace_schema_metadata({"teacher": "3fa9"})

    with_facts = ShardedTable.write(tmp_path / "with", {"a": make})
    assert with_facts.facts["teacher"] == "3fa9"
    without_facts = _write(tmp_path / "without", "b")
    assert "teacher" not in without_facts.facts
    empty = ShardedTable.write(tmp_path / "empty", {})
    assert empty.facts == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [('["../a"]', "leads out of the table"), ("[", "is damaged"), ("3", "is damaged")],
)
def test_a_list_of_shards_that_was_tampered_with_is_refused(tmp_path, text, message):
    _write(tmp_path, "a")
    _write(tmp_path / "inner", "a")
    (tmp_path / "inner" / "shards.json").write_text(text)
    with pytest.raises(InputError, match=message):
        ShardedTable.open(tmp_path / "inner")


@pytest.mark.parametrize("read", [len, lambda table: table.facts, lambda table: table.arrays("id")])
def test_a_damaged_shard_is_named(tmp_path, read):
    table = _write(tmp_path, "a")
    (tmp_path / "a.parquet").write_bytes(b"cut short")
    message = r"a.parquet is damaged .*: delete it, and run the stage that wrote it again"
    with pytest.raises(InputError, match=message):
        read(table)
