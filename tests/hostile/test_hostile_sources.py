"""Sources that are broken, hostile, or gone half-way: refused in one sentence, or set aside image by image."""

from __future__ import annotations

import json
import os
import shutil
import socket
import unicodedata
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason
from pu_kd_pipeline.images.ingestion import list_images, write_store
from pu_kd_pipeline.images.sources import folder as folder_source
from pu_kd_pipeline.images.sources.base import SourceLostError
from pu_kd_pipeline.images.sources.folder import FolderSource
from pu_kd_pipeline.images.store import ImageStore
from tests.hostile.fuzzing import encoded, noise, plan_of


def image(seed: int) -> bytes:
    return encoded(Image.fromarray(noise(8, 8, 3, seed=seed)))


def parquet_of(file: Path, n: int = 3, **columns: Any) -> Path:
    """Write `n` images beside columns of any kind; `image=None` leaves them out."""
    table = {"image": pa.array([image(seed) for seed in range(n)], pa.binary()), **columns}
    pq.write_table(
        pa.table({name: values for name, values in table.items() if values is not None}), file
    )
    return file


def listed(file: Path, **source: Any) -> pd.DataFrame:
    table, _ = list_images(plan_of({"type": "parquet", "path": str(file), **source}))
    return table


def refusal(tmp_path: Path, **source: Any) -> str:
    """Return what ingestion says of a.parquet, which it refuses, leaving nothing behind."""
    with pytest.raises(InputError) as refused:
        write_store(
            plan_of({"type": "parquet", "path": str(tmp_path / "a.parquet"), **source}),
            tmp_path / "store",
        )
    assert not (tmp_path / "store").exists()
    return str(refused.value)


# --- Parquet

INVALID = pa.StringArray.from_buffers(
    3, pa.py_buffer(np.arange(4, dtype=np.int32).tobytes()), pa.py_buffer(b"a\xffb")
)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": None, "pixels": [1, 2, 3]}, "has no column 'image'; found: pixels"),
        ({"image": ["a", "b", "c"]}, "the column 'image' is string; it must hold the bytes of image files"),
        ({"image": [[1], [2], [3]]}, "the column 'image' is list<"),
        ({"image": pa.nulls(3)}, "the column 'image' is null"),
        ({"image": pa.array([{"path": "a"}] * 3)}, "the column 'image' is struct<path: string>"),
        ({"label": [0.5, 1.0, 2.0]}, "the column 'label' holds more than whole numbers of 64 bits"),
        ({"label": pa.array([2**64 - 1, 0, 1], pa.uint64())}, "the column 'label' holds more than whole numbers"),
        ({"label": [float("inf"), 0.0, 1.0]}, "the column 'label' holds more than whole numbers"),
        ({"label": [[0], [1], [2]]}, "the column 'label' is list<"),
        ({"label": [b"\0", b"\1", b"\2"]}, "the column 'label' is binary; it must hold text or whole numbers"),
        ({"label": pa.array([0, 1, 2], pa.timestamp("s"))}, "the column 'label' is timestamp"),
        ({"label_name": [{"a": 1}] * 3}, "the column 'label_name' is struct<"),
        ({"label": INVALID}, "the column 'label' holds text that is not UTF-8"),
        ({"id": INVALID}, "the column 'id' holds text that is not UTF-8"),
        ({"id": [1.5, 2.5, 3.5]}, "the column 'id' is double; it must hold text or whole numbers"),
        ({"id": [b"a", b"b", b"c"]}, "the column 'id' is binary"),
        ({"id": ["a", "b", "a"]}, "1 ids occur more than once, such as 'a'"),
    ],
)  # fmt: skip
def test_columns_of_the_wrong_kind_are_named(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    parquet_of(tmp_path / "a.parquet", **columns)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 0, 1], [2, 0, 1]),
        ([2.0, 0.0, 1.0], [2, 0, 1]),
        (pa.array([2, 0, 1], pa.decimal128(5, 2)), [2, 0, 1]),
        (pa.array([2, 0, 1], pa.uint64()), [2, 0, 1]),
        (["owl", "CAT", "dog"], [2, 0, 1]),
        (pa.array(["owl", "cat", "dog"]).dictionary_encode(), [2, 0, 1]),
        (pa.array(["owl", "cat", "dog"], pa.large_string()), [2, 0, 1]),
    ],
)
def test_labels_are_classes_in_whatever_type_they_come(
    tmp_path: Path, labels: Any, expected: list[int]
) -> None:
    assert (
        listed(parquet_of(tmp_path / "a.parquet", label=labels), labels="classes")["label"].tolist()
        == expected
    )


