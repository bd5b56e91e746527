"""Tables in shards on an object store: what holds on this machine holds there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from kedro.io.core import DatasetError

from pu_kd_pipeline.cli.errors import user_message
from pu_kd_pipeline.datasets import ShardedTableDataset
from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.storage import object_folder
from pu_kd_pipeline.storage.checked_json import to_checked_json
from pu_kd_pipeline.storage.file_cache import FileCache
from pu_kd_pipeline.storage.object_folder import ObjectFolder
from pu_kd_pipeline.storage.sharded_table import ShardedTable, fixed_size_list, shard_file
from tests.folder_sizes import sizes_of
from tests.mapped_files import check_nothing_is_mapped
from tests.s3_server import BUCKET, proxied, put_objects, s3_credentials

N_ROWS = 2_000
LIMIT = 4_000_000


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    with s3_credentials() as credentials:
        yield credentials


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache.at(tmp_path / "cache", LIMIT)


@pytest.fixture(params=["memory", "s3"])
def folder(request: pytest.FixtureRequest, cache: FileCache) -> ObjectFolder:
    prefix = f"{BUCKET}/{uuid.uuid4().hex}"
    if request.param == "memory":
        return ObjectFolder("memory", f"/{prefix}", {}, cache)
    return ObjectFolder("s3", prefix, request.getfixturevalue("s3"), cache)


def shard(number: int) -> pa.Table:
    values = np.random.default_rng(number).normal(size=(N_ROWS, 16)).astype(np.float16)
    ids = [f"{number}-{row}" for row in range(N_ROWS)]
    table = pa.table({"id": ids, "descriptor": fixed_size_list(values)})
    return table.replace_schema_metadata({"teacher": "abc"})


def makers(*numbers: int, made: list[int] | None = None) -> dict[str, Callable[[], pa.Table]]:
    """Return the functions that make shards, which note what they made."""

    def make(number: int) -> pa.Table:
        if made is not None:
            made.append(number)
        return shard(number)

    found = {}
    for number in numbers:
        found[f"{number:05d}-abcdef012345"] = lambda number=number: make(number)
    return found


def test_a_remote_table_is_the_local_one_byte_for_byte(folder, tmp_path):
    here = ShardedTable.write(tmp_path / "here", makers(0, 1, 2))
    there = ShardedTable.write(folder, makers(0, 1, 2))

    opened = ShardedTable.open(folder)

    assert opened.names == there.names == here.names
    assert opened.fingerprint == here.fingerprint
    assert opened.facts == here.facts == {"teacher": "abc"}
    assert len(opened) == 3 * N_ROWS
    assert opened.to_pandas().equals(here.to_pandas())
    assert np.array_equal(opened.arrays("descriptor"), here.arrays("descriptor"))
    assert opened.shard("00001-abcdef012345").equals(here.shard("00001-abcdef012345"))
    for name in here.names:
        with folder.copy(shard_file(name)) as path:
            assert path.read_bytes() == (tmp_path / "here" / shard_file(name)).read_bytes()
    assert folder.read_text("shards.json") == (tmp_path / "here" / "shards.json").read_text()


def test_only_missing_shards_are_made_and_others_are_removed_unless_they_are_kept(folder):
    made: list[int] = []
    ShardedTable.write(folder, makers(0, 1, 2, made=made))
    ShardedTable.write(folder, makers(0, 1, 2, made=made))
    assert made == [0, 1, 2]

    folder.remove(["00001-abcdef012345.parquet"])
    with pytest.raises(InputError, match=r"1 of 3 shards are missing, such as 00001-abcdef012345"):
        ShardedTable.open(folder)
    ShardedTable.write(folder, makers(0, 1, 2, made=made))
    assert made == [0, 1, 2, 1]

    ShardedTable.write(folder, makers(1, made=made), keeps_others=True)
    assert "00002-abcdef012345.parquet" in folder.files()
    ShardedTable.write(folder, makers(1, made=made))
    assert set(folder.files()) == {"shards.json", "00001-abcdef012345.parquet"}
    assert len(ShardedTable.open(folder)) == N_ROWS

    # A file of somebody else, of which no list knows.
    folder.write_text("mine.parquet", "")
    ShardedTable.write(folder, makers(1, made=made), makes_again=True)
    assert folder.exists("mine.parquet")
    assert made == [0, 1, 2, 1, 1]


def test_a_table_that_does_not_exist_or_is_damaged_is_named_by_its_address(folder):
    with pytest.raises(InputError, match=f"there is no table at {folder}: run the stage"):
        ShardedTable.open(folder)

    ShardedTable.write(folder, makers(0, 1))
    folder.write_text("00000-abcdef012345.parquet", "junk")
    table = ShardedTable.open(folder)
    with pytest.raises(InputError) as damage:
        table.to_pandas()
    assert str(damage.value).startswith(f"{folder}/00000-abcdef012345.parquet is damaged (")
    assert "delete it, and run the stage that wrote it again" in str(damage.value)

    folder.write_text("shards.json", "{}")
    with pytest.raises(InputError, match=f"{folder}/shards.json cannot be used"):
        ShardedTable.open(folder)


def test_another_shard_under_the_name_of_one_is_noticed(folder):
    ShardedTable.write(folder, makers(0, 1))
    with folder.copy("00000-abcdef012345.parquet") as path:
        target = folder._file("00001-abcdef012345.parquet")
        folder._attempt(lambda: folder._fs.put_file(str(path), target), "", "written")
    message = "00001-abcdef012345.parquet is damaged .*checksum is wrong"
    with pytest.raises(InputError, match=message):
        ShardedTable.open(folder).to_pandas()


def test_a_damaged_copy_is_replaced_without_a_word(folder, cache):
    ShardedTable.write(folder, makers(0))
    [copy] = (cache.folder / folder._place).glob("*-00000-abcdef012345.parquet")
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)

    assert ShardedTable.open(folder).shard("00000-abcdef012345").equals(shard(0).combine_chunks())


def test_a_damaged_copy_that_others_read_is_no_damage_of_the_file(folder, cache):
    table = ShardedTable.write(folder, makers(0))
    name = "00000-abcdef012345.parquet"
    with folder.copy(name) as copy:
        content = bytearray(copy.read_bytes())
        content[len(content) // 2] ^= 1
        copy.write_bytes(content)
        message = f"^the copy of {folder}/{name} on this machine is damaged, .*try again"
        with pytest.raises(UnavailableError, match=message):
            table.shard("00000-abcdef012345")

    assert table.shard("00000-abcdef012345").equals(shard(0).combine_chunks())


def test_a_table_larger_than_the_cache_is_read_in_passes_and_the_cache_keeps_its_limit(
    folder, tmp_path
):
    limit = 1_500_000
    small = ObjectFolder(
        folder._protocol, folder._path, folder._options, FileCache(tmp_path / "small", limit)
    )
    with sizes_of(tmp_path / "small") as sizes:
        numbers = range(20)
        ShardedTable.write(small, makers(*numbers))
        table = ShardedTable.open(small)
        for _ in range(2):
            assert len(table.arrays("descriptor")) == 20 * N_ROWS

    n_bytes = sum(file.n_bytes for file in small.files().values())
    assert n_bytes > limit
    assert 0 < max(sizes) <= limit


def test_no_table_keeps_a_map_of_its_file(folder, cache):
    ShardedTable.write(folder, makers(0))

    table = ShardedTable.open(folder).shard("00000-abcdef012345")

    check_nothing_is_mapped(cache.folder)
    assert table.num_rows == N_ROWS


# --- requests


def test_a_table_of_many_shards_is_opened_with_one_listing(s3, cache):
    n_shards = 2_500
    with proxied(s3) as proxy:
        prefix = uuid.uuid4().hex
        folder = ObjectFolder("s3", f"{BUCKET}/{prefix}", proxy.credentials, cache)
        names = [f"{number:05d}-abcdef012345" for number in range(n_shards)]
        put_objects({f"{prefix}/{shard_file(name)}": b"x" for name in names})
        folder.write_text("shards.json", to_checked_json({"shards": names}))
        proxy.requests.clear()

        table = ShardedTable.open(folder)

        assert len(table.names) == n_shards
        n_pages = -(-(n_shards + 1) // 1_000)
        # A look-up and a read of the list, and the pages of the listing.
        assert len(proxy.requests) <= n_pages + 2


def test_a_store_that_fails_while_a_state_is_taken_is_an_error_and_no_damage(s3, tmp_path):
    with proxied(s3) as proxy:
        dataset = ShardedTableDataset(
            filepath=f"s3://{BUCKET}/{uuid.uuid4().hex}",
            credentials=proxy.credentials,
            cache=str(tmp_path / "cache"),
            cache_gb=0.01,
        )
        dataset.save(makers(0))
        proxy.fault = lambda number, method, path: "403"

        with pytest.raises(InputError, match="cannot be"):
            dataset.remote_files()


# --- the catalog's dataset


def dataset_of(folder: ObjectFolder, cache: FileCache, **options: Any) -> ShardedTableDataset:
    # Kedro does not count what looks like a host as a part of the path.
    filepath = f"memory://host{folder._path}" if folder._protocol == "memory" else str(folder)
    return ShardedTableDataset(
        filepath=filepath,
        credentials=dict(folder._options),
        cache=str(cache.folder),
        cache_gb=LIMIT / 1e9,
        **options,
    )


def test_what_another_run_wrote_in_between_is_not_taken_for_the_own_table(folder, cache):
    own = dataset_of(folder, cache)
    other = dataset_of(folder, cache)
    own.save(makers(0, 1))
    # The same parameters make the same table.
    other.save(makers(0, 1))
    assert own.load().names == ("00000-abcdef012345", "00001-abcdef012345")

    other.save(makers(2))
    with pytest.raises(DatasetError, match=f"another run wrote {folder} meanwhile: give each run"):
        own.load()
    assert other.load().names == ("00002-abcdef012345",)
    # Who has saved nothing cannot know.
    assert dataset_of(folder, cache).load().names == ("00002-abcdef012345",)


def test_the_state_of_a_table_changes_with_each_shard_and_not_with_other_files(folder, cache):
    dataset = dataset_of(folder, cache)
    assert dataset.remote_files() == {}
    assert not dataset.exists()

    dataset.save(makers(0, 1))
    state = dataset.remote_files()
    assert set(state) == {"shards.json", "00000-abcdef012345.parquet", "00001-abcdef012345.parquet"}
    dataset.save(makers(0, 1))
    folder.write_text("note.txt", "mine")
    if folder._protocol == "s3":
        # memory:// has times instead of checksums.
        assert dataset.remote_files() == state
    folder.write_text("00001-abcdef012345.parquet", "other")
    changed = dataset.remote_files()
    assert changed["00001-abcdef012345.parquet"] != state["00001-abcdef012345.parquet"]
    dataset.remove_remote("00001-abcdef012345.parquet")
    assert set(dataset.remote_files()) == {"shards.json", "00000-abcdef012345.parquet"}
    assert dataset.written_at_s("00000-abcdef012345") > 1e9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "s3://bucket/x needs a cache on this machine: set `cache` to a folder"),
        ({"cache": "c"}, "and `cache_gb` to its size"),
        ({"cache": "c", "cache_gb": 0}, "and `cache_gb` to its size"),
        ({"cache": "c", "cache_gb": True}, "and `cache_gb` to its size"),
        ({"cache": "s3://bucket/c", "cache_gb": 1}, "has to be a folder on this machine, not s3:"),
    ],
)
def test_a_remote_entry_without_a_usable_cache_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        ShardedTableDataset(filepath="s3://bucket/x", **options)


def test_an_entry_on_this_machine_needs_no_cache_and_is_not_remote(tmp_path):
    dataset = ShardedTableDataset(filepath=str(tmp_path / "table"))
    dataset.save(makers(0))

    assert dataset.filepath == tmp_path / "table"
    assert dataset.remote_files() is None
    assert len(dataset.load()) == N_ROWS
    assert dataset.written_at_s("00000-abcdef012345") > 1e9


def test_a_server_that_is_gone_is_one_message_that_may_be_tried_again(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(object_folder, "SECONDS_BETWEEN_ATTEMPTS", (0.0,))
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.0)
    gone = {**s3, "client_kwargs": {**s3["client_kwargs"], "endpoint_url": "http://127.0.0.1:9"}}
    dataset = ShardedTableDataset(
        filepath=f"s3://{BUCKET}/x", credentials=gone, cache=str(tmp_path), cache_gb=1
    )

    with pytest.raises(DatasetError) as failure:
        dataset.load()

    assert isinstance(failure.value.__cause__, UnavailableError)
    message = str(user_message(failure.value))
    assert message.startswith(f"s3://{BUCKET}/x/shards.json cannot be read (EndpointConnection")
    assert "secret" not in message
