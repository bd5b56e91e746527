"""Reading image stores: the rows asked for, and files that must not be opened."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.storage.checked_json import from_checked_json, to_checked_json
from tests.images.numbered_images import (
    KINDS,
    batch_of,
    contents,
    numbered_store,
    parquet_of,
    plan_of,
    shard_ids,
)

NO_ROWS = np.array([], dtype=np.int64)
INDEX_COLUMNS = ["id", "source", "label", "relevant", "sha256", "shard", "row"]


@KINDS
def test_any_rows_are_read_in_any_order(tmp_path: Path, kind: str) -> None:
    store = numbered_store(tmp_path, range(25), kind=kind)
    assert len(store) == 25
    assert store.kind == kind
    assert store.image_shape == (3, 8, 8)

    # Rows of several shards, and of one shard, which takes another path.
    for rows in ([24, 0, 3, 3, 10, 9], [12, 11]):
        images = store.read(np.array(rows))
        expected = batch_of(rows)
        np.testing.assert_array_equal(images, expected)

    nothing = store.read(NO_ROWS)
    assert nothing.shape == (0, 3, 8, 8)


def test_images_are_cut_into_shards_of_the_stated_size(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, range(25), shard_size=10)
    first, second, third = store.shards
    assert first.n == 10
    assert second.n == 10
    assert third.n == 5

    # Where the rows of each shard start in the index.
    assert first.start == 0
    assert second.start == 10
    assert third.start == 20


@KINDS
def test_rows_outside_of_the_store_are_refused(tmp_path: Path, kind: str) -> None:
    store = numbered_store(tmp_path, range(25), kind=kind)
    # NumPy would read -1 as the last row.
    rows = np.array([-1, 25])
    with pytest.raises(IndexError, match=r"0\.\.24, got -1\.\.25"):
        store.read(rows)


@KINDS
def test_a_shard_is_read_in_batches(tmp_path: Path, kind: str) -> None:
    store = numbered_store(tmp_path, range(15), kind=kind)
    first = store.shards[0]
    expected = batch_of(range(10))

    # The shard of ten images does not divide into batches of four.
    batches = list(store.iter_batches(first, batch_size=4))
    lengths = [len(batch) for batch in batches]
    assert lengths == [4, 4, 2]
    joined = np.concatenate(batches)
    np.testing.assert_array_equal(joined, expected)


def test_a_packed_shard_is_a_memory_map_of_a_plain_npy_file(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, [1, 2])
    shard = store.shards[0]
    mapped = next(store.iter_batches(shard, batch_size=2))
    # A batch is a view of the shard's pixels, which are a view of the map.
    assert isinstance(mapped.base.base, np.memmap)
    # Writing to it would change the store for everybody.
    assert not mapped.flags.writeable

    # Other programs can read it without this one.
    file = store.folder / f"{shard.name}.npy"
    plain = np.load(file)
    expected = batch_of([1, 2])
    np.testing.assert_array_equal(plain, expected)


def test_the_index_describes_every_row(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(12))
    plan = plan_of(file, source={"name": "mine"})
    store = write_store(plan, tmp_path / "store")

    index = store.index
    assert index.columns.tolist() == INDEX_COLUMNS

    expected_ids = [f"mine/i{number}" for number in range(12)]
    assert shard_ids(store) == expected_ids
    sources = set(index["source"])
    assert sources == {"mine"}
    # Shards of ten images.
    rows = index["row"].tolist()
    assert rows == [*range(10), 0, 1]


def test_labels_of_the_index_have_types_with_a_null(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, range(6))
    # NumPy's integers and booleans have none, and would turn into floats and objects.
    labels = store.index["label"]
    assert labels.dtype == "Int32"
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]

    is_relevant = store.index["relevant"]
    assert is_relevant.dtype == "boolean"
    assert is_relevant.all()


def test_ignored_labels_are_null_in_the_index(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(12))
    plan = plan_of(file, source={"labels": "ignore"})
    store = write_store(plan, tmp_path / "store")

    columns = store.index[["label", "relevant"]]
    is_null = columns.isna()
    assert is_null.all(axis=None)


def test_ids_of_a_shard_are_those_of_the_index(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, range(12))
    assert len(store.shards) > 1

    ids = []
    for shard in store.shards:
        of_shard = store.shard_ids(shard).to_pylist()
        assert len(of_shard) == shard.n
        ids += of_shard
    # The shards are in the order of the index.
    assert ids == shard_ids(store)


@KINDS
def test_a_store_can_be_sent_to_other_processes(tmp_path: Path, kind: str) -> None:
    store = numbered_store(tmp_path, range(12), kind=kind)
    rows = np.arange(12)
    images = store.read(rows)

    pickled = pickle.dumps(store)
    # The opened files stay behind.
    assert len(pickled) < 2_000
    received = pickle.loads(pickled)
    images_there = received.read(rows)
    np.testing.assert_array_equal(images_there, images)


@KINDS
def test_forked_processes_can_read_an_open_store_together(tmp_path: Path, kind: str) -> None:
    store = numbered_store(tmp_path, range(12), kind=kind)
    rows = np.arange(12)
    # The processes inherit the files that this read opens.
    images = store.read(rows)

    fork = multiprocessing.get_context("fork")
    with fork.Pool(2) as pool:
        results = pool.map(store.read, [rows] * 4)
    for images_there in results:
        np.testing.assert_array_equal(images_there, images)


def test_both_kinds_hold_the_same_images(tmp_path: Path) -> None:
    numbers = range(12)
    packed = numbered_store(tmp_path / "packed", numbers, kind="packed")
    encoded = numbered_store(tmp_path / "encoded", numbers, kind="encoded")

    # Packed stores hold pixels and encoded ones hold files, which must not be seen from outside.
    assert contents(packed) == contents(encoded)
    packed_hashes = packed.index["sha256"]
    encoded_hashes = encoded.index["sha256"]
    pd.testing.assert_series_equal(packed_hashes, encoded_hashes)


def test_an_empty_store_can_be_read(tmp_path: Path) -> None:
    without_sources = plan_of()
    store = write_store(without_sources, tmp_path / "store")

    assert len(store) == 0
    assert store.quarantine.empty
    assert store.index.empty
    assert store.index.columns.tolist() == INDEX_COLUMNS
    images = store.read(NO_ROWS)
    assert images.shape == (0, 3, 8, 8)


PRINT_SLOW_IMPORTS = """
import sys
import pu_kd_pipeline.images.store
print(*{"pandas", "pyarrow", "torch", "PIL"} & {*sys.modules})
"""


def test_importing_the_stores_needs_neither_pandas_nor_pyarrow_nor_torch() -> None:
    # Every command imports this module, also those that only print their help.
    command = [sys.executable, "-c", PRINT_SLOW_IMPORTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    imported = done.stdout.strip()
    assert imported == ""


# --- what must not be opened


@contextmanager
def edited_description(store: ImageStore) -> Iterator[dict[str, Any]]:
    """Write a store's `store.json` again, with what the block changes in it."""
    file = store.folder / "store.json"
    content = from_checked_json(file.read_text())
    yield content
    # With the right checksum: by somebody who tampers with it, and not by damage.
    file.write_text(to_checked_json(content))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """A packed store of one image, which the tests below damage."""
    return numbered_store(tmp_path, [1])