@pytest.mark.parametrize(
    ("labels", "found"),
    [([0, 1, 3], "3 (1)"), ([0, -1, 1], "-1 (1)"), ([0, None, 1], "no label (1)"),
     ([0.0, float("nan"), 1.0], "no label (1)"),
     (["cat", "horse", "dog"], "horse (1)"), (["0", "1", "7"], "0 (1), 1 (1), 7 (1)"), ([2**62, 0, 1], f"{2**62} (1)")],
)  # fmt: skip
def test_labels_that_are_no_class_are_refused_with_what_was_found(
    tmp_path: Path, labels: Any, found: str
) -> None:
    parquet_of(tmp_path / "a.parquet", label=labels)
    message = refusal(tmp_path, labels="classes")
    assert "the teacher has 3 classes (cat, dog, owl)" in message
    assert found in message


def test_nulls_are_images_without_bytes_ids_or_labels(tmp_path: Path) -> None:
    images = pa.array([image(0), None, image(2)], pa.binary())
    parquet_of(tmp_path / "a.parquet", image=images, id=["x", None, None], label=[None, 1, None])
    store = write_store(
        plan_of({"type": "parquet", "path": str(tmp_path / "a.parquet"), "labels": "truth"}),
        tmp_path / "s",
    )
    assert store.index[["id", "label"]].astype("string").fillna("-").values.tolist() == [
        ["x", "-"],
        ["a:2", "-"],
    ]
    assert store.quarantine.values.tolist() == [["a:1", "a", "empty"]]


@pytest.mark.parametrize("with_path", [True, False])
def test_structs_and_plain_bytes_are_the_same_images(tmp_path: Path, with_path: bool) -> None:
    values = [
        {"bytes": image(seed), **({"path": "../../etc/passwd"} if with_path else {})}
        for seed in range(3)
    ]
    stores = []
    for name, column in (
        ("struct", pa.array([*values, None])),
        ("plain", [image(seed) for seed in range(3)] + [None]),
    ):
        parquet_of(tmp_path / f"{name}.parquet", image=column, id=["a", "b", "c", "d"])
        stores.append(
            write_store(
                plan_of({"type": "parquet", "path": str(tmp_path / f"{name}.parquet")}),
                tmp_path / name,
            )
        )
    np.testing.assert_array_equal(stores[0].read(np.arange(3)), stores[1].read(np.arange(3)))
    assert stores[0].quarantine_counts == stores[1].quarantine_counts == {"empty": 1}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-20], "is not a Parquet file that can be read (ArrowInvalid: "),
        (
            lambda data: data[: len(data) // 2],
            "is not a Parquet file that can be read (ArrowInvalid: ",
        ),
        (
            lambda data: b"",
            "is not a Parquet file that can be read (ArrowInvalid: Parquet file size is 0 bytes)",
        ),
        (lambda data: b"id,image\n1,2\n", "is not a Parquet file that can be read"),
        (
            lambda data: b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1",
            "is not a Parquet file that can be read",
        ),
        (lambda data: json.dumps({"image": 1}).encode(), "is not a Parquet file that can be read"),
    ],
)
def test_what_is_no_whole_parquet_file_is_refused(
    tmp_path: Path, damage: Any, message: str
) -> None:
    file = parquet_of(tmp_path / "a.parquet")
    file.write_bytes(damage(file.read_bytes()))
    assert message in refusal(tmp_path)


def test_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    parquet_of(tmp_path / "a.parquet", n=0)
    assert "holds no image: it has no rows" in refusal(tmp_path)


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    column = pa.array([image(0)], pa.binary())
    pq.write_table(
        pa.Table.from_arrays([column, column], names=["image", "image"]), tmp_path / "a.parquet"
    )
    assert "has more than one column 'image'" in refusal(tmp_path)


def test_folders_in_the_place_of_parquet_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "in" / "b.parquet").mkdir(parents=True)
    parquet_of(tmp_path / "in" / "a.parquet")
    assert len(listed(tmp_path / "in")) == 3


# --- ids and paths

