"""Image stores on an object store: what holds on this machine holds there."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kedro.io import DatasetError

from pu_kd_pipeline.datasets import ImageStoreDataset
from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.source_reports import read_reports
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.subset import ImageSubset
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.storage import parquet_files
from pu_kd_pipeline.storage.file_cache import FileCache
from pu_kd_pipeline.storage.object_folder import ObjectFolder
from tests.folder_sizes import sizes_of
from tests.images.numbered_images import (
    KINDS,
    batch_of,
    contents,
    expected,
    parquet_of,
    plan_of,
)
from tests.mapped_files import check_nothing_is_mapped
from tests.s3_server import BUCKET, s3_credentials

N_IMAGES = 25
PIXELS = {"packed": ".npy", "encoded": ".images.arrow"}


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    with s3_credentials() as credentials:
        yield credentials


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache.at(tmp_path / "cache", 5_000_000)


@pytest.fixture(params=["memory", "s3"])
def folder(request: pytest.FixtureRequest, cache: FileCache) -> ObjectFolder:
    prefix = f"{BUCKET}/{uuid.uuid4().hex}"
    if request.param == "memory":
        return ObjectFolder("memory", f"/{prefix}", {}, cache)
    return ObjectFolder("s3", prefix, request.getfixturevalue("s3"), cache)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return parquet_of(tmp_path / "a.parquet", range(N_IMAGES))


def with_cache(folder: ObjectFolder, path: Path, n_bytes: int) -> ObjectFolder:
    """Return the same folder with another cache."""
    return ObjectFolder(folder._protocol, folder._path, folder._options, FileCache(path, n_bytes))


@KINDS
def test_a_remote_store_is_the_local_one_byte_for_byte(folder, images, tmp_path, kind):
    plan = plan_of(images, kind=kind)
    here = write_store(plan, tmp_path / "here")
    there = write_store(plan, folder)

    opened = pickle.loads(pickle.dumps(ImageStore.open(folder)))

    assert opened.shards == there.shards == here.shards
    assert opened.fingerprint == here.fingerprint
    assert opened.index.equals(here.index)
    assert opened.n_bytes == here.n_bytes
    assert contents(opened) == contents(here) == expected(range(N_IMAGES))
    assert read_reports(folder, N_IMAGES) == read_reports(tmp_path / "here", N_IMAGES)
    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert set(folder.files()) == names
    for name in names:
        with folder.copy(name) as path:
            assert path.read_bytes() == (tmp_path / "here" / name).read_bytes(), name
    # In any order, repeated or not, also as a pass over a shard.
    rows = np.array([24, 0, 11, 0])
    assert np.array_equal(opened.read(rows), batch_of(rows))
    batches = list(opened.iter_batches(opened.shards[0], 4))
    assert np.array_equal(np.concatenate(batches), batch_of(range(10)))


@KINDS
def test_what_is_stored_is_not_decoded_again_and_added_images_cost_their_shard(
    folder, images, tmp_path, n_decoded, kind
):
    write_store(plan_of(images, kind=kind), folder)
    assert n_decoded() >= N_IMAGES
    before = folder.files()
    write_store(plan_of(images, kind=kind), folder)
    assert n_decoded() == 0

    # Files of somebody else, next to one of a shard that a killed run left.
    others = {"mine.npy", "a.index.parquet", "00000.images.arrow"}
    for name in (*others, "00009-0123456789ab.npy"):
        folder.write_text(name, "")
    more = parquet_of(tmp_path / "more.parquet", range(100, 104))
    store = write_store(plan_of(images, more, kind=kind), folder)
    assert n_decoded() == 4
    assert set(folder.files()) >= others
    assert not folder.exists("00009-0123456789ab.npy")
    folder.remove(others)
    assert contents(store) == expected([*range(N_IMAGES), *range(100, 104)])
    n_decoded()  # reading an encoded store decodes
    after = folder.files()
    shards = [name for name in before if name.startswith("0")]
    assert {name: after[name] for name in shards} == {name: before[name] for name in shards}

    # A shard whose pixels are gone is made again, and those of images that left are removed.
    lost = f"{store.shards[0].name}{PIXELS[kind]}"
    folder.remove([lost])
    with pytest.raises(InputError, match=f"{folder}: 1 of 4 shards are missing"):
        ImageStore.open(folder)
    store = write_store(plan_of(images, kind=kind), folder)
    assert n_decoded() == 10
    assert contents(store) == expected(range(N_IMAGES))
    assert set(folder.files()) == set(before)


def test_a_run_that_is_refused_leaves_the_store_as_it_was(folder, images, tmp_path):
    write_store(plan_of(images), folder)
    before = folder.files()
    broken = parquet_of(
        tmp_path / "b.parquet", range(50, 70), **{f"i{number}": b"x" for number in range(52, 70)}
    )
    with pytest.raises(InputError, match="cannot be used|unusable|quarantine"):
        write_store(plan_of(images, broken, max_quarantined_share=0.1), folder)

    assert folder.files() == before


@KINDS
def test_a_damaged_copy_is_replaced_without_a_word(folder, images, cache, kind):
    store = write_store(plan_of(images, kind=kind), folder)
    name = f"{store.shards[1].name}{PIXELS[kind]}"
    store.read(np.arange(N_IMAGES))
    [copy] = cache.folder.glob(f"place-*/*-{name}")
    content = bytearray(copy.read_bytes())
    middle = len(content) * 2 // 3
    content[middle : middle + 8] = bytes(8)
    copy.unlink()
    copy.write_bytes(content)

    assert contents(ImageStore.open(folder)) == expected(range(N_IMAGES))


@KINDS
def test_a_damaged_copy_that_others_read_is_no_damage_of_the_file(folder, images, kind):
    store = write_store(plan_of(images, kind=kind), folder)
    name = f"{store.shards[1].name}{PIXELS[kind]}"
    with folder.copy(name) as copy:
        content = bytearray(copy.read_bytes())
        middle = len(content) * 2 // 3
        content[middle : middle + 8] = bytes(8)
        copy.write_bytes(content)
        message = f"^the copy of {folder}/{name} on this machine is damaged, .*try again"
        with pytest.raises(UnavailableError, match=message):
            ImageStore.open(folder).read(np.arange(N_IMAGES))

    assert contents(ImageStore.open(folder)) == expected(range(N_IMAGES))


def test_a_file_that_is_removed_while_its_copy_is_replaced_is_named(
    folder, images, cache, tmp_path
):
    store = write_store(plan_of(images), folder)
    name = f"{store.shards[0].name}.npy"
    store.read(np.arange(10))
    for copy in cache.folder.glob(f"place-*/*-{name}"):
        copy.write_bytes(b"x" * copy.stat().st_size)
    with_cache(folder, tmp_path / "other", 1_000).remove([name])

    with pytest.raises(InputError, match=f"there is no {folder}/{name}"):
        store.read(np.arange(10))


@KINDS
def test_a_damaged_or_missing_file_is_named_by_its_address(folder, images, kind):
    store = write_store(plan_of(images, kind=kind), folder)
    name = f"{store.shards[1].name}{PIXELS[kind]}"
    with folder.copy(name) as path:
        content = bytearray(path.read_bytes())
    middle = len(content) * 2 // 3
    content[middle : middle + 8] = bytes(8)
    folder._write_bytes(name, bytes(content))
    damaged = ImageStore.open(folder)

    with pytest.raises(InputError, match=f"^{folder}/{name}.* is damaged"):
        damaged.read(np.arange(N_IMAGES))
    # Other shards are as they were.
    assert np.array_equal(damaged.read(np.arange(10)), batch_of(range(10)))

    folder.remove([name])
    with pytest.raises(InputError, match=f"there is no {folder}/{name}"):
        damaged.read(np.arange(10, 12))
    folder.write_text("store.json", "{}")
    with pytest.raises(InputError, match=f"{folder}/store.json is damaged"):
        ImageStore.open(folder)


def test_a_store_that_does_not_exist_is_named_by_its_address(folder):
    with pytest.raises(InputError, match=f"there is no image store at {folder}"):
        ImageStore.open(folder)


@KINDS
def test_a_store_larger_than_the_cache_is_written_and_read_within_its_limit(
    folder, images, tmp_path, kind
):
    limit = 1_200_000  # of which the reservation for an index takes most
    small = with_cache(folder, tmp_path / "small", limit)
    with sizes_of(tmp_path / "small") as sizes:
        store = write_store(plan_of(images, kind=kind, shard_size=3), small)
        assert contents(store) == expected(range(N_IMAGES))

    assert 0 < max(sizes) <= limit


@KINDS
def test_room_for_new_images_is_made_after_the_indices_were_read(
    folder, images, tmp_path, kind, monkeypatch
):
    # So that indices and pixels decide here, and not what is reserved for an index.
    monkeypatch.setattr(parquet_files, "_MAX_OVERHEAD_BYTES", 15_000)
    write_store(plan_of(images, kind=kind, shard_size=3), folder)
    more = parquet_of(tmp_path / "more.parquet", range(100, 200))
    limit = 45_000
    small = with_cache(folder, tmp_path / "small", limit)
    with sizes_of(tmp_path / "small") as sizes:
        store = write_store(plan_of(images, more, kind=kind, shard_size=100), small)

    assert len(store) == N_IMAGES + 100
    assert 0 < max(sizes) <= limit


def test_a_run_that_decodes_nothing_leaves_the_copies(folder, images, cache):
    store = write_store(plan_of(images), folder)
    store.read(np.arange(N_IMAGES))
    copies = set(cache.folder.glob("place-*/*.npy"))
    write_store(plan_of(images), folder)

    assert set(cache.folder.glob("place-*/*.npy")) == copies


def test_no_read_keeps_a_map_of_a_copy(folder, images, cache):
    for kind in PIXELS:
        store = write_store(plan_of(images, kind=kind), folder)
        store.read(np.arange(N_IMAGES))

        check_nothing_is_mapped(cache.folder)


def test_a_shard_larger_than_the_cache_is_refused_with_the_size_that_it_needs(
    folder, images, tmp_path
):
    write_store(plan_of(images), folder)
    small = with_cache(folder, tmp_path / "small", 1_000)

    about = r"\.(npy|index\.parquet) has .* GB, and the cache .*: set cache_gb to"
    with pytest.raises(InputError, match=about):
        ImageStore.open(small).read(np.arange(3))


def test_random_draws_from_more_than_the_cache_holds_are_refused_with_the_size_that_helps(
    folder, images, tmp_path
):
    store = write_store(plan_of(images), folder)
    n_bytes = store.pixel_bytes(np.arange(N_IMAGES))
    compute = ComputeParams(
        device="cpu",
        precision="float32",
        n_threads=1,
        resident_limit_gb=1e-9,
        inference_batch_size=None,
    )
    rows = np.arange(N_IMAGES)

    small = ImageStore.open(with_cache(folder, tmp_path / "small", n_bytes - 1))
    with pytest.raises(InputError) as refusal:
        ImageRows([(small, rows)], compute)
    message = str(refusal.value)
    assert "images are read in random order from shards of " in message
    assert f"set cache_gb to {n_bytes / 1e9 * 1.1:.3g} or more" in message
    # Only the shards that are drawn from have to fit.
    ImageRows([(small, rows[:10])], compute)
    ImageRows([(ImageSubset.of(small, rows[15:]), np.arange(3))], compute)
    large = ImageStore.open(with_cache(folder, tmp_path / "large", n_bytes))
    assert not ImageRows([(large, rows)], compute).is_resident
    # What is held in memory is read once.
    resident = compute.model_copy(update={"resident_limit_gb": 1.0})
    assert ImageRows([(small, rows)], resident).is_resident


def test_a_run_that_was_killed_is_noticed_by_the_next_one(folder, images, caplog):
    folder.write_text(".started", "")

    write_store(plan_of(images), folder)

    assert "the last run was killed while it decoded" in caplog.text
    assert not folder.exists(".started")


# --- the catalog's dataset


@pytest.fixture
def dataset(folder: ObjectFolder, cache: FileCache) -> Callable[[], ImageStoreDataset]:
    """Return what makes another dataset of the folder, as another run has one."""
    # Kedro does not count what looks like a host as a part of the path.
    filepath = f"memory://host{folder._path}" if folder._protocol == "memory" else str(folder)
    return partial(
        ImageStoreDataset,
        filepath=filepath,
        credentials=dict(folder._options),
        cache=str(cache.folder),
        cache_gb=0.005,
    )


def test_what_another_run_wrote_in_between_is_not_taken_for_the_own_store(
    dataset, folder, images, tmp_path
):
    own = dataset()
    own.save(plan_of(images))
    assert len(own.load()) == N_IMAGES

    more = parquet_of(tmp_path / "more.parquet", range(100, 104))
    dataset().save(plan_of(images, more))
    with pytest.raises(DatasetError, match=f"another run wrote {folder} meanwhile: give each run"):
        own.load()
    assert len(dataset().load()) == N_IMAGES + 4


def test_the_dataset_of_a_remote_store_has_a_state_and_can_be_made_again(
    dataset, images, n_decoded
):

    assert not dataset().exists()
    assert dataset().content_state() is None
    assert dataset().remote_files() == {}
    dataset().save(plan_of(images))
    state = dataset().content_state()
    n_decoded()

    dataset().save(plan_of(images))
    assert n_decoded() == 0
    assert dataset().content_state() == state
    assert dataset().filepath is None
    assert dataset().load().kind == "packed"
    assert dataset().counts() == {"rows": N_IMAGES}
    assert dataset().preview()

    dataset().make_again()
    # It holds for another process, and until it is done.
    dataset().save(plan_of(images))
    assert n_decoded() == N_IMAGES
    dataset().save(plan_of(images))
    assert n_decoded() == 0
    assert dataset().content_state() == state
