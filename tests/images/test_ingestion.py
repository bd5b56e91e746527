"""Writing image stores: what is packed, what is decoded again, what survives an interruption."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images import ingestion
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.store import ImageStore
from tests.images.numbered_images import (
    KINDS,
    batch_of,
    contents,
    expected,
    numbered_store,
    parquet_of,
    pixels_of,
    plan_of,
    png,
)

# Kind of store -> ending of the files that hold its images.
SUFFIXES = {"packed": ".npy", "encoded": ".images.arrow"}
FOLDER = {"type": "folder", "labels": "ignore"}


def folder_of(folder: Path, n_images: int) -> Path:
    """Write images 0..n-1 as PNG files into a new folder."""
    folder.mkdir()
    for number in range(n_images):
        image = folder / f"i{number:02d}.png"
        image.write_bytes(png(number))
    return folder


def modification_times(store: ImageStore) -> dict[Path, int]:
    """Return the modification time of every shard's files."""
    times_ns = {}
    for file in store.folder.glob("0*"):
        times_ns[file] = file.stat().st_mtime_ns
    return times_ns


def shard_names(store: ImageStore) -> set[str]:
    return {shard.name for shard in store.shards}


@pytest.mark.parametrize(
    ("packed_max_size_px", "disk_budget_gb", "kind"),
    [(8, 1e-9, "packed"), (4, 1.0, "packed"), (4, 1e-9, "encoded")],
)
def test_auto_packs_small_images_and_small_stores(
    tmp_path: Path, packed_max_size_px: int, disk_budget_gb: float, kind: str
) -> None:
    store = numbered_store(
        tmp_path,
        [1, 2],
        kind="auto",
        packed_max_size_px=packed_max_size_px,
        disk_budget_gb=disk_budget_gb,
    )
    assert store.kind == kind


# --- what is not decoded again


@KINDS
def test_a_second_run_decodes_nothing(
    tmp_path: Path, kind: str, n_decoded: Callable[[], int]
) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(25), i7=b"broken", i9=png(3))
    folder = tmp_path / "store"
    plan = plan_of(file, kind=kind)
    first = write_store(plan, folder)
    times = modification_times(first)
    assert n_decoded() == 25

    # Not even the broken image and the duplicate, which are in the quarantine.
    again = write_store(plan, folder)
    assert n_decoded() == 0
    assert modification_times(again) == times
    assert again.fingerprint == first.fingerprint
    pd.testing.assert_frame_equal(again.quarantine, first.quarantine)


@KINDS
def test_a_pool_that_grows_costs_only_its_new_images(
    tmp_path: Path, kind: str, n_decoded: Callable[[], int]
) -> None:
    pool = tmp_path / "pool"
    folder = tmp_path / "store"
    plan = plan_of(pool, kind=kind)
    parquet_of(pool / "b.parquet", range(25))
    before = write_store(plan, folder)
    n_decoded()
    # The new file sorts before the old one, and one of its images is a copy of an old one.
    parquet_of(pool / "a.parquet", [100, 101, 102], i102=png(3))

    after = write_store(plan, folder)
    assert n_decoded() == 3

    faults = after.quarantine["status"].tolist()
    assert faults == ["duplicate of i3"]
    assert after.shards[:3] == before.shards
    assert contents(after) == expected([*range(25), 100, 101])
    assert after.fingerprint != before.fingerprint


def test_a_folder_that_grows_costs_only_its_new_images(
    tmp_path: Path, n_decoded: Callable[[], int]
) -> None:
    images = folder_of(tmp_path / "images", 12)
    folder = tmp_path / "store"
    plan = plan_of(images, source=FOLDER)
    write_store(plan, folder)
    new_image = images / "i12.png"
    new_image.write_bytes(png(12))
    n_decoded()

    store = write_store(plan, folder)
    assert n_decoded() == 1
    assert len(store) == 13


def test_a_changed_image_costs_its_shard(tmp_path: Path, n_decoded: Callable[[], int]) -> None:
    images = folder_of(tmp_path / "images", 20)
    folder = tmp_path / "store"
    plan = plan_of(images, source=FOLDER)
    before = write_store(plan, folder)
    changed_image = images / "i03.png"
    changed_image.write_bytes(png(99))
    n_decoded()

    after = write_store(plan, folder)
    # A shard holds ten images.
    assert n_decoded() == 10
    assert len(after) == 20
    pixels = contents(after)["i03.png"]
    assert pixels == pixels_of(99).tobytes()

    # A shard is named after its content, and the files of the old one are removed.
    [removed] = shard_names(before) - shard_names(after)
    left_files = list(after.folder.glob(f"{removed}*"))
    assert left_files == []