NAMES = [
    "..", "../../etc/passwd", "/etc/passwd", "C:\\Windows\\x", "a/../../b", "./x", "~", "-rf", "a\nb", "a\rb", "tab\tb",
    "nul\0b",     "caf\u00e9", "cafe\u0301", "\u202egnp.exe", "\u200b", "\ufeff", "<script>alert(1)</script>",
    "\"'`;--", "{{7*7}}", "$(id)",
    "%s%n", "x" * 5_000, " ", "\U0001f600", "nan", "None", "con.png", "*?[", "\u2028",
]  # fmt: skip


def test_ids_are_text_and_never_paths(tmp_path: Path) -> None:
    parquet_of(tmp_path / "a.parquet", n=len(NAMES), id=NAMES)
    before = set(tmp_path.rglob("*"))
    for kind in ("packed", "encoded"):
        out = tmp_path / "out" / kind
        plan = plan_of(
            {"type": "parquet", "path": str(tmp_path / "a.parquet")}, kind=kind, shard_size=7
        )
        store = write_store(plan, out)
        assert store.index["id"].tolist() == NAMES
        assert [
            value for shard in store.shards for value in store.ids_of(shard).to_pylist()
        ] == NAMES
        np.testing.assert_array_equal(
            store.read(np.array([4]))[0].transpose(1, 2, 0), noise(8, 8, 3, seed=4)
        )
    written = set(tmp_path.rglob("*")) - before - {tmp_path / "out"}
    assert all(path.is_relative_to(tmp_path / "out") for path in written)
    assert {path.suffix for path in written if path.is_file()} == {
        ".npy",
        ".arrow",
        ".parquet",
        ".json",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def ingested(folder: Path, **store: Any) -> ImageStore:
    return write_store(
        plan_of({"type": "folder", "path": str(folder)}, **store), folder.parent / "store"
    )


def test_odd_file_names_are_ids_as_they_are(folder: Path) -> None:
    names = [
        "caf\u00e9.png",
        "cafe\u0301.png",
        "\u202egnp.png",
        "a\nb.png",
        "a\\b.png",
        "%00.png",
        "<b>&amp;.png",
        "-rf.png",
    ]
    names += [
        "..png",
        "...png",
        "x" * 250 + ".png",
        "\U0001f600.png",
        "nan.png",
        "a b.png",
        "'; drop.png",
    ]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(image(seed))
    store = ingested(folder)
    visible = [name for name in names if not name.startswith(".")]  # hidden files are left out
    assert sorted(store.index["id"]) == sorted(visible)
    assert (
        len({unicodedata.normalize("NFC", name) for name in visible}) == len(visible) - 1
    )  # two stay apart


def test_names_that_are_not_utf8_are_set_aside_in_printable_form(folder: Path) -> None:
    (folder / "good.png").write_bytes(image(0))
    try:
        os.mkdir(os.fsencode(folder) + b"/class\xff")
        Path(os.fsdecode(os.fsencode(folder) + b"/class\xff/a.png")).write_bytes(image(1))
        Path(os.fsdecode(os.fsencode(folder) + b"/b\xfe.png")).write_bytes(image(2))
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    store = ingested(folder)
    assert store.index["id"].tolist() == ["good.png"]
    assert sorted(store.quarantine["id"]) == ["b\\xfe.png", "class\\xff/a.png"]
    assert store.quarantine_counts == {"file name is not UTF-8": 2}


def test_names_that_are_not_utf8_are_set_aside_in_torchvisions_folders_too(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "cat").mkdir()
    (folder / "cat" / "a.png").write_bytes(image(0))
    os.symlink(tmp_path / "nothing.png", folder / "cat" / "dangling.png")
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/cat/b\xfe.png")).write_bytes(image(2))
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    source = {"type": "torchvision", "dataset": "ImageFolder", "path": str(folder)}
    store = write_store(plan_of(source), tmp_path / "store")
    assert store.index["id"].tolist() == ["a.png"]
    assert "b\\xfe.png" in set(store.quarantine["id"])
    assert store.quarantine_counts == {"file name is not UTF-8": 1, "link out of the folder": 1}


def test_links_that_lead_out_or_nowhere_or_in_a_circle_are_not_followed(
    folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(image(9))
    (folder / "good.png").write_bytes(image(0))
    os.symlink("good.png", folder / "inside.png")
    os.symlink(outside / "secret.png", folder / "absolute.png")
    os.symlink("../outside/secret.png", folder / "relative.png")
    os.symlink("absolute.png", folder / "twice.png")
    os.symlink(outside, folder / "folder")
    os.symlink(".", folder / "self")
    os.symlink("loop_b.png", folder / "loop_a.png")
    os.symlink("loop_a.png", folder / "loop_b.png")
    os.symlink("nothing.png", folder / "dangling.png")
    os.symlink("/proc/self/mem", folder / "device.png")
    store = ingested(folder)
    assert store.index["id"].tolist() == ["good.png"]
    assert store.quarantine_counts == {"link out of the folder": 9, "duplicate": 1}


def test_what_is_no_plain_file_is_not_opened(folder: Path) -> None:
    (folder / "good.png").write_bytes(image(0))
    (folder / "directory.png").mkdir()
    os.mkfifo(folder / "pipe.png")  # opening it would wait for ever
    with socket.socket(socket.AF_UNIX) as opened:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path is short
        try:
            opened.bind("socket.png")
        finally:
            os.chdir(here)
        store = ingested(folder)
    assert store.index["id"].tolist() == ["good.png"]
    assert store.quarantine_counts == {"unreadable": 2}


def test_a_file_of_terabytes_is_not_read(folder: Path) -> None:
    (folder / "good.png").write_bytes(image(0))
    with open(folder / "sparse.png", "wb") as file:
        file.truncate(2**40)
    assert ingested(folder).quarantine_counts == {"file too large": 1}


def test_files_and_folders_that_may_not_be_read_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "good.png").write_bytes(image(0))
    (folder / "closed").mkdir()
    (folder / "closed" / "a.png").write_bytes(image(1))
    (folder / "locked.png").write_bytes(image(2))
    scandir, read_bytes = os.scandir, Path.read_bytes

    def refusing_folder(path: Any = ".") -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def refusing_file(self: Path) -> bytes:
        if self.name == "locked.png":
            raise PermissionError(13, "Permission denied", str(self))
        return read_bytes(self)

    monkeypatch.setattr(os, "scandir", refusing_folder)
    monkeypatch.setattr(Path, "read_bytes", refusing_file)
    store = ingested(folder)
    assert store.index["id"].tolist() == ["good.png"]
    assert dict(store.quarantine[["id", "status"]].values) == {
        "closed": "could not be opened", "locked.png": "could not be opened"
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "parquet", "torchvision"])
@pytest.mark.parametrize(
    "path",
    [
        "",
        "a\0b",
        "x" * 5_000,
        "/dev/null",
        "/proc/self/mem",
        "~nobody_of_this_name/x",
        "[",
        "a\udcff",
    ],
)
def test_paths_that_are_none_are_refused_in_a_sentence(
    tmp_path: Path, kind: str, path: str, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = {"dataset": "ImageFolder"} if kind == "torchvision" else {}
    with pytest.raises(InputError) as refused:
        write_store(plan_of({"type": kind, "path": path, **dataset}), tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert str(refused.value)


# --- sources that go away half-way

N_IMAGES, SHARD = 30, 10


@pytest.fixture
def full_folder(folder: Path) -> Path:
    for seed in range(N_IMAGES):
        (folder / f"{seed:02d}.png").write_bytes(image(seed))
    return folder


def after_the_first_shard(monkeypatch: pytest.MonkeyPatch, happens: Any) -> None:
    """Let something happen once, as soon as the first shard is finished."""
    from pu_kd_pipeline.images import ingestion

    original, done = ingestion._finish_shard, []

    def finish(*arguments: Any) -> Any:
        result = original(*arguments)
        if not done:
            done.append(True)
            happens()
        return result

    monkeypatch.setattr(ingestion, "_finish_shard", finish)


def shards_in(out: Path) -> list[str]:
    assert not (out / "store.json").exists()
    assert not list(out.glob(".*"))
    return sorted(file.name for file in out.glob("*.npy"))


@pytest.mark.parametrize("how", ["deleted", "unmounted", "emptied"])
def test_a_folder_that_vanishes_ends_the_run_and_a_rerun_goes_on(
    full_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    away = tmp_path / "away"

    def vanish() -> None:
        full_folder.rename(away)
        if how != "deleted":
            full_folder.mkdir()
        if how == "emptied":  # all files are gone, and something else is there
            (full_folder / "README").write_text("moved")

    monkeypatch.setattr(folder_source, "READ_THREADS", 1)  # nothing is read ahead
    after_the_first_shard(monkeypatch, vanish)
    plan = plan_of(
        {"type": "folder", "path": str(full_folder)}, shard_size=SHARD, max_quarantined_share=0.5
    )
    message = "images could not be opened" if how == "emptied" else "gone, or no longer mounted"
    with pytest.raises(SourceLostError, match=rf"{message}.*the same command goes on from there"):
        write_store(plan, tmp_path / "store")
    first = shards_in(tmp_path / "store")
    assert first
    shutil.rmtree(full_folder, ignore_errors=True)
    away.rename(full_folder)
    fetched: list[str] = []
    fetch = FolderSource._fetch
    monkeypatch.setattr(
        FolderSource, "_fetch", lambda self, path: fetched.append(path) or fetch(self, path)
    )
    store = write_store(plan, tmp_path / "store")
    assert len(store) == N_IMAGES
    assert len(fetched) == N_IMAGES - SHARD * len(first)
    assert f"{store.shards[0].name}.npy" == first[0]
    reference = write_store(plan, tmp_path / "reference")
    assert store.fingerprint == reference.fingerprint


@pytest.mark.parametrize("how", ["deleted", "cut", "overwritten"])
def test_a_parquet_file_that_is_lost_ends_the_run_and_a_rerun_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    files = [tmp_path / "in" / f"{part}.parquet" for part in "abc"]
    files[0].parent.mkdir()
    for number, file in enumerate(files):
        images = [image(10 * number + seed) for seed in range(SHARD)]
        pq.write_table(
            pa.table({"image": images, "id": [f"{file.stem}{row}" for row in range(SHARD)]}), file
        )
    whole, times = files[1].read_bytes(), files[1].stat()

    def lose() -> None:
        if how == "deleted":
            files[1].unlink()
        else:
            files[1].write_bytes(whole[:500] if how == "cut" else b"\0" * len(whole))

    after_the_first_shard(monkeypatch, lose)
    plan = plan_of({"type": "parquet", "path": str(tmp_path / "in")}, shard_size=SHARD)
    with pytest.raises(
        SourceLostError, match=r"b\.parquet could not be read to its end .*the same command goes on"
    ):
        write_store(plan, tmp_path / "store")
    first = shards_in(tmp_path / "store")
    assert len(first) == 1
    files[1].write_bytes(whole)
    os.utime(files[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    store = write_store(plan, tmp_path / "store")
    assert len(store) == 3 * SHARD
    assert f"{store.shards[0].name}.npy" == first[0]


def test_a_remote_folder_that_goes_away_keeps_its_finished_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(N_IMAGES):
        with fsspec.open(f"memory://vanishing/{seed:02d}.png", "wb") as file:
            file.write(image(seed))
    is_gone: list[bool] = []
    cat_file = MemoryFileSystem.cat_file

    class ConnectionFault(Exception):
        """Such as clients of remote stores raise; no OSError."""

    def failing(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        if is_gone:
            raise ConnectionFault("no route to host")
        return cat_file(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", failing)
    monkeypatch.setattr(folder_source, "READ_THREADS", 1)
    after_the_first_shard(monkeypatch, lambda: is_gone.append(True))
    plan = plan_of(
        {"type": "folder", "path": "memory://vanishing"},
        shard_size=SHARD,
        max_quarantined_share=0.1,
    )
    with pytest.raises(SourceLostError, match="of 30 images could not be opened, such as '10.png'"):
        write_store(plan, tmp_path / "store")
    assert shards_in(tmp_path / "store")
    is_gone.clear()
    assert len(write_store(plan, tmp_path / "store")) == N_IMAGES


def test_a_few_images_that_could_not_be_opened_are_counted_and_the_run_goes_on(
    full_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_the_first_shard(monkeypatch, lambda: (full_folder / "29.png").unlink())
    plan = plan_of({"type": "folder", "path": str(full_folder)}, shard_size=SHARD)
    store = write_store(plan, tmp_path / "store")
    assert store.quarantine_counts == {str(Reason.NOT_OPENED): 1}
    assert len(store) == N_IMAGES - 1
