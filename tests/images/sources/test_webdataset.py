"""WebDataset shards: their samples, labels and ids."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.http import HTTPFileSystem

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.preflight import _fault_of_path
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.source_reports import read_reports
from pu_kd_pipeline.images.sources.registry import source_state
from tests.images.numbered_images import plan_of
from tests.images.sources.examples import (
    gray_levels,
    listed,
    opened,
    parquet_file,
    png,
    served,
    source_of,
)

Files = list[tuple[str, bytes]]


def packed(files: Files, **options: Any) -> bytes:
    """Return a tar archive of these files, which may have the same name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, **{"mode": "w", **options}) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def shard(file: Path, *files: tuple[str, bytes], **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(packed(list(files), **options))
    return file


def sample(key: str, gray: int, label: Any = None, extension: str = "png") -> Files:
    """Return the files of a sample; the label is written as `cls`, or a dict as `json`."""
    files = [(f"{key}.{extension}", png(gray))]
    if isinstance(label, dict):
        files.append((f"{key}.json", json.dumps(label).encode()))
    elif label is not None:
        files.append((f"{key}.cls", str(label).encode()))
    return files


def rows_of(path: Path | str, *columns: str, **source: Any) -> list[tuple[Any, ...]]:
    """Return some columns of the listing; missing values are None."""
    table = listed("webdataset", path=path, **source)[list(columns)].astype(object)
    known = table.where(table.notna(), None)
    return list(known.itertuples(index=False, name=None))


def grays_of(path: Path | str, **source: Any) -> dict[str, Any]:
    """Return the gray level of each image by its id, as it is read."""
    reader = opened("webdataset", path=path, **source)
    listing = reader.listing()
    usable = listing[listing["fault"].isna()]
    images = gray_levels(reader.read(usable))
    return dict(zip(usable["id"], images, strict=True))


def error_of(path: Path | str, **source: Any) -> str:
    with pytest.raises(InputError) as error:
        listed("webdataset", path=path, **source)
    return str(error.value)


# --- samples


def test_samples_are_files_with_the_same_name_up_to_the_first_dot(tmp_path: Path) -> None:
    file = shard(
        tmp_path / "a.tar",
        *sample("train/0001", 1, 2, "JPG"),
        *sample("train/0002", 2, 0, "png"),
        *sample("0001", 3, 1, "webp"),
    )
    rows = rows_of(file, "id", "label", "label_name", labels="truth")
    expected = [("a.tar/train/0001", 2), ("a.tar/train/0002", 0), ("a.tar/0001", 1)]
    assert rows == [(*row, None) for row in expected]
    assert list(grays_of(file).values()) == [1, 2, 3]
    # Without the key `labels`, none is read.
    assert rows_of(file, "label") == [(None,)] * 3


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("name", ["a.tar", "a.tgz"])
def test_compressed_shards_are_read_whatever_they_are_called(
    mode: str, name: str, tmp_path: Path
) -> None:
    files: Files = []
    for gray in range(50):
        files += sample(f"{gray:03}", gray, gray)
    file = shard(tmp_path / name, *files, mode=mode)
    assert list(grays_of(file).values()) == list(range(50))
    labels = rows_of(file, "label", labels="truth")
    assert labels == [(gray,) for gray in range(50)]

    # Some of the images, as a draw or a store that holds the others asks for them
    reader = opened("webdataset", path=file)
    some = reader.listing().iloc[[3, 20, 49]]
    assert gray_levels(reader.read(some)) == [3, 20, 49]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_tar_format_are_keys(form: int, tmp_path: Path) -> None:
    long_name = "/".join(["folder" * 5] * 4) + "/" + "x" * 90
    if form != tarfile.USTAR_FORMAT:
        long_name += "y" * 500
    files = sample(long_name, 1) + sample("Straße/Köln 1", 2) + sample("./dot/a", 3)
    file = shard(tmp_path / "a.tar", *files, format=form)
    assert grays_of(file) == {
        f"a.tar/{long_name}": 1,
        "a.tar/Straße/Köln 1": 2,
        "a.tar/dot/a": 3,
    }


def test_names_that_lead_out_of_the_archive_are_only_ids(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    names = ["../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x"]
    files: Files = []
    for gray, name in enumerate(names):
        files += sample(name, gray)
    file = shard(folder / "a.tar", *files)
    assert grays_of(file) == {f"a.tar/{name}": gray for gray, name in enumerate(names)}
    assert list(tmp_path.rglob("*")) == [folder, file]


def test_what_is_no_image_of_a_sample_is_counted(tmp_path: Path) -> None:
    files = [
        *sample("0", 0),
        ("1.txt", b"a caption"),
        ("._0.png", b"x"),
        (".cache/0.png", b"x"),
        ("README", b"x"),
    ]
    listing = listed("webdataset", path=shard(tmp_path / "a.tar", *files))
    assert listing["id"].tolist() == ["a.tar/0"]
    assert listing.attrs["passed_over"] == {
        "hidden file": 2,
        "no extension": 1,
        "sample without an image": 1,
    }


def test_files_of_a_sample_need_not_be_neighbors(tmp_path: Path) -> None:
    # As `tar cf a.tar *.png *.cls` writes them
    files = [("a.png", png(1)), ("b.png", png(2)), ("a.cls", b"7"), ("b.cls", b"8")]
    file = shard(tmp_path / "a.tar", *files)
    assert rows_of(file, "id", "label", labels="truth") == [("a.tar/a", 7), ("a.tar/b", 8)]


def test_several_images_in_a_sample_need_image_column(tmp_path: Path) -> None:
    files = [("0.jpg", png(1)), ("0.seg.png", png(2)), ("1.jpg", png(3)), ("2.seg.png", png(4))]
    file = shard(tmp_path / "a.tar", *files)
    message = error_of(file)
    assert "a.tar, sample '0' has 2 images (jpg, seg.png): name the one that is meant" in message

    assert grays_of(file, image_column="jpg") == {"a.tar/0": 1, "a.tar/1": 3}
    assert grays_of(file, image_column=".SEG.png") == {"a.tar/0": 2, "a.tar/2": 4}
    assert grays_of(file, image_column="jpg;seg.png") == {"a.tar/0": 1, "a.tar/1": 3, "a.tar/2": 4}
    listing = listed("webdataset", path=file, image_column="jpg")
    assert listing.attrs["passed_over"] == {"sample without an image": 1}
    assert "webp are looked for in its samples, found: jpg, seg.png" in error_of(
        file, image_column="webp"
    )


def test_several_files_of_one_name_are_set_aside(tmp_path: Path) -> None:
    file = shard(tmp_path / "a.tar", *sample("0", 1), *sample("1", 2), *sample("0", 3))
    faults = rows_of(file, "id", "fault")
    assert faults == [("a.tar/0", "several files of one name"), ("a.tar/1", None)]
    # Equal labels of them do no harm, others do.
    twice = shard(tmp_path / "b.tar", ("0.png", png(1)), ("0.cls", b"1"), ("0.cls", b"1"))
    assert rows_of(twice, "label", labels="truth") == [(1,)]
    other = shard(tmp_path / "c.tar", ("0.png", png(1)), ("0.cls", b"1"), ("0.cls", b"2"))
    assert "c.tar, sample '0' has 2 different cls" in error_of(other, labels="truth")


def test_links_are_followed_within_the_shard(tmp_path: Path) -> None:
    def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = target
        return member

    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as tar:
        tar.addfile(link("early.png", "x/0.png", tarfile.SYMTYPE))
        for name, content in sample("x/0", 10, 4) + sample("x/1", 11, 5):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        tar.addfile(link("x/2.png", "./x/0.png", tarfile.LNKTYPE))
        tar.addfile(link("x/2.cls", "x/0.cls", tarfile.LNKTYPE))
        tar.addfile(link("y/3.png", "../x/1.png", tarfile.SYMTYPE))
        tar.addfile(link("out.png", "/etc/passwd", tarfile.SYMTYPE))
        tar.addfile(link("circle.png", "circle.png", tarfile.SYMTYPE))
        tar.addfile(link("pipe.png", "", tarfile.FIFOTYPE))

    assert grays_of(file) == {
        "a.tar/early": 10,
        "a.tar/x/0": 10,
        "a.tar/x/2": 10,
        "a.tar/x/1": 11,
        "a.tar/y/3": 11,
    }
    by_id = dict(rows_of(file, "id", "fault"))
    assert by_id["a.tar/out"] == by_id["a.tar/circle"] == "broken link"
    assert "a.tar/pipe" not in by_id
    labels = dict(rows_of(file, "id", "label", labels="truth"))
    assert labels["a.tar/x/2"] == 4

    # The parameter that follows the links of a folder is none of this type of source.
    plan = plan_of(file, source={"type": "webdataset", "labels": "ignore"})
    plan = dataclasses.replace(
        plan, store=plan.store.model_copy(update={"max_quarantined_share": 0.0})
    )
    with pytest.raises(InputError, match=r"broken link 2.* allows\. Fix the images, or raise"):
        write_store(plan, tmp_path / "store")


# --- labels


@pytest.mark.parametrize(
    ("values", "source", "expected"),
    [
        ([1, "2\n", " -3 "], {}, [(1, None), (2, None), (-3, None)]),
        (["cat", "dog"], {}, [(None, "cat"), (None, "dog")]),
        # Leading zeros are part of a name, such as that of a folder.
        (["001", "100"], {}, [(None, "001"), (None, "100")]),
        ([2**63 - 1, -(2**63)], {}, [(2**63 - 1, None), (-(2**63), None)]),
        # One name makes names of all, as in a column of a table.
        ([1, "cat"], {}, [(None, "1"), (None, "cat")]),
        ([{"label": 3}, {"label": 4.0}, {"label": None}], {}, [(3, None), (4, None), (None, None)]),
        ([{"label": "cat"}, {"label": True}], {}, [(None, "cat"), (None, "true")]),
        ([{"label": 3}, {"label": math.nan}], {}, [(3, None), (None, None)]),
        ([{"label": " cat\n"}, {"label": " "}], {}, [(None, "cat"), (None, None)]),
        ([{"a": {"b": 1}}, {"a.b": 2}], {"label_column": "json.a.b"}, [(1, None), (2, None)]),
        (
            [{"label": 1, "name": "cat"}],
            {"label_column": "json.label", "label_name_column": "json.name"},
            [(1, "cat")],
        ),
        ([{"name": "cat"}], {"label_name_column": "json.name"}, [(None, "cat")]),
        ([1, None], {}, [(1, None), (None, None)]),
    ],
)
def test_labels_are_read_from_the_field_that_the_parameters_name(
    values: list[Any], source: dict[str, str], expected: list[tuple[Any, Any]], tmp_path: Path
) -> None:
    files: Files = []
    for number, value in enumerate(values):
        files += sample(f"{number}", number, value)
    file = shard(tmp_path / "a.tar", *files)
    assert rows_of(file, "label", "label_name", labels="truth", **source) == expected


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        (sample("0", 0), {}, "no sample has cls or json.label; found: png. Name the label"),
        (sample("0", 0, {"class": 1}), {}, "found: png, json, json.class. Name the label"),
        (sample("0", 0, 1), {"label_column": "txt"}, "no sample has txt; found: png, cls"),
        (
            sample("0", 0, 1) + sample("1", 1, {"label": 1}),
            {},
            "labels in different fields: cls (",
        ),
        (sample("0", 0, {"label": [1]}), {}, "sample '0': json.label is [1]; a label must be"),
        (sample("0", 0, {"label": 0.5}), {}, "sample '0': json.label is 0.5; a label must be"),
        ([("0.png", png(0)), ("0.json", b"{")], {}, "sample '0': its JSON cannot be read"),
        ([("0.png", png(0)), ("0.json", b"[" * 10**5)], {}, "its JSON cannot be read"),
        ([("0.png", png(0)), ("0.cls", b"\xff")], {}, "its label is not UTF-8"),
        (sample("0", 0, "9" * 5_000), {}, "its label has more than 64 bits"),
        (sample("0", 0, 2**63), {}, "its label has more than 64 bits"),
        (sample("0", 0, "x" * 10_001), {}, "its label has 10,001 characters"),
        (sample("0", 0, "x" * 2_000_000), {}, "its cls is larger than 1,048,576 bytes"),
        (
            sample("0", 0, {"label": "a", "name": "b"}),
            {"label_column": "json.label", "label_name_column": "json.name"},
            "a sample has the label 'a' and the name 'b'",
        ),
    ],
)
def test_labels_that_cannot_be_read_are_refused_with_shard_and_sample(
    files: Files, source: dict[str, str], message: str, tmp_path: Path
) -> None:
    file = shard(tmp_path / "a.tar", *files)
    assert message in error_of(file, labels="truth", **source)
    # Where labels are ignored, nothing is wrong.
    assert grays_of(file)


