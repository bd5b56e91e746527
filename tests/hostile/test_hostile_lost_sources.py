"""Sources that disappear during a run: it ends with one message, and the next run resumes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pu_kd_pipeline.images import ingestion
from pu_kd_pipeline.images.decoding import Reason
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.sources import folder as folder_source
from pu_kd_pipeline.images.sources.base import SourceLostError
from pu_kd_pipeline.images.sources.folder import FolderSource
from tests.hostile.valid_files import noise_png, plan_of

N_IMAGES = 30
SHARD_SIZE = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 30 images."""
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(N_IMAGES):
        (images / f"{seed:02d}.png").write_bytes(noise_png(seed))
    return images


def call_after_first_shard(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Call an action once, as soon as the first shard is finished."""
    finish_shard = ingestion._finish_shard
    n_finished = 0

    def finish(*arguments: Any) -> Any:
        nonlocal n_finished
        result = finish_shard(*arguments)
        n_finished += 1
        if n_finished == 1:
            action()
        return result

    monkeypatch.setattr(ingestion, "_finish_shard", finish)


def finished_shards(out: Path) -> list[str]:
    """Return the shards in the folder of an unfinished store, which holds nothing half-written."""
    assert not (out / "store.json").exists()
    assert not list(out.glob(".*"))
    return sorted(file.name for file in out.glob("*.npy"))


@pytest.mark.parametrize("how", ["deleted", "unmounted", "emptied"])
def test_a_folder_that_vanishes_ends_the_run_and_a_rerun_resumes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    moved = tmp_path / "moved"

    def vanish() -> None:
        folder.rename(moved)
        # What remains of a mounted folder is its empty mount point.
        if how != "deleted":
            folder.mkdir()
        if how == "emptied":
            (folder / "README").write_text("moved")

    # One thread, so that nothing of the next shard has been read when the folder vanishes.
    monkeypatch.setattr(folder_source, "READ_THREADS", 1)
    call_after_first_shard(monkeypatch, vanish)
    source = {"type": "folder", "path": str(folder)}
    plan = plan_of(source, shard_size=SHARD_SIZE, max_quarantined_share=0.5)
    message = "gone, or no longer mounted"
    if how == "emptied":
        message = "images could not be opened"

    with pytest.raises(SourceLostError, match=rf"{message}.*the same command"):
        write_store(plan, tmp_path / "store")

    first = finished_shards(tmp_path / "store")

    assert first

    shutil.rmtree(folder, ignore_errors=True)
    moved.rename(folder)
    fetched: list[tuple[str, str]] = []
    fetch = FolderSource._fetch

    def counting_fetch(self: FolderSource, file: tuple[str, str]) -> Any:
        fetched.append(file)
        return fetch(self, file)

    monkeypatch.setattr(FolderSource, "_fetch", counting_fetch)
    store = write_store(plan, tmp_path / "store")

    assert len(store) == N_IMAGES
    assert len(fetched) == N_IMAGES - SHARD_SIZE * len(first)
    assert f"{store.shards[0].name}.npy" == first[0]

    uninterrupted = write_store(plan, tmp_path / "uninterrupted")

    assert store.fingerprint == uninterrupted.fingerprint


@pytest.mark.parametrize("how", ["deleted", "cut", "overwritten"])
def test_a_lost_parquet_file_ends_the_run_and_a_rerun_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (tmp_path / "in").mkdir()
    for number, name in enumerate("abc"):
        images = [noise_png(10 * number + row) for row in range(SHARD_SIZE)]
        ids = [f"{name}{row}" for row in range(SHARD_SIZE)]
        table = pa.table({"image": images, "id": ids})
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
    # A shard holds as many images as a file: the first is finished when the second file is read.
    second_file = tmp_path / "in" / "b.parquet"
    content = second_file.read_bytes()
    times = second_file.stat()

    def lose() -> None:
        if how == "deleted":
            second_file.unlink()
        elif how == "cut":
            second_file.write_bytes(content[:500])
        else:
            second_file.write_bytes(b"\0" * len(content))

    call_after_first_shard(monkeypatch, lose)
    source = {"type": "parquet", "path": str(tmp_path / "in")}
    plan = plan_of(source, shard_size=SHARD_SIZE)
    message = r"b\.parquet could not be read to its end .*the same command"

    with pytest.raises(SourceLostError, match=message):
        write_store(plan, tmp_path / "store")

    first = finished_shards(tmp_path / "store")

    assert len(first) == 1

    second_file.write_bytes(content)
    # The file as it was, times included: another time of change would be another source.
    os.utime(second_file, ns=(times.st_atime_ns, times.st_mtime_ns))
    store = write_store(plan, tmp_path / "store")

    assert len(store) == 3 * SHARD_SIZE
    assert f"{store.shards[0].name}.npy" == first[0]


class ConnectionFault(Exception):
    """An error as clients of remote stores raise it: not a subclass of OSError."""


def test_a_lost_remote_folder_keeps_its_finished_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(N_IMAGES):
        with fsspec.open(f"memory://vanishing/{seed:02d}.png", "wb") as file:
            file.write(noise_png(seed))
    is_lost = False
    cat_file = MemoryFileSystem.cat_file

    def lose() -> None:
        nonlocal is_lost
        is_lost = True

    def failing_cat_file(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        if is_lost:
            raise ConnectionFault("no route to host")
        return cat_file(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", failing_cat_file)
    monkeypatch.setattr(folder_source, "READ_THREADS", 1)
    call_after_first_shard(monkeypatch, lose)
    source = {"type": "folder", "path": "memory://vanishing"}
    plan = plan_of(source, shard_size=SHARD_SIZE, max_quarantined_share=0.1)
    message = "of 30 images could not be opened, such as '10.png'"

    with pytest.raises(SourceLostError, match=message):
        write_store(plan, tmp_path / "store")
    assert finished_shards(tmp_path / "store")

    is_lost = False

    assert len(write_store(plan, tmp_path / "store")) == N_IMAGES


def test_a_few_images_that_could_not_be_opened_are_counted_and_the_run_continues(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_after_first_shard(monkeypatch, (folder / "29.png").unlink)
    plan = plan_of({"type": "folder", "path": str(folder)}, shard_size=SHARD_SIZE)
    store = write_store(plan, tmp_path / "store")

    assert store.quarantine_counts == {str(Reason.NOT_OPENED): 1}
    assert len(store) == N_IMAGES - 1
