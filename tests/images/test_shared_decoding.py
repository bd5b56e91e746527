"""Decoding by other processes: the same stores, byte for byte, whoever decodes."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.images import ingestion, listing
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.shard_decoding import (
    DecodingTask,
    DecodingTasks,
    DecodingWork,
    keep_images,
)
from pu_kd_pipeline.images.sources.registry import open_source
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.params.data_ingestion import ImageSource
from tests.engines.conftest import _time_limit  # noqa: F401
from tests.engines.works import engine_of
from tests.images.made_sources import Misbehaving
from tests.images.numbered_images import KINDS, contents, expected, plan_of, png

# Number of an image in the pool -> what is there in its place. Shards have ten images: there are
# copies within a shard, in the next one, of a copy, and of one in a shard far behind.
REPLACED = {
    3: b"broken",
    7: png(2),
    8: png(2)[:40],
    12: png(4),
    13: png(4),
    14: b"",
    25: png(21),
    26: png(0),
    31: png(30),
    32: png(12345),
    33: png(12345),
}
N_IMAGES = 36
# Stands in the place of a whole shard: nothing of it is stored.
ALL_COPIES = {number: png(number - 10) for number in range(10, 20)}


def content_of(number: int, replaced: dict[int, bytes] = REPLACED, offset: int = 0) -> bytes:
    return replaced.get(number, png(number + offset))


def folder_source(folder: Path, replaced: dict[int, bytes] = REPLACED) -> dict[str, Any]:
    (folder / "pool").mkdir()
    for number in range(N_IMAGES):
        (folder / "pool" / f"i{number:02d}.png").write_bytes(content_of(number, replaced))
    return {"type": "folder", "path": str(folder / "pool")}


def list_source(folder: Path) -> dict[str, Any]:
    folder_source(folder)
    names = [f"pool/i{number:02d}.png" for number in range(N_IMAGES)]
    (folder / "list.csv").write_text("\n".join(["path", *names]))
    return {"type": "list", "path": str(folder / "list.csv")}


def tar_source(folder: Path, compression: str = "") -> dict[str, Any]:
    # Two archives, of which shards of ten images hold the end and the beginning.
    (folder / "pool").mkdir()
    suffix = f".{compression}" if compression else ""
    for part in range(2):
        with tarfile.open(folder / "pool" / f"{part}.tar{suffix}", f"w:{compression}") as archive:
            for number in range(18 * part, 18 * part + 18):
                member = tarfile.TarInfo(f"i{number:02d}.png")
                content = content_of(number, offset=100)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return {"type": "webdataset", "path": str(folder / "pool")}


def parquet_source(folder: Path, row_group_size: int = 4) -> dict[str, Any]:
    images = [content_of(number, offset=200) for number in range(N_IMAGES)]
    table = pa.table({"image": images})
    pq.write_table(table, folder / "a.parquet", row_group_size=row_group_size)
    return {"type": "parquet", "path": str(folder / "a.parquet")}


def demo_source(folder: Path) -> dict[str, Any]:
    return {"type": "demo", "part": "labeled"}


def torchvision_source(folder: Path) -> dict[str, Any]:
    return {
        "type": "torchvision",
        "dataset": "FakeData",
        "options": {"size": 30, "image_size": [3, 9, 9]},
    }


def torchvision_files(folder: Path) -> dict[str, Any]:
    for number in range(N_IMAGES):
        file = folder / "pool" / f"class{number % 2}" / f"i{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content_of(number))
    source = {"type": "torchvision", "dataset": "ImageFolder", "path": str(folder / "pool")}
    return source


SOURCES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "folder": folder_source,
    "folder of copies": lambda folder: folder_source(folder, ALL_COPIES),
    "list": list_source,
    "tar": tar_source,
    "parquet": parquet_source,
    "demo": demo_source,
    "torchvision": torchvision_source,
    "torchvision files": torchvision_files,
}


def plan_with(source: dict[str, Any], engine: str = "local", **store: Any) -> IngestionPlan:
    plan = plan_of(**store)
    sources = (ImageSource.model_validate({"labels": "ignore", **source}),)
    return dataclasses.replace(plan, sources=sources, engine=engine_of(engine))


def files_of(folder: Path) -> dict[str, bytes]:
    """Return name -> content of all that is in a folder, also of hidden files."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def send(work: DecodingWork, tasks: DecodingTasks, engine: Any, folder: Path) -> Iterator[Any]:
    """Do what `map_shards` does, in this process: all is sent as a pickle, there and back."""
    error = None
    work = pickle.loads(pickle.dumps(work))
    for name in tasks:
        task = pickle.loads(pickle.dumps(tasks[name]))
        try:
            decoded = work(name, task)
        except UnavailableError as exc:
            error = exc
            continue
        yield name, pickle.loads(pickle.dumps(decoded))
    if error is not None:
        raise error