# --- shards


def test_ids_are_unique_and_stay_when_shards_are_added(tmp_path: Path) -> None:
    shard(tmp_path / "train" / "0.tar", *sample("a", 1))
    pattern = f"{tmp_path}/*/*.tar*"
    before = grays_of(pattern)
    assert before == {"train/0.tar/a": 1}

    shard(tmp_path / "val" / "0.tar", *sample("a", 2))
    shard(tmp_path / "train" / "0.tar.gz", *sample("a", 3), mode="w:gz")
    assert grays_of(pattern) == {**before, "val/0.tar/a": 2, "train/0.tar.gz/a": 3}


def test_folders_globs_ranges_and_urls_name_the_same_shards(tmp_path: Path) -> None:
    for number in range(3):
        file = shard(tmp_path / f"s-{number:03}.tar", *sample("a", number))
        with fsspec.open(f"memory://wds/s-{number:03}.tar", "wb") as copy:
            copy.write(file.read_bytes())
    (tmp_path / "._s-000.tar").write_bytes(b"x")
    (tmp_path / "index.json").write_text("{}")

    expected = {f"s-{number:03}.tar/a": number for number in range(3)}
    folders = [f"{tmp_path}", "memory://wds", f"simplecache::file://{tmp_path}"]
    for folder in folders:
        for path in (folder, f"{folder}/*.tar", f"{folder}/s-{{000..002}}.tar"):
            assert grays_of(path) == expected, path
    assert grays_of(f"{tmp_path}/s-{{000,002}}.tar") == {"s-000.tar/a": 0, "s-002.tar/a": 2}
    assert grays_of(tmp_path / "s-001.tar") == {"s-001.tar/a": 1}
    assert listed("webdataset", path=tmp_path).attrs["passed_over"] == {"hidden file": 1}

    # A shard that a range names must be there.
    for folder in (f"{tmp_path}", "memory://wds"):
        assert "there is no tar archive at" in error_of(f"{folder}/s-{{000..003}}.tar")


