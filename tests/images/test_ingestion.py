"""Writing image stores: what is packed, what is decoded again, what survives an interruption."""

from __future__ import annotations

import dataclasses
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

FOLDER = {"type": "folder", "labels": "ignore"}


def folder_of(folder: Path, n_images: int) -> Path:
    """Write images 0..n-1 as PNG files into a new folder."""
    folder.mkdir()
    for number in range(n_images):
        (folder / f"i{number:02d}.png").write_bytes(png(number))
    return folder


def modification_times(store: ImageStore) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in store.folder.glob("0*")}


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
    plan = plan_of(file, kind=kind)
    first = write_store(plan, tmp_path / "store")
    assert n_decoded() == 25
    times = modification_times(first)

    again = write_store(plan, tmp_path / "store")
    assert n_decoded() == 0
    assert modification_times(again) == times
    assert again.fingerprint == first.fingerprint
    pd.testing.assert_frame_equal(again.quarantine, first.quarantine)


@KINDS
def test_a_pool_that_grows_costs_only_its_new_images(
    tmp_path: Path, kind: str, n_decoded: Callable[[], int]
) -> None:
    pool = tmp_path / "pool"
    plan = plan_of(pool, kind=kind)
    parquet_of(pool / "b.parquet", range(25))
    before = write_store(plan, tmp_path / "store")
    n_decoded()
    # The new file sorts before the old one, and one of its images is a copy of an old one.
    parquet_of(pool / "a.parquet", [100, 101, 102], i102=png(3))

    after = write_store(plan, tmp_path / "store")
    assert n_decoded() == 3
    assert after.quarantine["status"].tolist() == ["duplicate of i3"]
    assert after.shards[:3] == before.shards
    assert contents(after) == expected([*range(25), 100, 101])
    assert after.fingerprint != before.fingerprint


def test_a_folder_that_grows_costs_only_its_new_images(
    tmp_path: Path, n_decoded: Callable[[], int]
) -> None:
    images = folder_of(tmp_path / "images", 12)
    plan = plan_of(images, source=FOLDER)
    write_store(plan, tmp_path / "store")
    (images / "i12.png").write_bytes(png(12))
    n_decoded()
    store = write_store(plan, tmp_path / "store")
    assert len(store) == 13
    assert n_decoded() == 1


def test_a_changed_image_costs_its_shard(tmp_path: Path, n_decoded: Callable[[], int]) -> None:
    images = folder_of(tmp_path / "images", 20)
    plan = plan_of(images, source=FOLDER)
    before = write_store(plan, tmp_path / "store")
    (images / "i03.png").write_bytes(png(99))
    n_decoded()

    after = write_store(plan, tmp_path / "store")
    assert n_decoded() == 10
    assert contents(after)["i03.png"] == pixels_of(99).tobytes()
    assert len(after) == 20
    names_after = [shard.name for shard in after.shards]
    removed = [shard.name for shard in before.shards if shard.name not in names_after]
    assert len(removed) == 1
    assert not list(after.folder.glob(f"{removed[0]}*"))


def test_removed_images_leave_the_store_and_free_their_duplicates(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    removed = parquet_of(pool / "a.parquet", [1, 2])
    parquet_of(pool / "b.parquet", [11, 12], i12=png(1))
    store = write_store(plan_of(pool), tmp_path / "store")
    assert store.quarantine["id"].tolist() == ["i12"]
    assert store.quarantine["source"].tolist() == ["pool"]
    assert store.quarantine["status"].tolist() == ["duplicate of i1"]

    removed.unlink()
    store = write_store(plan_of(pool), tmp_path / "store")
    assert contents(store) == {
        "i11": pixels_of(11).tobytes(),
        "i12": pixels_of(1).tobytes(),
    }
    assert store.quarantine.empty


@pytest.mark.parametrize("change", [{"kind": "encoded"}, {"max_image_pixels": 9_999}])
def test_another_specification_decodes_everything_again(
    tmp_path: Path, change: dict[str, Any], n_decoded: Callable[[], int]
) -> None:
    numbered_store(tmp_path, range(12))
    n_decoded()
    store = write_store(plan_of(tmp_path / "a.parquet", **change), tmp_path / "store")
    assert n_decoded() == 12
    assert contents(store) == expected(range(12))
    indexes = list(store.folder.glob("*.index.parquet"))
    assert len(indexes) == len(store.shards)


def test_other_labels_change_the_fingerprint(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, [0, 1, 2])
    label_map = {"0": 1, "1": 2, "2": 0}
    plan = plan_of(tmp_path / "a.parquet", source={"label_map": label_map})
    mapped = write_store(plan, tmp_path / "store")
    assert mapped.index["label"].tolist() == [1, 2, 0]
    assert mapped.fingerprint != store.fingerprint


# --- interruptions and damage


def test_an_interrupted_run_keeps_its_finished_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_decoded: Callable[[], int]
) -> None:
    plan = plan_of(parquet_of(tmp_path / "a.parquet", range(25)))
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
    assert not list(folder.glob(".*"))
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
    np.testing.assert_array_equal(before.read(rows), batch_of(range(12)))


@KINDS
def test_a_damaged_shard_is_refused_and_made_again(tmp_path: Path, kind: str) -> None:
    store = numbered_store(tmp_path, range(25), kind=kind)
    whole = contents(store)
    suffix = {"packed": ".npy", "encoded": ".images.arrow"}[kind]
    pixels = store.folder / f"{store.shards[1].name}{suffix}"
    with open(pixels, "r+b") as file:
        file.truncate(pixels.stat().st_size // 2)
    message = r"is damaged .*: delete it and run `kedro run --pipeline=data_ingestion`"
    damaged = ImageStore.open(store.folder)
    with pytest.raises(InputError, match=message):
        damaged.read(np.array([12]))

    plan = plan_of(tmp_path / "a.parquet", kind=kind)
    repaired = write_store(plan, store.folder)
    assert contents(repaired) == whole


# --- real files


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "channels", "size_px"),
    [("mnist_test", 1, 28), ("mnist_test", 1, 32), ("cifar10_test", 3, 32)],
)
def test_real_files_keep_their_pixels_and_labels(
    tmp_path: Path, data_folder: Path, name: str, channels: int, size_px: int
) -> None:
    file = data_folder / f"{name}.parquet"
    plan = dataclasses.replace(
        plan_of(file, source={"limit": 400, "share": (0.0, 0.2)}, shard_size=150),
        channels=channels,
        size_px=size_px,
        class_names=tuple("0123456789"),
    )
    store = write_store(plan, tmp_path / "store")
    assert len(store) == 400

    # Of the 400 images that were drawn, those among the first 500 of the file are compared.
    originals = next(pq.ParquetFile(file).iter_batches(500)).to_pandas()
    both = store.index.reset_index(names="place").merge(originals, on="id")
    assert len(both) > 5
    assert (both["label_x"] == both["label_y"]).all()
    for place, encoded in zip(both["place"], both["image"], strict=True):
        image = Image.open(BytesIO(encoded))
        resized = image.resize((size_px, size_px), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized).reshape(size_px, size_px, channels)
        stored = store.read(np.array([place]))[0]
        np.testing.assert_array_equal(stored, pixels.transpose(2, 0, 1))