MAP_SHARDS = "pu_kd_pipeline.images.ingestion.map_shards"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace processes, which take seconds to start, by `send`."""
    monkeypatch.setattr(MAP_SHARDS, send)


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> list[DecodingWork]:
    """Replace processes by `send`, and return a list of what is sent then."""
    found: list[DecodingWork] = []

    def send_and_note(work: DecodingWork, *others: Any) -> Iterator[Any]:
        found.append(work)
        return send(work, *others)

    monkeypatch.setattr(MAP_SHARDS, send_and_note)
    return found


def check_same(source: dict[str, Any], folder: Path, **store: Any) -> ImageStore:
    """Check that the store of an engine is that of this process, and return it."""
    local = write_store(plan_with(source, **store), folder / "local")
    other = write_store(plan_with(source, "processes", **store), folder / "other")
    assert files_of(folder / "other") == files_of(folder / "local")
    assert len(local.shards) > 1
    return other


@KINDS
@pytest.mark.parametrize("engine", ["processes", pytest.param("ray", marks=pytest.mark.slow)])
def test_stores_are_the_same_whoever_decodes(
    engine: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    sources = []
    # All that are in one store: later ones have copies of the images of earlier ones.
    for name in ("folder", "tar", "parquet", "demo"):
        (tmp_path / name).mkdir()
        source = {"labels": "ignore", "name": name, **SOURCES[name](tmp_path / name)}
        sources.append(ImageSource.model_validate(source))
    plan = plan_of(kind=kind, max_quarantined_share=0.9)
    plan = dataclasses.replace(plan, sources=tuple(sources))
    local = write_store(plan, tmp_path / "local")
    with caplog.at_level(logging.INFO, logger="pu_kd_pipeline"):
        write_store(dataclasses.replace(plan, engine=engine_of(engine)), tmp_path / "other")
    assert "decoded in this process" not in caplog.text
    assert files_of(tmp_path / "other") == files_of(tmp_path / "local")
    assert set(local.index["source"]) == {"folder", "tar", "parquet", "demo"}
    assert local.quarantine["status"].str.contains("duplicate of folder/").any()


@KINDS
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.usefixtures("sent")
def test_every_source_can_be_read_elsewhere(
    source: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="pu_kd_pipeline"):
        store = check_same(SOURCES[source](tmp_path), tmp_path, kind=kind)
    assert "decoded in this process" not in caplog.text
    if source == "folder":
        # Of an image in another shard, also where the shard holds it twice.
        statuses = store.quarantine.set_index("id")["status"]
        assert statuses["i13.png"] == "duplicate of i04.png"
        assert statuses["i33.png"] == "duplicate of i32.png"
        assert statuses["i03.png"] == "unreadable"


@pytest.mark.parametrize(("engine", "n_threads"), [("processes", 4), ("ray", 1)])
def test_processes_share_the_threads_and_an_actor_has_one(
    engine: str,
    n_threads: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    works: list[DecodingWork],
) -> None:
    monkeypatch.setattr(ingestion, "n_workers_for", lambda *_: 2)
    plan = plan_with(folder_source(tmp_path), engine)
    store = plan.store.model_copy(update={"n_workers": 8})
    write_store(dataclasses.replace(plan, store=store), tmp_path / "store")
    assert [work.n_threads for work in works] == [n_threads]


def test_the_order_in_which_shards_are_finished_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backwards(work: DecodingWork, tasks: Any, engine: Any, folder: Path) -> Any:
        for name in reversed(list(tasks)):
            yield name, work(name, tasks[name])

    monkeypatch.setattr(MAP_SHARDS, backwards)
    check_same(folder_source(tmp_path), tmp_path)


# --- sources that are read from beginning to end


@pytest.mark.parametrize("make", [tar_source, parquet_source])
def test_what_would_be_read_again_for_each_shard_is_decoded_here(
    make: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("no worker is needed")

    monkeypatch.setattr(MAP_SHARDS, refuse)
    source = tar_source(tmp_path, "gz") if make is tar_source else parquet_source(tmp_path, 40)
    with caplog.at_level(logging.INFO, logger="pu_kd_pipeline"):
        check_same(source, tmp_path)
    assert "images are decoded in this process, because" in caplog.text
    reason = "is compressed" if make is tar_source else "row groups of 36 images"
    assert reason in caplog.text


@pytest.mark.usefixtures("sent")
def test_what_is_small_enough_is_shared(tmp_path: Path) -> None:
    # Part of an archive is read again, and never more than one.
    source = ImageSource.model_validate({"labels": "ignore", **tar_source(tmp_path, "gz")})
    opened = open_source(source, seed=0)
    opened.listing()
    assert opened.why_not_shared(18) is None
    assert "an archive of 18 images" in (opened.why_not_shared(17) or "")
    check_same({"type": "webdataset", "path": source.path}, tmp_path, shard_size=18)


def test_images_in_memory_and_in_archives_stay_in_this_process(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/shared_decoding/a.png", png(0))
    in_memory = open_source(
        ImageSource.model_validate({"type": "folder", "path": "memory://shared_decoding"}), 0
    )
    assert "memory" in (in_memory.why_not_shared(10) or "")

    tar_source(tmp_path)
    path = f"tar://::{tmp_path}/pool/0.tar"
    archived = open_source(ImageSource.model_validate({"type": "folder", "path": path}), 0)
    assert "archive" in (archived.why_not_shared(10) or "")


def test_credentials_are_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("no worker is needed")

    source = Misbehaving(tmp_path, 20, 99, "never")
    monkeypatch.setattr(listing, "open_source", lambda *_: source)
    monkeypatch.setattr(MAP_SHARDS, refuse)
    address = {"type": "folder", "path": "https://me:secret@example.org/images"}
    with caplog.at_level(logging.INFO, logger="pu_kd_pipeline"):
        store = write_store(plan_with(address, "processes"), tmp_path / "store")
    assert contents(store) == expected(range(20))
    assert "its URL holds credentials" in caplog.text
    assert "secret" not in caplog.text


def test_a_source_whose_images_are_stored_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: list[DecodingWork]
) -> None:
    stored = Misbehaving(tmp_path, 20, 99, "never")
    open_other = listing.open_source

    def open_one(source: ImageSource, seed: int) -> Any:
        return stored if source.name == "stored" else open_other(source, seed)

    monkeypatch.setattr(listing, "open_source", open_one)
    secret = {"type": "folder", "path": "https://me:secret@example.org/images", "name": "stored"}
    plan = plan_with(secret)
    write_store(plan, tmp_path / "store")
    new = {"labels": "ignore", "name": "new", **folder_source(tmp_path)}
    sources = (*plan.sources, ImageSource.model_validate(new))
    engine = engine_of("processes")
    write_store(dataclasses.replace(plan, sources=sources, engine=engine), tmp_path / "store")

    assert [list(work.sources) for work in works] == [[1]]


@pytest.mark.parametrize("source", ["folder", "list", "tar", "parquet"])
def test_a_worker_refuses_another_file_than_the_one_that_was_listed(
    source: str, tmp_path: Path
) -> None:
    opened = open_source(
        ImageSource.model_validate({"labels": "ignore", **SOURCES[source](tmp_path)}), 0
    )
    rows = opened.listing().iloc[:2]
    elsewhere = pickle.loads(pickle.dumps(opened))
    assert len(list(elsewhere.read(rows))) == 2

    # As a machine sees it that has another file at this path.
    files = {"folder": "pool/i01.png", "list": "pool/i01.png", "tar": "pool/0.tar"}
    file = tmp_path / files.get(source, "a.parquet")
    os.utime(file, (1e9, 1e9))
    why = "was replaced or removed" if source == "tar" else "is not the file that was listed"
    with pytest.raises(UnavailableError, match=f"{file.name} .*{why}"):
        list(elsewhere.read(rows))
    if source in ("folder", "list"):
        # Here it was only touched, and the next run reads it again.
        assert len(list(opened.read(rows))) == 2


# --- what goes wrong


def misbehaving_plan(
    folder: Path, how: str, monkeypatch: pytest.MonkeyPatch, engine: str = "processes"
) -> tuple[IngestionPlan, Misbehaving]:
    """Return a plan of 40 images in four shards; one in the second misbehaves."""
    source = Misbehaving(folder, 40, 15, how)
    monkeypatch.setattr(listing, "open_source", lambda *_: source)
    return plan_with({"type": "demo", "part": "labeled"}, engine), source


def test_a_killed_worker_costs_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan, source = misbehaving_plan(tmp_path, "killed", monkeypatch)
    store = write_store(plan, tmp_path / "store")
    assert contents(store) == expected(range(40))
    assert source.processes() != [os.getpid()]
    lost = [record.message for record in caplog.records if "its worker was lost" in record.message]
    assert len(lost) == 1
    assert "pool shard 00001" in lost[0]
    local = write_store(dataclasses.replace(plan, engine=LOCAL), tmp_path / "local")
    assert local.fingerprint == store.fingerprint
    assert files_of(tmp_path / "store") == files_of(tmp_path / "local")


def test_an_image_that_crashes_its_decoder_costs_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan, _ = misbehaving_plan(tmp_path, "crashes", monkeypatch)
    store = write_store(plan, tmp_path / "store")
    assert contents(store) == expected([*range(15), *range(16, 40)])
    assert store.quarantine["status"].tolist() == ["crashes its decoder"]
    assert "decoded in processes of their own" in caplog.text
    assert not list((tmp_path / "store").glob(".*"))


@pytest.mark.usefixtures("sent")
def test_shards_behind_one_that_cannot_be_read_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_decoded: Callable[[], int]
) -> None:
    plan, _ = misbehaving_plan(tmp_path, "lost", monkeypatch)
    with pytest.raises(UnavailableError, match="could not be read to its end"):
        write_store(plan, tmp_path / "store")
    assert not list((tmp_path / "store").glob(".*"))
    assert len(list((tmp_path / "store").glob("*.npy"))) == 3
    n_decoded()
    store = write_store(dataclasses.replace(plan, engine=LOCAL), tmp_path / "store")
    assert n_decoded() == 10
    assert contents(store) == expected(range(40))


def test_a_killed_run_decodes_in_processes_that_an_image_may_crash(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    works: list[DecodingWork],
) -> None:
    plan, _ = misbehaving_plan(tmp_path, "crashes", monkeypatch)
    folder = tmp_path / "store"
    folder.mkdir()
    # As a process leaves them that is killed together with its workers.
    (folder / ".shard-00001.a.machine.17.tmp").write_bytes(b"half")
    (folder / ".decoded-00002.images.tmp").write_bytes(b"of another plan")
    (folder / ".work.17.tmp").write_bytes(b"work")
    store = write_store(plan, folder)
    assert "the last run was killed while it decoded" in caplog.text
    # The engine is used all the same.
    assert [work.isolates for work in works] == [True]
    assert contents(store) == expected([*range(15), *range(16, 40)])
    assert not list(folder.glob(".*"))


@pytest.mark.usefixtures("sent")
def test_a_run_that_was_killed_between_two_shards_needs_no_care(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = folder_source(tmp_path)
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / ".decoded-00002.images.tmp").write_bytes(b"waits for an earlier shard")
    check_same(source, tmp_path)
    assert "was killed" not in caplog.text


@pytest.mark.usefixtures("sent")
def test_a_hopeless_pool_is_given_up_and_leaves_nothing(tmp_path: Path) -> None:
    broken = dict.fromkeys(range(5, 30), b"broken")
    source = folder_source(tmp_path, broken)
    folder = tmp_path / "store"
    with pytest.raises(InputError, match=r"of 36 images cannot be used .unreadable"):
        write_store(plan_with(source, "processes"), folder)
    assert files_of(folder) == {}


def test_an_interrupted_run_leaves_no_unfinished_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(work: DecodingWork, tasks: Any, engine: Any, folder: Path) -> Any:
        name = next(iter(tasks))
        yield name, work(name, tasks[name])
        (folder / ".shard-00001.host.1.tmp").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(MAP_SHARDS, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_store(plan_with(folder_source(tmp_path), "processes"), tmp_path / "store")
    assert not list((tmp_path / "store").glob(".*"))
    assert len(list((tmp_path / "store").glob("*.npy"))) == 1


# --- second runs


@pytest.mark.usefixtures("sent")
def test_a_second_run_with_another_engine_decodes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_decoded: Callable[[], int]
) -> None:
    source = folder_source(tmp_path)
    first = write_store(plan_with(source, "processes"), tmp_path / "store")
    before = files_of(tmp_path / "store")
    assert n_decoded() == N_IMAGES
    again = write_store(plan_with(source), tmp_path / "store")
    assert n_decoded() == 0
    assert again.fingerprint == first.fingerprint
    assert files_of(tmp_path / "store") == before
    # Unless it is forced.
    write_store(plan_with(source, "processes"), tmp_path / "store", makes_again=True)
    assert n_decoded() == N_IMAGES
    assert files_of(tmp_path / "store") == before


@pytest.mark.usefixtures("sent")
def test_new_images_are_compared_with_stored_ones(tmp_path: Path) -> None:
    source = folder_source(tmp_path)
    for engine in ("local", "processes"):
        write_store(plan_with(source), tmp_path / engine)
    # Two shards more, with a copy of a stored image and one of an image between them.
    for number in range(N_IMAGES, N_IMAGES + 15):
        (tmp_path / "pool" / f"i{number:02d}.png").write_bytes(png(number))
    (tmp_path / "pool" / "i40.png").write_bytes(png(1))
    (tmp_path / "pool" / "i50.png").write_bytes(png(36))
    for engine in ("local", "processes"):
        store = write_store(plan_with(source, engine), tmp_path / engine)
    assert files_of(tmp_path / "processes") == files_of(tmp_path / "local")
    statuses = store.quarantine.set_index("id")["status"]
    assert statuses["i40.png"] == "duplicate of i01.png"
    assert statuses["i50.png"] == "duplicate of i36.png"


@pytest.mark.usefixtures("sent")
def test_conflicting_labels_are_set_aside_whoever_decodes(tmp_path: Path) -> None:
    images = [(number % 3, content_of(number)) for number in range(N_IMAGES)]
    labels, contents_ = zip(*images, strict=True)
    table = pa.table({"image": list(contents_), "label": list(labels)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    source = {"type": "parquet", "path": str(tmp_path / "a.parquet"), "labels": "classes"}
    store = check_same(source, tmp_path)
    assert store.quarantine["status"].str.startswith("conflicting labels").any()


@pytest.mark.usefixtures("sent")
def test_dark_images_are_counted_whoever_decodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pool").mkdir()
    for number in range(25):
        pixels = np.full((8, 8), number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pool" / f"i{number:02d}.png")
    source = {"type": "folder", "path": str(tmp_path / "pool")}
    check_same(source, tmp_path)
    warnings = [record.message for record in caplog.records if "no value of" in record.message]
    assert len(warnings) == 2
    assert warnings[0] == warnings[1]
    assert "25 new images is above 24 of 255" in warnings[0]


def test_a_changed_file_is_noticed_before_images_are_kept(tmp_path: Path) -> None:
    plan = plan_with(folder_source(tmp_path))
    _, readers = listing.list_images(plan)
    specification = write_store(plan, tmp_path / "store").specification
    work = DecodingWork({0: readers[0].source}, specification, tmp_path, 1)
    shard = work("pool shard 00000", DecodingTask(0, ((0, readers[0].listing.iloc[:10]),)))
    content = bytearray(shard.file.read_bytes())
    content[-1] ^= 1
    shard.file.write_bytes(content)
    with pytest.raises(UnavailableError, match="changed on its disk"):
        keep_images(shard, range(len(shard.checksums)), specification)