@pytest.mark.parametrize("name", ["train/s-0.tar", "a/b/s-0.TAR.GZ"])
def test_shards_in_other_folders_are_pointed_out(name: str, tmp_path: Path) -> None:
    file = shard(tmp_path / name, *sample("a", 1), mode="w:gz" if "GZ" in name else "w")
    fsspec.filesystem("memory").pipe(f"{tmp_path}/{name}", file.read_bytes())
    for folder in (f"{tmp_path}", f"memory:/{tmp_path}"):
        message = error_of(folder)
        assert f"there are some in its folders {Path(name).parent}: write `" in message
        assert len(listed("webdataset", path=message.split("`")[1])) == 1


def test_ranges_are_checked_before_a_run(tmp_path: Path) -> None:
    for number in range(4):
        shard(tmp_path / f"s-0{number}.tar", *sample("a", 1))
    path = f"{tmp_path}/s-{{00..03}}.tar"
    assert _fault_of_path(path, source_of("webdataset", path=path)) is None
    path = f"{tmp_path}/t-{{00..03}}.tar"
    fault = _fault_of_path(path, source_of("webdataset", path=path))
    assert fault is not None
    assert fault.startswith("there is no")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_shards_of_a_server_that_sends_only_whole_files_are_read(mode: str, tmp_path: Path) -> None:
    files: Files = []
    for gray in range(40):
        files += sample(f"{gray:02}", gray, gray)
    # Longer than what is read ahead
    files.insert(40, ("x.bin", bytes(3 * 2**20)))
    shard(tmp_path / "a.tar", *files, mode=mode)
    with served(tmp_path) as address:
        url = f"{address}/a.tar?token=s3cret"
        assert grays_of(url) == {f"a.tar/{gray:02}": gray for gray in range(40)}
        assert rows_of(url, "label", labels="truth") == [(gray,) for gray in range(40)]


