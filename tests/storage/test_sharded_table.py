"""Sharded tables: made once, in order, bounded, and never half-written."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.storage.sharded_table import ShardedTable, as_array, fixed_size_list
from pu_kd_pipeline.storage.table import read_table, write_table


def _maker(value, made):
    def make():
        made.append(value)
        columns = {
            "id": pa.array([f"{value}"]),
            "descriptor": fixed_size_list(np.full((1, 3), value, np.float16)),
        }
        return pa.table(columns)

    return make


def test_present_shards_are_kept_and_new_ones_made(tmp_path):
    made = []
    ShardedTable.write(tmp_path, {"a": _maker(1, made), "b": _maker(2, made)})
    table = ShardedTable.write(
        tmp_path, {"a": _maker(1, made), "b": _maker(2, made), "c": _maker(3, made)}
    )
    assert made == [1, 2, 3]
    assert table.arrays("id").tolist() == ["1", "2", "3"]
    assert len(ShardedTable.open(tmp_path)) == 3


def test_shards_that_no_longer_belong_are_removed(tmp_path):
    ShardedTable.write(tmp_path, {"a": _maker(1, []), "b": _maker(2, [])})
    ShardedTable.write(tmp_path, {"b": _maker(2, [])})
    assert [path.stem for path in tmp_path.glob("*.parquet")] == ["b"]


def test_a_maker_that_fails_leaves_no_shard_and_the_finished_ones_stay(tmp_path):
    def fail():
        raise RuntimeError("cut")

    made = []
    (tmp_path / ".b.parquet.12345.tmp").touch()  # of a process that was killed
    with pytest.raises(RuntimeError, match="cut"):
        ShardedTable.write(tmp_path, {"a": _maker(1, made), "b": fail})
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    ShardedTable.write(tmp_path, {"a": _maker(1, made), "b": _maker(2, made)})
    assert made == [1, 2]


def test_a_table_that_is_not_complete_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no table at"):
        ShardedTable.open(tmp_path)
    ShardedTable.write(tmp_path, {"a": _maker(1, [])})
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(InputError, match="1 of 1 shards are missing, such as a"):
        ShardedTable.open(tmp_path)


def test_fingerprint_follows_the_shards(tmp_path):
    one = ShardedTable.write(tmp_path / "x", {"a": _maker(1, [])})
    two = ShardedTable.write(tmp_path / "y", {"a": _maker(1, []), "b": _maker(1, [])})
    assert one.fingerprint != two.fingerprint


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_fixed_size_lists_come_back_as_they_were(tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(dtype)
    ShardedTable.write(tmp_path, {"a": lambda: pa.table({"x": fixed_size_list(values)})})
    again = ShardedTable.open(tmp_path)
    np.testing.assert_array_equal(again.arrays("x"), values)
    schema = next(again.shards()).schema
    assert schema.field("x").type == pa.list_(pa.from_numpy_dtype(dtype), 5)
    chunked = pa.chunked_array([fixed_size_list(values[:3]), fixed_size_list(values[3:])])
    np.testing.assert_array_equal(as_array(chunked), values)


def test_facts_of_a_table_live_in_its_metadata(tmp_path):
    table = pd.DataFrame({"id": ["a"], "teacher_class": pd.array([None], dtype="Int32")})
    table.attrs = {"rule": "nnpu", "threshold": None, "fingerprints": {"pool": "f"}}
    write_table(table, tmp_path / "t.parquet")
    again = read_table(tmp_path / "t.parquet")
    assert again.attrs == table.attrs
    assert again["id"].tolist() == ["a"]
    assert b"pu_kd_pipeline" in pa.parquet.read_schema(tmp_path / "t.parquet").metadata


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_table(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="there is no table"):
        read_table(tmp_path / "none.parquet")


def test_the_facts_of_a_table_are_what_its_makers_wrote(tmp_path):
    def make():
        return pa.table({"id": ["a"]}).replace_schema_metadata({"teacher": "3fa9"})

    assert ShardedTable.write(tmp_path / "a", {"a": make}).facts["teacher"] == "3fa9"
    assert "teacher" not in ShardedTable.write(tmp_path / "b", {"b": _maker(1, [])}).facts
    assert ShardedTable.write(tmp_path / "c", {}).facts == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [('["../a"]', "leads out of the table"), ("[", "is damaged"), ("3", "is damaged")],
)
def test_a_list_of_shards_that_was_tampered_with_is_refused(tmp_path, text, message):
    ShardedTable.write(tmp_path, {"a": _maker(1, [])})
    ShardedTable.write(tmp_path / "inner", {"a": _maker(1, [])})
    (tmp_path / "inner" / "shards.json").write_text(text)
    with pytest.raises(InputError, match=message):
        ShardedTable.open(tmp_path / "inner")


@pytest.mark.parametrize(
    "question", [len, lambda table: table.facts, lambda table: table.arrays("id")]
)
def test_a_damaged_shard_is_named(tmp_path, question):
    table = ShardedTable.write(tmp_path, {"a": _maker(1, [])})
    (tmp_path / "a.parquet").write_bytes(b"cut short")
    with pytest.raises(
        InputError,
        match=r"a.parquet is damaged .*: delete it, and run the stage that wrote it again",
    ):
        question(table)
