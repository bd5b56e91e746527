"""Reading image stores: the rows asked for, and files that must not be opened."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.store import ImageStore
from tests.images.numbered_images import (
    KINDS,
    batch_of,
    contents,
    numbered_store,
    parquet_of,
    plan_of,
)

INDEX_COLUMNS = ["id", "source", "label", "relevant", "sha256", "shard", "row"]


@KINDS
def test_any_rows_are_read_in_any_order(tmp_path: Path, kind: str) -> None:
    store = numbered_store(tmp_path, range(25), kind=kind)
    assert len(store) == 25
    assert store.kind == kind
    assert store.image_shape == (3, 8, 8)
    # Rows of several shards, of one shard (which takes another path), and none at all.
    several = [24, 0, 3, 3, 10, 9]
    np.testing.assert_array_equal(store.read(np.array(several)), batch_of(several))
    one = [12, 11]
    np.testing.assert_array_equal(store.read(np.array(one)), batch_of(one))
    nothing = np.array([], dtype=np.int64)
    assert store.read(nothing).shape == (0, 3, 8, 8)


def test_images_are_cut_into_shards_of_the_stated_size(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, range(25), shard_size=10)
    lengths = [shard.n for shard in store.shards]
    assert lengths == [10, 10, 5]
    starts = [shard.start for shard in store.shards]
    assert starts == [0, 10, 20]


@KINDS
def test_rows_outside_of_the_store_are_refused(tmp_path: Path, kind: str) -> None:
    store = numbered_store(tmp_path, range(25), kind=kind)
    with pytest.raises(IndexError, match=r"0\.\.24, got -1\.\.25"):
        store.read(np.array([-1, 25]))


@KINDS
def test_a_shard_is_read_whole_or_in_batches(tmp_path: Path, kind: str) -> None:
    store = numbered_store(tmp_path, range(15), kind=kind)
    first = store.shards[0]
    whole = batch_of(range(10))
    np.testing.assert_array_equal(store.read_shard(first), whole)

    batches = list(store.iter_batches(first, batch_size=4))
    lengths = [len(batch) for batch in batches]
    assert lengths == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(batches), whole)


def test_a_packed_shard_is_a_memory_map_of_a_plain_npy_file(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, [1, 2])
    shard = store.shards[0]
    mapped = store.read_shard(shard)
    assert isinstance(mapped.base, np.memmap)
    assert not mapped.flags.writeable
    plain = np.load(store.folder / f"{shard.name}.npy")
    np.testing.assert_array_equal(plain, batch_of([1, 2]))


def test_the_index_describes_every_row(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(12))
    plan = plan_of(file, source={"name": "mine"})
    index = write_store(plan, tmp_path / "store").index
    assert index.columns.tolist() == INDEX_COLUMNS

    assert index["id"].tolist() == [f"mine/i{number}" for number in range(12)]
    assert (index["source"] == "mine").all()

    # Types that have a null, unlike NumPy's integers and booleans.
    assert index["label"].dtype == "Int32"
    assert index["label"].tolist() == [number % 3 for number in range(12)]
    assert index["relevant"].dtype == "boolean"
    assert index["relevant"].all()
    assert index["row"].tolist() == [*range(10), 0, 1]


def test_ignored_labels_are_null_in_the_index(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(12))
    plan = plan_of(file, source={"labels": "ignore"})
    index = write_store(plan, tmp_path / "store").index
    assert index["label"].isna().all()
    assert index["relevant"].isna().all()


def test_ids_of_a_shard_are_those_of_the_index(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, range(12))
    assert len(store.shards) > 1
    for shard in store.shards:
        ids = store.shard_ids(shard).to_pylist()
        rows_of_shard = slice(shard.start, shard.start + shard.n)
        expected = store.index["id"].iloc[rows_of_shard]
        assert ids == expected.tolist()


@KINDS
def test_a_store_can_be_sent_to_other_processes(tmp_path: Path, kind: str) -> None:
    store = numbered_store(tmp_path, range(12), kind=kind)
    rows = np.arange(12)
    images = store.read(rows)
    pickled = pickle.dumps(store)
    # The opened files stay behind.
    assert len(pickled) < 2_000
    received = pickle.loads(pickled)
    np.testing.assert_array_equal(received.read(rows), images)

    with multiprocessing.get_context("fork").Pool(2) as pool:
        for read in pool.map(store.read, [rows] * 4):
            np.testing.assert_array_equal(read, images)


def test_both_kinds_hold_the_same_images(tmp_path: Path) -> None:
    packed = numbered_store(tmp_path / "packed", range(12), kind="packed")
    encoded = numbered_store(tmp_path / "encoded", range(12), kind="encoded")
    assert contents(packed) == contents(encoded)
    packed_hashes = packed.index["sha256"].tolist()
    encoded_hashes = encoded.index["sha256"].tolist()
    assert packed_hashes == encoded_hashes


def test_an_empty_store_can_be_read(tmp_path: Path) -> None:
    store = write_store(plan_of(), tmp_path / "store")
    assert len(store) == 0
    assert len(store.quarantine) == 0
    assert len(store.index) == 0
    assert store.index.columns.tolist() == INDEX_COLUMNS
    assert store.read(np.array([], dtype=np.int64)).shape == (0, 3, 8, 8)


def test_importing_the_stores_needs_neither_pandas_nor_pyarrow_nor_torch() -> None:
    # Every command imports this module, also those that only print their help.
    code = (
        "import sys, pu_kd_pipeline.images.store\n"
        "print(*{'pandas', 'pyarrow', 'torch', 'PIL'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- what must not be opened


def tamper(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a store's `store.json`."""
    file = folder / "store.json"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ""])
def test_a_shard_name_that_leads_out_of_the_store_is_refused(tmp_path: Path, name: str) -> None:
    store = numbered_store(tmp_path, [1])
    tamper(store.folder, lambda about: about["shards"][0].update(name=name))
    with pytest.raises(InputError, match="which leads out of the store"):
        ImageStore.open(store.folder)


def test_a_pickle_in_place_of_pixels_is_refused(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, [1])
    # Unpickling it could run any code.
    pixels = store.folder / f"{store.shards[0].name}.npy"
    np.save(pixels, np.array([{"a": 1}]), allow_pickle=True)
    opened = ImageStore.open(store.folder)
    with pytest.raises(InputError, match="is damaged"):
        opened.read(np.array([0]))


def test_a_folder_without_a_store_is_refused_with_the_command_that_makes_one(
    tmp_path: Path,
) -> None:
    message = r"there is no image store at .*: run `kedro run --pipeline=data_ingestion`"
    with pytest.raises(InputError, match=message):
        ImageStore.open(tmp_path)


def test_a_store_without_one_of_its_shards_is_refused(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, [1])
    (store.folder / f"{store.shards[0].name}.npy").unlink()
    with pytest.raises(InputError, match="1 of 1 shards are missing"):
        ImageStore.open(store.folder)


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, [1])
    tamper(store.folder, lambda about: about["specification"].update(format=0))
    with pytest.raises(InputError, match="written by another version of this program"):
        ImageStore.open(store.folder)


def test_a_damaged_list_of_shards_is_refused(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, [1])
    (store.folder / "store.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        ImageStore.open(store.folder)