def test_no_shard_is_read_to_find_out_whether_it_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        shard(tmp_path / f"s-{number}.tar", *sample("a", number))
        shard(tmp_path / f"s-{number}.wds", *sample("a", number))
        parquet_file(tmp_path / f"{number}.parquet", 1)

    # `isdir` lists the links in a file, and old versions of fsspec read all of it.
    async def read_as_a_whole(_: Any, path: str, **__: Any) -> bool:
        raise AssertionError(path)

    with served(tmp_path) as url:
        assert grays_of(f"{url}/") == {"s-0.tar/a": 0, "s-1.tar/a": 1}
        monkeypatch.setattr(HTTPFileSystem, "_ls", read_as_a_whole)
        assert grays_of(f"{url}/s-{{0..1}}.tar") == {"s-0.tar/a": 0, "s-1.tar/a": 1}
        assert grays_of(f"{url}/s-{{0..1}}.wds") == {"s-0.wds/a": 0, "s-1.wds/a": 1}
        assert grays_of(f"{url}/s-1.tar?key=1") == {"s-1.tar/a": 1}
        assert listed("parquet", path=f"{url}/1.parquet")["id"].tolist() == ["1:0"]


def test_a_remote_folder_called_like_a_shard_is_a_folder(tmp_path: Path) -> None:
    file = shard(tmp_path / "a.tar", *sample("a", 1))
    fsspec.filesystem("memory").pipe("/called/like.tar/a.tar", file.read_bytes())
    assert grays_of("memory://called/like.tar") == {"a.tar/a": 1}


