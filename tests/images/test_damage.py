"""Damaged, exchanged and outdated files of image stores: refused, or made again by ingestion."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.datasets import ImageStoreDataset
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images import ingestion, row_checksums
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.source_reports import read_reports
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.storage.checked_json import from_checked_json, to_checked_json
from tests.hostile.mutations import damaged_bytes
from tests.images.numbered_images import (
    KINDS,
    contents,
    expected,
    numbered_store,
    parquet_of,
    plan_of,
    png,
)

RUN_AGAIN = r"run `kedro run --pipeline=data_ingestion`"
SUFFIXES = {"packed": ".npy", "encoded": ".images.arrow"}


def image_files(store: ImageStore) -> list[Path]:
    """Return the files with the images of the shards, in order."""
    suffix = SUFFIXES[store.kind]
    return [store.folder / f"{shard.name}{suffix}" for shard in store.shards]


def exchange(file: Path, other: Path) -> None:
    """Let two files change places."""
    content = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)


def flip_byte_of_image(store: ImageStore, number: int) -> None:
    """Flip one byte of an image in the first shard, in the middle of its bytes."""
    file = image_files(store)[0]
    image = png(number) if store.kind == "encoded" else contents(store)[f"i{number}"]
    content = bytearray(file.read_bytes())
    position = content.index(image) + len(image) // 2
    content[position] ^= 1
    file.write_bytes(content)


@KINDS
def test_a_flipped_byte_of_an_image_is_refused_and_the_shard_made_again(
    tmp_path: Path, kind: str, n_decoded: Callable[[], int]
) -> None:
    store = numbered_store(tmp_path, range(25), kind=kind)
    flip_byte_of_image(store, 3)
    damaged = ImageStore.open(store.folder)
    # Only what is read is verified: a large store need not be read as a whole first.
    damaged.read(np.array([0, 1, 2, 4, 24]))
    message = rf"is damaged \(row 3: its checksum is wrong\): delete it and {RUN_AGAIN}"
    for read in (
        lambda: damaged.read(np.array([1, 3])),
        lambda: damaged.read(np.array([3, 24])),
        lambda: list(damaged.iter_batches(damaged.shards[0], 4)),
    ):
        with pytest.raises(InputError, match=message):
            read()

    n_decoded()
    plan = plan_of(tmp_path / "a.parquet", kind=kind)
    repaired = write_store(plan, store.folder)
    assert n_decoded() == 10
    assert contents(repaired) == expected(range(25))
    # The shard is back in its place, so that nothing else has to be made again.
    assert repaired.fingerprint == store.fingerprint


@KINDS
@pytest.mark.parametrize("ending", ["images", "index"])
def test_exchanged_files_are_refused_and_made_again(tmp_path: Path, kind: str, ending: str) -> None:
    store = numbered_store(tmp_path, range(20), kind=kind)
    files = image_files(store)
    if ending == "index":
        files = sorted(store.folder.glob("*.index.parquet"))
    exchange(*files)
    with pytest.raises(InputError, match=RUN_AGAIN):
        contents(ImageStore.open(store.folder))

    plan = plan_of(tmp_path / "a.parquet", kind=kind)
    assert contents(write_store(plan, store.folder)) == expected(range(20))


def test_an_image_is_verified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = numbered_store(tmp_path, range(12))
    verified = []
    original = row_checksums.checksum

    def counted(image: object) -> int:
        verified.append(image)
        return original(image)

    monkeypatch.setattr(row_checksums, "checksum", counted)
    # Row 3 twice in the first batch.
    for rows in ([3, 3, 11], [3, 11, 4], [4]):
        store.read(np.array(rows))
    assert len(verified) == 4


def test_a_quarantine_of_another_store_is_refused(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(8), i7=b"broken")
    store = write_store(plan_of(file), tmp_path / "store")
    other = numbered_store(tmp_path / "other", range(8))
    exchange(store.folder / "quarantine.parquet", other.folder / "quarantine.parquet")
    with pytest.raises(InputError, match=rf"lists 0 images, its store says 1: .*{RUN_AGAIN}"):
        _ = ImageStore.open(store.folder).quarantine


@pytest.fixture(scope="module", params=["packed", "encoded"])
def intact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """A store of two shards and a quarantined image, next to its source `a.parquet`."""
    folder = tmp_path_factory.mktemp("intact")
    file = parquet_of(folder / "a.parquet", range(8), i7=b"broken")
    plan = plan_of(file, kind=request.param, shard_size=4)
    return write_store(plan, folder / "store")


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_whatever_is_damaged_the_store_is_refused_or_right_and_can_be_made_again(
    intact: ImageStore, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "store"
    shutil.copytree(intact.folder, folder)
    names = sorted(file.name for file in folder.iterdir())
    victim = folder / data.draw(st.sampled_from(names))
    how = data.draw(st.sampled_from(["damage", "remove", "replace"]))
    if how == "damage":
        victim.write_bytes(data.draw(damaged_bytes([victim.read_bytes()])))
    elif how == "remove":
        victim.unlink()
    else:
        other = folder / data.draw(st.sampled_from(names))
        victim.write_bytes(other.read_bytes())

    # Any other error than an InputError fails the test.
    with suppress(InputError):
        check_is_intact(ImageStore.open(folder), intact)
    source = intact.folder.with_name("a.parquet")
    repaired = write_store(plan_of(source, kind=intact.kind, shard_size=4), folder)
    check_is_intact(repaired, intact)


def check_is_intact(store: ImageStore, intact: ImageStore) -> None:
    """Check that everything that can be read from a store is what was written."""
    assert contents(store) == expected(range(7))
    assert store.fingerprint == intact.fingerprint
    pd.testing.assert_frame_equal(store.index, intact.index)
    pd.testing.assert_frame_equal(store.quarantine, intact.quarantine)
    assert read_reports(store.folder, 8) == read_reports(intact.folder, 8)


# --- stores of other code, other libraries, and earlier versions


@KINDS
def test_other_code_or_libraries_decode_everything_again(
    tmp_path: Path, kind: str, n_decoded: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(12), i7=b"broken")
    plan = plan_of(file, kind=kind)
    before = write_store(plan, tmp_path / "store")
    monkeypatch.setattr(ingestion, "maker_fingerprint", lambda *_: "0123456789ab")
    # Later stages can use the store of another maker.
    assert contents(ImageStore.open(before.folder)) == contents(before)

    n_decoded()
    after = write_store(plan, tmp_path / "store")
    assert n_decoded() == 12
    assert after.specification.maker == "0123456789ab"
    # The pixels came out the same, and so does all that is named after them.
    assert after.fingerprint == before.fingerprint
    write_store(plan, tmp_path / "store")
    assert n_decoded() == 0


def test_a_store_of_the_format_before_is_refused_and_made_again(tmp_path: Path) -> None:
    store = numbered_store(tmp_path, range(12))
    description = store.folder / "store.json"
    about = from_checked_json(description.read_text())
    about["specification"]["format"] = 1
    del about["specification"]["maker"]
    description.write_text(to_checked_json(about).replace('"checksum"', '"n_images"'))
    with pytest.raises(InputError, match=rf"another version of this program: {RUN_AGAIN}"):
        ImageStore.open(store.folder)
    again = write_store(plan_of(tmp_path / "a.parquet"), store.folder)
    assert contents(again) == expected(range(12))


# --- making everything again


def test_every_image_is_read_again_where_that_is_asked_for(
    tmp_path: Path, n_decoded: Callable[[], int]
) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(12), i7=b"broken")
    plan = plan_of(file)
    dataset = ImageStoreDataset(filepath=str(tmp_path / "store"))
    # Before the first save there is nothing to make again.
    dataset.make_again()
    dataset.save(plan)
    before = dataset.load()
    n_decoded()
    dataset.make_again()
    dataset.save(plan)
    # The broken image, too.
    assert n_decoded() == 12
    assert dataset.load().fingerprint == before.fingerprint
    # Once only.
    dataset.save(plan)
    assert n_decoded() == 0
    assert list((tmp_path / "store").glob(".*")) == []


def test_a_forced_store_that_was_killed_is_forced_again_and_readable_meanwhile(
    tmp_path: Path, n_decoded: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(25))
    plan = plan_of(file)
    folder = tmp_path / "store"
    dataset = ImageStoreDataset(filepath=str(folder))
    dataset.save(plan)
    original = ingestion._finish_shard

    def killed_at_the_third(store: object, number: int, *rest: object) -> object:
        if number == 2:
            raise KeyboardInterrupt
        return original(store, number, *rest)  # type: ignore[arg-type]

    dataset.make_again()
    with monkeypatch.context() as patch:
        patch.setattr(ingestion, "_finish_shard", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            dataset.save(plan)
    assert contents(dataset.load()) == expected(range(25))

    n_decoded()
    # As another process would, which was not asked to force anything.
    ImageStoreDataset(filepath=str(folder)).save(plan)
    assert n_decoded() == 25
    assert contents(dataset.load()) == expected(range(25))
