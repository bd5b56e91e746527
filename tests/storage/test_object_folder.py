"""Folders on an object store: a real S3 server, one that fails now and then, and `memory://`."""

from __future__ import annotations

import pickle
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.storage import object_folder
from pu_kd_pipeline.storage.file_cache import FileCache
from pu_kd_pipeline.storage.object_folder import ObjectFolder
from tests.s3_server import BUCKET, Proxy, proxied, s3_client, s3_credentials

LIMIT = 10_000_000


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    with s3_credentials() as credentials:
        yield credentials


@pytest.fixture
def proxy(s3: dict[str, Any]) -> Iterator[Proxy]:
    with proxied(s3) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_folder, "SECONDS_BETWEEN_ATTEMPTS", (0.0, 0.01))


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache.at(tmp_path / "cache", LIMIT)


def folder_of(proxy: Proxy, cache: FileCache, path: str | None = None) -> ObjectFolder:
    return ObjectFolder("s3", path or f"{BUCKET}/{uuid.uuid4().hex}", proxy.credentials, cache)


@pytest.fixture(params=["memory", "s3"])
def folder(request: pytest.FixtureRequest, cache: FileCache) -> ObjectFolder:
    """An empty folder on each kind of store."""
    prefix = f"{BUCKET}/{uuid.uuid4().hex}"
    if request.param == "memory":
        return ObjectFolder("memory", f"/{prefix}", {}, cache)
    return ObjectFolder("s3", prefix, request.getfixturevalue("s3"), cache)


def publish(folder: ObjectFolder, name: str, content: bytes) -> None:
    with folder.room_for(len(content), name) as room:
        (room / name).write_bytes(content)
        folder.publish(room / name, name)


def test_what_is_published_is_listed_and_read_by_another_process(folder):
    publish(folder, "a.npy", b"first")
    publish(folder, "b.npy", b"second")
    folder.write_text("list.json", "[]")
    folder.write_text(".hidden", "")
    folder.write_text("below/c.npy", "")
    other = pickle.loads(pickle.dumps(folder))

    files = other.files()

    assert {name: file.n_bytes for name, file in files.items()} == {
        "a.npy": 5,
        "b.npy": 6,
        "list.json": 2,
    }
    assert other.read_text("list.json") == "[]"
    assert other.exists("a.npy")
    assert not other.exists("c.npy")
    with other.copy("b.npy") as path:
        assert path.read_bytes() == b"second"
    other.remove(["a.npy", "never"])
    assert set(other.files()) == {"b.npy", "list.json"}
    folder.remove_hidden(".hidden")
    folder.remove_hidden(".hidden")


def test_an_empty_folder_has_no_files_and_what_is_missing_is_not_found(folder):
    assert folder.files() == {}
    with pytest.raises(FileNotFoundError):
        folder.read_text("list.json")
    with pytest.raises(FileNotFoundError), folder.copy("a.npy"):
        pass


def test_a_file_that_was_replaced_is_read_anew_and_has_another_mark(folder):
    publish(folder, "a", b"first")
    before = folder.files()["a"]
    with folder.copy("a") as path:
        assert path.read_bytes() == b"first"
    # By another process, with another cache.
    other = ObjectFolder(
        folder._protocol, folder._path, folder._options, FileCache(path.parents[2] / "other", LIMIT)
    )
    publish(other, "a", b"other")
    after = folder.files()["a"]

    assert before.n_bytes == after.n_bytes
    assert before.mark != after.mark
    with folder.copy("a") as path:
        assert path.read_bytes() == b"other"


def test_a_file_that_is_replaced_after_it_was_listed_is_read_as_it_is_now(folder):
    publish(folder, "a", b"first version")
    folder.files()
    folder.forget_copy("a")
    folder.files()
    other = pickle.loads(pickle.dumps(folder))
    publish(other, "a", b"second")

    with folder.copy("a") as path:
        assert path.read_bytes() == b"second"


def test_a_damaged_copy_is_forgotten_and_downloaded_again(folder):
    publish(folder, "a", b"right")
    with folder.copy("a") as path:
        copy = path
    copy.write_bytes(b"wrong")
    folder.forget_copy("a")

    with folder.copy("a") as path:
        assert path.read_bytes() == b"right"


def test_two_servers_with_the_same_bucket_share_no_copies_and_two_passwords_do(s3, cache):
    connection = s3["client_kwargs"]
    elsewhere = {**connection, "endpoint_url": "http://127.0.0.1:9"}
    options = [s3, {**s3, "client_kwargs": elsewhere}, {**s3, "secret": "other"}]
    places = [ObjectFolder("s3", "bucket/x", each, cache)._place for each in options]

    assert places[0] != places[1]
    assert places[0] == places[2]


def test_a_file_larger_than_the_cache_can_be_neither_read_nor_written(folder, tmp_path):
    publish(folder, "a", b"x" * 100)
    small = ObjectFolder(
        folder._protocol, folder._path, folder._options, FileCache(tmp_path / "small", 50)
    )
    with (
        pytest.raises(InputError, match="/a has 1e-07 GB, .*set cache_gb to 1.1e-07 or more"),
        small.copy("a"),
    ):
        pass
    (tmp_path / "b").write_bytes(b"x" * 60)
    with pytest.raises(InputError, match="/b has 6e-08 GB, .*set cache_gb"):
        small.publish(tmp_path / "b", "b")
    assert not folder.exists("b")