def pixel_file(store: ImageStore) -> Path:
    """Return the file of the only shard."""
    [shard] = store.shards
    return store.folder / f"{shard.name}.npy"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ""])
def test_a_shard_name_that_leads_out_of_the_store_is_refused(store: ImageStore, name: str) -> None:
    with edited_description(store) as content:
        [shard] = content["shards"]
        shard["name"] = name
    with pytest.raises(InputError, match="which leads out of the store"):
        ImageStore.open(store.folder)


def test_a_pickle_in_place_of_pixels_is_refused(store: ImageStore) -> None:
    # Unpickling it could run any code.
    objects = np.array([{"a": 1}])
    np.save(pixel_file(store), objects, allow_pickle=True)

    opened = ImageStore.open(store.folder)
    first_row = np.array([0])
    with pytest.raises(InputError, match="is damaged"):
        opened.read(first_row)


def test_a_folder_without_a_store_is_refused_with_the_command_that_makes_one(
    tmp_path: Path,
) -> None:
    message = r"there is no image store at .*: run `kedro run --pipeline=data_ingestion`"
    with pytest.raises(InputError, match=message):
        ImageStore.open(tmp_path)


def test_a_store_without_one_of_its_shards_is_refused(store: ImageStore) -> None:
    pixel_file(store).unlink()
    with pytest.raises(InputError, match="1 of 1 shards are missing"):
        ImageStore.open(store.folder)


def test_a_store_of_another_version_is_refused(store: ImageStore) -> None:
    with edited_description(store) as content:
        content["specification"]["format"] = 0
    with pytest.raises(InputError, match="written by another version of this program"):
        ImageStore.open(store.folder)


def test_a_damaged_list_of_shards_is_refused(store: ImageStore) -> None:
    description = store.folder / "store.json"
    description.write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        ImageStore.open(store.folder)
