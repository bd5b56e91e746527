"""Sharded tables: made once, in order, bounded, and never half-written."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.datasets import ShardedTableDataset
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.storage.checked_json import to_checked_json
from pu_kd_pipeline.storage.sharded_table import ShardedTable, as_array, fixed_size_list
from pu_kd_pipeline.storage.table import read_table, write_table
from tests.hostile.mutations import damaged_bytes


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


def test_shards_of_a_killed_run_are_removed_and_files_of_somebody_else_stay(tmp_path):
    unlisted = tmp_path / "00007-a-b-0123456789ab.parquet"
    others = [tmp_path / name for name in ("mine.parquet", "2024-12.parquet", "0123.parquet")]
    for file in (unlisted, *others):
        file.touch()
    _write(tmp_path, "a")
    _write(tmp_path, "b")

    assert sorted(tmp_path.glob("*.parquet")) == sorted([*others, tmp_path / "b.parquet"])


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


# --- damage


def _flip_bytes(file, n=400):
    """Invert up to n bytes in the middle of a file."""
    content = bytearray(file.read_bytes())
    start = max(0, len(content) // 2 - n // 2)
    for position in range(start, min(len(content), start + n)):
        content[position] ^= 0xFF
    file.write_bytes(content)


@pytest.mark.parametrize("list_of_shards", ["kept", "damaged", "removed"])
def test_a_damaged_shard_is_made_again_and_no_other(tmp_path, caplog, list_of_shards):
    _write(tmp_path, "a", "b")
    intact = (tmp_path / "a.parquet").read_bytes()
    _flip_bytes(tmp_path / "a.parquet")
    if list_of_shards == "damaged":
        _flip_bytes(tmp_path / "shards.json")
    elif list_of_shards == "removed":
        (tmp_path / "shards.json").unlink()

    made = []
    table = _write(tmp_path, "a", "b", made=made)
    assert made == ["a"]
    assert "a.parquet is damaged" in caplog.text
    assert table.arrays("id").tolist() == ["a", "b"]
    assert (tmp_path / "a.parquet").read_bytes() == intact


def test_exchanged_shards_are_refused_and_made_again(tmp_path):
    table = _write(tmp_path, "a", "b")
    first = tmp_path / "a.parquet"
    second = tmp_path / "b.parquet"
    first_content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(first_content)
    with pytest.raises(InputError, match="its checksum is wrong"):
        table.arrays("id")

    made = []
    table = _write(tmp_path, "a", "b", made=made)
    assert made == ["a", "b"]
    assert table.arrays("id").tolist() == ["a", "b"]


def test_a_shard_of_an_earlier_version_is_made_again(tmp_path):
    table = _write(tmp_path, "a")
    pa.parquet.write_table(_shard("a"), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"has no checksum.*run the stage that wrote it again"):
        table.arrays("id")
    made = []
    _write(tmp_path, "a", made=made)
    assert made == ["a"]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_whatever_is_damaged_the_table_is_refused_or_right_and_can_be_made_again(
    tmp_path_factory, data
):
    folder = tmp_path_factory.mktemp("table")
    intact = _write(folder, "a", "b").to_pandas()["id"].tolist()
    files = sorted(folder.iterdir())
    file = data.draw(st.sampled_from(files))
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(damaged_bytes([file.read_bytes()])))
    else:
        other = data.draw(st.sampled_from([None, *files]))
        if other is None:
            file.unlink()
        else:
            file.write_bytes(other.read_bytes())

    # Any other error than an InputError fails the test.
    with suppress(InputError):
        assert ShardedTable.open(folder).to_pandas()["id"].tolist() == intact
    assert _write(folder, "a", "b").to_pandas()["id"].tolist() == intact


# --- making everything again


def test_all_shards_are_made_again_where_that_is_asked_for(tmp_path):
    dataset = ShardedTableDataset(filepath=str(tmp_path))
    made = []

    def make(name):
        made.append(name)
        return _shard(name)

    makers = {name: partial(make, name) for name in ("a", "b")}
    dataset.save(makers)
    dataset.make_again()
    dataset.save(makers)
    assert made == ["a", "b", "a", "b"]
    # Once only.
    dataset.save(makers)
    assert len(made) == 4


def test_a_forced_table_that_was_killed_keeps_no_shard_of_before(tmp_path):
    _write(tmp_path, "a", "b")

    def kill():
        raise KeyboardInterrupt

    makers = {"a": partial(_shard, "a"), "b": kill}
    with pytest.raises(KeyboardInterrupt):
        ShardedTable.write(tmp_path, makers, makes_again=True)
    with pytest.raises(InputError, match="1 of 2 shards are missing, such as b"):
        ShardedTable.open(tmp_path)
    # The next run need not be forced: what is there is new.
    made = []
    _write(tmp_path, "a", "b", made=made)
    assert made == ["b"]


def test_a_forced_table_leaves_shards_that_it_only_keeps(tmp_path):
    dataset = ShardedTableDataset(filepath=str(tmp_path), keeps_others=True)
    dataset.save({"a": partial(_shard, "a"), "b": partial(_shard, "b")})
    other = (tmp_path / "a.parquet").stat()
    dataset.make_again()
    dataset.save({"b": partial(_shard, "b")})
    assert (tmp_path / "a.parquet").stat() == other


@pytest.mark.parametrize("makes_again", [False, True])
def test_an_empty_folder_in_the_place_of_a_shard_gives_way(tmp_path, makes_again):
    shards = {"a": lambda: pa.table({"value": [1]})}
    ShardedTable.write(tmp_path, {**shards, "no_longer_listed": shards["a"]})
    for name in ("a", "no_longer_listed"):
        file = tmp_path / f"{name}.parquet"
        file.unlink(missing_ok=True)
        file.mkdir()
    table = ShardedTable.write(tmp_path, shards, makes_again=makes_again)

    assert table.to_pandas()["value"].tolist() == [1]
    assert not (tmp_path / "no_longer_listed.parquet").exists()