def test_file_systems_that_show_unfinished_files_are_refused(cache):
    with pytest.raises(InputError, match="sftp://host/x may show files that are incomplete"):
        ObjectFolder("sftp", "host/x", {}, cache)


# --- a server that fails


@pytest.mark.parametrize("fault", ["500", "503", "drop", "cut"])
def test_a_server_that_fails_now_and_then_is_asked_again(proxy, cache, fault):
    folder = folder_of(proxy, cache)
    proxy.fault = lambda number, method, path: fault if number % 4 == 0 else None
    contents = {f"{number}.npy": bytes([number]) * 100_000 for number in range(4)}

    for name, content in contents.items():
        publish(folder, name, content)
        folder.forget_copy(name)
    folder.write_text("list.json", "{}")

    assert set(folder.files()) == {*contents, "list.json"}
    for name, content in contents.items():
        with folder.copy(name) as path:
            assert path.read_bytes() == content
    folder.remove(["0.npy"])
    assert set(folder.files()) == {"1.npy", "2.npy", "3.npy", "list.json"}


@pytest.mark.parametrize("fault", ["500", "drop"])
def test_a_server_that_always_fails_is_one_sentence_after_a_bounded_number_of_attempts(
    proxy, cache, fault, monkeypatch
):
    # The waits of botocore and s3fs themselves, which are theirs to test.
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.0)
    folder = folder_of(proxy, cache)
    publish(folder, "a", b"x")
    proxy.fault = lambda number, method, path: fault
    n_before = len(proxy.requests)

    with pytest.raises(UnavailableError) as failure:
        folder.read_text("a")
    message = str(failure.value)

    assert message.startswith(f"{folder.address('a')} cannot be read (")
    assert message.endswith(
        "check the address, and the credentials of the catalog entry, and the connection"
    )
    assert len(message.splitlines()) == 1
    # Of ours, of s3fs, of botocore, and a second connection for one that was dropped.
    assert len(proxy.requests) - n_before <= 3 * 5 * 5 * 2


def test_what_the_server_refuses_is_not_tried_again_and_names_no_secret(proxy, cache):
    credentials = {**proxy.credentials, "secret": "secret-of-mine", "key": "key-of-mine"}
    folder = ObjectFolder("s3", f"{BUCKET}/x", credentials, cache)
    proxy.fault = lambda number, method, path: "403"

    with pytest.raises(InputError, match="cannot be written") as refusal:
        folder.check_writable()

    assert not isinstance(refusal.value, UnavailableError)
    assert len(proxy.requests) == 1
    assert "of-mine" not in str(refusal.value) + repr(folder) + str(folder)


def test_a_bucket_that_does_not_exist_is_an_error_and_no_empty_folder(proxy, cache):
    folder = folder_of(proxy, cache, path="no-such-bucket/x")

    for action in (folder.files, folder.check_writable):
        with pytest.raises(InputError, match="s3://no-such-bucket/x.* cannot be"):
            action()


def test_a_file_that_cannot_be_removed_is_an_error(proxy, cache):
    folder = folder_of(proxy, cache)
    publish(folder, "a", b"x")
    # The server reports success, and does nothing.
    folder._fs.rm = lambda names: None

    with pytest.raises(InputError, match="/a cannot be removed: .* need the permission to delete"):
        folder.remove(["a"])


def test_a_writable_folder_is_left_as_it_was(folder):
    publish(folder, "a", b"x")

    folder.check_writable()

    assert set(folder.files()) == {"a"}


def test_an_upload_that_ends_early_leaves_nothing_under_its_name(proxy, tmp_path, s3, monkeypatch):
    big = b"x" * (11 * 2**20)
    cache = FileCache(tmp_path / "large", 2 * len(big))
    folder = folder_of(proxy, cache)
    put_file = folder._fs.put_file

    def put_in_parts(source: str, target: str) -> None:
        # Of the least size that S3 allows: as a large file is uploaded.
        put_file(source, target, chunksize=5 * 2**20)

    monkeypatch.setattr(folder._fs, "put_file", put_in_parts)
    proxy.fault = lambda number, method, path: "403" if "partNumber=2" in path else None

    with pytest.raises(InputError, match="cannot be written"):
        publish(folder, "big", big)

    assert any("partNumber=1" in path for _, path in proxy.requests)
    assert not folder.exists("big")
    assert folder.files() == {}
    # What was uploaded of it was given up, too.
    assert "Uploads" not in s3_client(s3).list_multipart_uploads(Bucket=BUCKET)

    proxy.fault = lambda number, method, path: None
    publish(folder, "big", big)
    folder.forget_copy("big")
    with folder.copy("big") as path:
        assert path.read_bytes() == big


def test_threads_read_while_others_write(folder):
    names = [f"{number}" for number in range(6)]
    for name in names:
        publish(folder, name, name.encode() * 1_000)
    faults: list[BaseException] = []

    def read() -> None:
        try:
            for name in names * 3:
                with folder.copy(name) as path:
                    assert path.read_bytes() == name.encode() * 1_000
                folder.forget_copy(name)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert faults == []