def test_a_store_of_shards_has_their_labels_and_is_made_once(
    tmp_path: Path, n_decoded: Callable[[], int]
) -> None:
    files = sample("0", 10, "cat") + sample("1", 20, "dog") + sample("2", 30, "owl")
    file = shard(tmp_path / "a.tar", *files)
    plan = plan_of(file, source={"type": "webdataset", "labels": "classes"})
    store = write_store(plan, tmp_path / "store")
    assert store.index["label"].tolist() == [0, 1, 2]
    pixels = store.read(np.arange(3))
    assert pixels[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert n_decoded() == 3

    write_store(plan, tmp_path / "store")
    assert n_decoded() == 0
    # A shard is replaced as a whole.
    shard(file, *files, *sample("3", 40, "cat"), ("4.txt", b"x"))
    store = write_store(plan, tmp_path / "store")
    assert n_decoded() == 4
    assert store.index["id"].tolist() == [f"a.tar/{number}" for number in range(4)]
    (report,) = read_reports(store.folder, len(store))
    assert report["passed_over"] == {"sample without an image": 1}


def test_a_shard_in_another_archive_is_read(tmp_path: Path) -> None:
    inner = packed(sample("a", 1) + sample("b", 2))
    outer = shard(tmp_path / "outer.tar", ("in/0.tar", inner))
    assert grays_of(f"tar://in/0.tar::{outer}") == {"0.tar/a": 1, "0.tar/b": 2}


def test_the_state_changes_with_a_shard(tmp_path: Path) -> None:
    file = shard(tmp_path / "a.tar", *sample("a", 1))
    source = source_of("webdataset", path=tmp_path)
    before = source_state(source)
    (version,) = set(listed("webdataset", path=tmp_path)["version"])
    assert source_state(source) == before

    about = file.stat()
    shard(file, *sample("a", 2))
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert file.stat().st_size == about.st_size
    assert source_state(source) != before
    assert set(listed("webdataset", path=tmp_path)["version"]).isdisjoint({version})

    before = source_state(source)
    shard(tmp_path / "b.tar", *sample("a", 3))
    assert source_state(source) != before