def test_touched_images_that_are_the_same_leave_the_store_as_it_was(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", 6)
    plan = plan_of(images, source=FOLDER, shard_size=2)
    before = write_store(plan, tmp_path / "store")
    os.utime(images / "i01.png")
    after = write_store(plan, tmp_path / "store")
    # Nothing downstream has to run again.
    assert after.shards == before.shards
    assert after.fingerprint == before.fingerprint


def test_removed_images_leave_the_store_and_free_their_duplicates(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    removed = parquet_of(pool / "a.parquet", [1, 2])
    parquet_of(pool / "b.parquet", [11, 13], i13=png(1))
    folder = tmp_path / "store"
    plan = plan_of(pool)
    store = write_store(plan, folder)

    duplicates = store.quarantine
    assert duplicates["id"].tolist() == ["i13"]
    assert duplicates["source"].tolist() == ["pool"]
    assert duplicates["status"].tolist() == ["duplicate of i1"]

    # With its original gone, the copy is the only image of its kind.
    removed.unlink()
    store = write_store(plan, folder)

    assert store.quarantine.empty
    found = contents(store)
    assert set(found) == {"i11", "i13"}
    assert found["i11"] == pixels_of(11).tobytes()
    assert found["i13"] == pixels_of(1).tobytes()


@pytest.mark.parametrize("change", [{"kind": "encoded"}, {"max_image_pixels": 9_999}])
def test_another_specification_decodes_everything_again(
    tmp_path: Path, change: dict[str, Any], n_decoded: Callable[[], int]
) -> None:
    numbered_store(tmp_path, range(12))
    n_decoded()
    plan = plan_of(tmp_path / "a.parquet", **change)
    store = write_store(plan, tmp_path / "store")

    assert n_decoded() == 12
    assert contents(store) == expected(range(12))
    # No file of the other specification is left.
    indexes = list(store.folder.glob("*.index.parquet"))
    assert len(indexes) == len(store.shards)


def test_other_labels_change_the_fingerprint(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, [0, 1, 2])
    file = tmp_path / "a.parquet"
    label_map = {"0": 1, "1": 2, "2": 0}
    plan = plan_of(file, source={"label_map": label_map})
    mapped = write_store(plan, tmp_path / "store")

    # The pixels are the same, but whatever was trained with the labels is not.
    assert mapped.index["label"].tolist() == [1, 2, 0]
    assert mapped.fingerprint != store.fingerprint


# --- interruptions and damage


def test_an_interrupted_run_keeps_its_finished_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_decoded: Callable[[], int]
) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(25))
    plan = plan_of(file)
    folder = tmp_path / "store"
    original = ingestion._finish_shard

    def interrupted_at_the_third(store: Any, number: int, *rest: Any) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return original(store, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ingestion, "_finish_shard", interrupted_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            write_store(plan, folder)
    # Nothing is left behind that a reader could take for a store.
    temporary_files = list(folder.glob(".*"))
    assert temporary_files == []
    with pytest.raises(InputError, match="there is no image store at"):
        ImageStore.open(folder)

    n_decoded()
    store = write_store(plan, folder)
    assert n_decoded() == 5
    uninterrupted = write_store(plan, tmp_path / "elsewhere")
    assert store.fingerprint == uninterrupted.fingerprint


def test_an_open_store_can_be_read_while_its_folder_changes(tmp_path: Path) -> None:
    before = numbered_store(tmp_path, range(12))
    rows = np.arange(12)
    # The first read maps the files; they stay readable after they have been removed.
    before.read(rows)
    numbered_store(tmp_path, range(50, 60))

    images = before.read(rows)
    np.testing.assert_array_equal(images, batch_of(rows))


def image_file(store: ImageStore, number: int) -> Path:
    """Return the file with the images of one shard."""
    shard = store.shards[number]
    suffix = SUFFIXES[store.kind]
    return store.folder / f"{shard.name}{suffix}"


def cut_to_half(file: Path) -> None:
    """Leave the first half of a file, as a full disk or a crash would."""
    n_bytes = file.stat().st_size
    os.truncate(file, n_bytes // 2)


@KINDS
def test_a_damaged_shard_is_refused_and_made_again(tmp_path: Path, kind: str) -> None:
    store = numbered_store(tmp_path, range(25), kind=kind)
    whole = contents(store)
    cut_to_half(image_file(store, number=1))

    # Image 12 is in the second shard.
    row = np.array([12])
    message = r"is damaged .*: delete it and run `kedro run --pipeline=data_ingestion`"
    damaged = ImageStore.open(store.folder)
    with pytest.raises(InputError, match=message):
        damaged.read(row)

    plan = plan_of(tmp_path / "a.parquet", kind=kind)
    repaired = write_store(plan, store.folder)
    assert contents(repaired) == whole


# --- real files


def resized_pixels(encoded: bytes, size_px: int, channels: int) -> np.ndarray:
    """Return the pixels of an encoded image as Pillow resizes it, channels first."""
    image = Image.open(BytesIO(encoded))
    size = (size_px, size_px)
    resized = image.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(resized)
    # A gray image has no axis for its channel.
    with_channels = pixels.reshape(size_px, size_px, channels)
    return with_channels.transpose(2, 0, 1)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "channels", "size_px"),
    [("mnist_test", 1, 28), ("mnist_test", 1, 32), ("cifar10_test", 3, 32)],
)
def test_real_files_keep_their_pixels_and_labels(
    tmp_path: Path, data_folder: Path, name: str, channels: int, size_px: int
) -> None:
    file = data_folder / f"{name}.parquet"
    plan = plan_of(file, source={"limit": 400, "share": (0.0, 0.2)}, shard_size=150)
    plan = dataclasses.replace(
        plan, channels=channels, size_px=size_px, class_names=tuple("0123456789")
    )
    store = write_store(plan, tmp_path / "store")
    assert len(store) == 400

    # Of the 400 images that were drawn, those among the first 500 of the file are compared.
    batches = pq.ParquetFile(file).iter_batches(500)
    first_batch = next(batches)
    originals = first_batch.to_pandas()
    stored = store.index.reset_index(names="place")
    both = stored.merge(originals, on="id", suffixes=("_stored", "_original"))
    # Enough of them to notice a mistake; the draw is fixed by the seed.
    assert len(both) > 5

    is_same_label = both["label_stored"] == both["label_original"]
    assert is_same_label.all()

    images = store.read(both["place"].to_numpy())
    for image, encoded in zip(images, both["image"], strict=True):
        expected_pixels = resized_pixels(encoded, size_px, channels)
        np.testing.assert_array_equal(image, expected_pixels)
