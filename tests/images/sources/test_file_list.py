"""Sources that are a list of image files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.quarantine import counts_by_reason
from pu_kd_pipeline.images.sources import file_list
from pu_kd_pipeline.images.sources.registry import source_state
from tests.images.numbered_images import plan_of
from tests.images.numbered_images import png as colored_png
from tests.images.sources.examples import (
    FilesOnlyHandler,
    gray_levels,
    image_folder,
    listed,
    opened,
    png,
    served,
    source_of,
)


def list_of(folder: Path, text: str | bytes, name: str = "list.csv") -> Path:
    """Write a list next to the images cat/a.png (1), cat/b.png (2) and dog/c.png (3)."""
    image_folder(folder, cat__a=1, cat__b=2, dog__c=3)
    content = text
    if isinstance(content, str):
        content = content.encode()
    file = folder / name
    file.write_bytes(content)
    return file


ROWS = "path,label\ncat/a.png,cat\ndog/c.png,dog\n"


def labels_of(listing: pd.DataFrame) -> list[Any]:
    return listing["label_name"].fillna("-").tolist()


def test_a_list_names_images_and_labels(tmp_path: Path) -> None:
    reader = opened("list", path=list_of(tmp_path, ROWS), labels="classes")
    listing = reader.listing()
    assert listing["id"].tolist() == ["cat/a.png", "dog/c.png"]
    assert labels_of(listing) == ["cat", "dog"]
    assert gray_levels(reader.read(listing)) == [1, 3]
    assert gray_levels(reader.read(listing.iloc[[1]])) == [3]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_and_marked_encodings_are_recognized(
    tmp_path: Path, separator: str, encoding: str
) -> None:
    text = ROWS.replace(",", separator).replace("dog\n", "chien été\r\n")
    file = list_of(tmp_path, text.encode(encoding))
    listing = listed("list", path=file)
    assert listing["id"].tolist() == ["cat/a.png", "dog/c.png"]
    assert labels_of(listing) == ["cat", "chien été"]


def test_another_encoding_and_separator_are_parameters(tmp_path: Path) -> None:
    text = ROWS.replace(",", "~").replace("dog\n", "été\n")
    file = list_of(tmp_path, text.encode("cp1252"))
    with pytest.raises(InputError, match="line 3: it is not text in utf-8 .* set `encoding`"):
        listed("list", path=file)
    listing = listed("list", path=file, encoding="cp1252", separator="~")
    assert labels_of(listing) == ["cat", "été"]


def test_quoted_fields_blank_lines_and_other_columns_are_read(tmp_path: Path) -> None:
    image_folder(tmp_path, **{'a "b", c': 7})
    text = '\n note ,path, label\n\n"x\ny","a ""b"", c.png",cat\n'
    reader = opened("list", path=list_of(tmp_path, text))
    listing = reader.listing()
    assert listing["id"].tolist() == ['a "b", c.png']
    assert labels_of(listing) == ["cat"]
    assert gray_levels(reader.read(listing)) == [7]


def test_columns_have_other_names(tmp_path: Path) -> None:
    text = "file_name,category,number,key\ncat/a.png,cat,5,x\ndog/c.png,,,\n"
    listing = listed(
        "list",
        path=list_of(tmp_path, text),
        path_column="file_name",
        label_column="number",
        label_name_column="category",
        id_column="key",
    )
    # An image without id is called by its path.
    assert listing["id"].tolist() == ["x", "dog/c.png"]
    assert listing["label"].fillna(-1).tolist() == [5, -1]
    assert labels_of(listing) == ["cat", "-"]


@pytest.mark.parametrize(
    ("texts", "numbers", "names"),
    [
        (["3", "0", ""], [3, 0, -1], ["-", "-", "-"]),
        (["3.0", "", "10.0"], [3, -1, 10], ["-", "-", "-"]),
        # One that is no number makes all of them names, such as folders called 001 to 120.
        (["001", "100", ""], [-1, -1, -1], ["001", "100", "-"]),
        (["1", "two", " "], [-1, -1, -1], ["1", "two", "-"]),
        # pandas would read these as missing.
        (["NA", "null", "None"], [-1, -1, -1], ["NA", "null", "None"]),
    ],
)
def test_labels_of_a_text_are_numbers_if_all_of_them_are(
    tmp_path: Path, texts: list[str], numbers: list[int], names: list[str]
) -> None:
    paths = ["cat/a.png", "cat/b.png", "dog/c.png"]
    lines = [f"{path},{text}" for path, text in zip(paths, texts, strict=True)]
    listing = listed("list", path=list_of(tmp_path, "\n".join(["path,label", *lines])))
    assert listing["label"].fillna(-1).tolist() == numbers
    assert labels_of(listing) == names


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    text = "  \npath,label\n \t \ncat/a.png,cat\n,\n , \n\ndog/c.png,dog\n   \n"
    listing = listed("list", path=list_of(tmp_path, text))
    assert listing["id"].tolist() == ["cat/a.png", "dog/c.png"]


def test_a_parquet_list_has_types_and_hugging_faces_class_names(tmp_path: Path) -> None:
    list_of(tmp_path, "")
    features = {"y": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    schema = pa.schema(
        [("file", pa.string()), ("y", pa.int64())],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = pa.table({"file": ["dog/c.png", "cat/a.png"], "y": [1, 0]}, schema)
    pq.write_table(table, tmp_path / "list.parquet")
    reader = opened("list", path=tmp_path / "list.parquet", path_column="file", label_column="y")
    listing = reader.listing()
    assert listing["label"].tolist() == [1, 0]
    assert labels_of(listing) == ["dog", "cat"]
    assert gray_levels(reader.read(listing)) == [3, 1]
    with pytest.raises(InputError, match="is a Parquet file: remove `separator` and `encoding`"):
        listed("list", path=tmp_path / "list.parquet", separator=";")


def test_paths_start_at_the_root_and_may_be_absolute(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", cat__a=1, cat__b=2)
    elsewhere = image_folder(tmp_path / "elsewhere", c=3)
    paths = ["./cat//a.png", f"{images}/cat/b.png", f"{elsewhere}/c.png"]
    file = tmp_path / "lists" / "list.tsv"
    file.parent.mkdir()
    file.write_text("\n".join(["path", *paths]))
    reader = opened("list", path=file, root=str(images))
    listing = reader.listing()
    assert listing["id"].tolist() == ["cat/a.png", "cat/b.png", f"{elsewhere}/c.png"]
    assert gray_levels(reader.read(listing)) == [1, 2, 3]


def test_files_without_extension_and_behind_links_are_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "blob").write_bytes(png(4))
    (root / "link").symlink_to(tmp_path / "blob")
    (root / "list.csv").write_text("path\nlink\n")
    reader = opened("list", path=root / "list.csv")
    assert gray_levels(reader.read(reader.listing())) == [4]


def test_missing_files_are_named_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = ROWS + "cat/gone.png,cat\ncat,cat\n"
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "broken.png").symlink_to("nothing")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    text += "cat/broken.png,cat\ncat/pipe.png,cat\n"
    listing = listed("list", path=list_of(tmp_path, text))
    faults = listing.set_index("id")["fault"].dropna()
    assert faults.to_dict() == {
        "cat/gone.png": Reason.MISSING,
        "cat": Reason.UNREADABLE,
        "cat/broken.png": Reason.BROKEN_LINK,
        "cat/pipe.png": Reason.UNREADABLE,
    }
    assert "1 of its 6 files are not in" in caplog.text
    assert "'cat/gone.png': they are left out, and counted as 'file not found'" in caplog.text


@pytest.mark.parametrize(("name", "hint"), [("a.png", ""), ("cat\\a.png", "not backslashes")])
def test_a_list_without_any_file_is_refused(tmp_path: Path, name: str, hint: str) -> None:
    file = list_of(tmp_path, f"path\n{name}\n")
    message = f"1 of its 1 files are not in .*{hint}.* set `root` to where they start"
    with pytest.raises(InputError, match=message):
        listed("list", path=file)


def test_a_file_that_vanished_is_unusable_not_fatal(tmp_path: Path) -> None:
    reader = opened("list", path=list_of(tmp_path, ROWS))
    listing = reader.listing()
    (tmp_path / "cat" / "a.png").unlink()
    assert gray_levels(reader.read(listing)) == [Unusable(Reason.NOT_OPENED), 3]


def test_a_repeated_row_counts_once_and_contradicting_labels_are_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "path,label\ncat/a.png,cat\n./cat/a.png,cat\ncat/b.png,\ncat/b.png,cat\n"
    file = list_of(tmp_path, text + "dog/c.png,dog\ndog/c.png,cat\n")
    listing = listed("list", path=file, labels="truth")
    assert listing["id"].tolist() == ["cat/a.png", "cat/b.png", "dog/c.png"]
    assert labels_of(listing)[:2] == ["cat", "cat"]
    faults = listing["fault"].fillna("-").tolist()
    assert faults == ["-", "-", "conflicting labels: dog and cat"]
    assert counts_by_reason(listing["fault"].dropna()) == {"conflicting labels": 1}
    assert listing.attrs["passed_over"] == {"row of the list that repeats another one": 3}
    assert "1 files are listed with different labels, and are left out, such as" in caplog.text
    # Spaces around a label are no part of it, also where it is blank.
    spaced = tmp_path / "spaced.csv"
    spaced.write_text('path,label\ncat/a.png,cat\ncat/a.png," cat "\n')
    assert listed("list", path=spaced, labels="truth")["fault"].isna().all()
    pq.write_table(
        pa.table({"path": ["cat/a.png"] * 2, "label_name": [" ", "cat"]}), tmp_path / "a.parquet"
    )
    assert labels_of(listed("list", path=tmp_path / "a.parquet", labels="truth")) == ["cat"]
    # Labels that are not read cannot contradict each other.
    ignored = listed("list", path=file, labels="ignore")
    assert ignored["fault"].isna().all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat/a.png,cat\n", r"no column 'path'; found: 'cat/a.png', 'cat'. Its first line must"),
        ("", "has no column 'path'; found: . Its first line must name the columns"),
        ("Path\ncat/a.png\n", "found: 'Path'. .* set `path_column` on the source to one of them"),
        ("path,path\na,b\n", "has more than one column 'path': rename all but one"),
        ("path,label\n", "lists no image: it has no rows below its header"),
        ("path,label\na,b,c\n", "line 2: it has 3 fields and the first line has 2: put fields"),
        ("path,label\na\n", "line 2: it has 1 fields and the first line has 2"),
        ('path,label\n"a"b,c\n', "line 2: it cannot be read .*: correct its quotes"),
        ('path\n"a\nb\n', "it cannot be read .*: correct its quotes"),
        ("path,label\n,cat\n", "row 1 below the header: it has no path"),
        ("path\nhttps://u:secret@h/a.png\n", r"lists URLs, such as 'https://\*\*\*@h/a.png'"),
        ("path\ncat/a.png\n".encode("utf-16-le"), "set `encoding` on the source, such as utf-16"),
        (b"PAR1 damaged", "is not a Parquet file that can be read"),
        (b"\x1f\x8b\x08\x00", "line 1: it is not text in utf-8"),
        (b"path\ncat/a.png\n" + b"\xff\xfe", "line 3: it is not text in utf-8"),
    ],
)
def test_what_is_no_list_is_refused_with_the_line(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        listed("list", path=list_of(tmp_path, text))


def test_labels_that_are_asked_for_need_a_column(tmp_path: Path) -> None:
    file = list_of(tmp_path, "path,category\ncat/a.png,cat\n")
    with pytest.raises(InputError, match="no column 'label' or 'label_name', and labels is"):
        listed("list", path=file, labels="truth")
    with pytest.raises(InputError, match="has no column 'Category'; found: 'path', 'category'"):
        listed("list", path=file, label_column="Category")


def test_a_list_is_one_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, and a source of type 'list' reads one file"):
        listed("list", path=tmp_path)
    with pytest.raises(InputError, match="there is no .*list.csv: correct `path`"):
        listed("list", path=tmp_path / "list.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="is neither a file nor a folder"):
        listed("list", path=tmp_path / "pipe.csv")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"separator": ", "}, "is not one character between fields"),
        ({"separator": '"'}, "is not one character between fields"),
        ({"encoding": "utf-9"}, "is no encoding that Python knows"),
        ({"encoding": "base64"}, "is no encoding that Python knows"),
    ],
)
def test_parameters_of_the_text_are_checked_at_the_start(
    parameters: dict[str, str], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        source_of("list", path="x.csv", **parameters)


def test_the_state_follows_the_list_and_its_files(tmp_path: Path) -> None:
    file = list_of(tmp_path, ROWS)
    source = source_of("list", path=file)
    states = [source_state(source)]
    (tmp_path / "cat" / "a.png").write_bytes(png(9))
    states.append(source_state(source))
    file.write_text(ROWS.replace(",dog", ",cat"))
    states.append(source_state(source))
    (tmp_path / "dog" / "c.png").unlink()
    states.append(source_state(source))
    assert len(set(states)) == 4
    # A file that is not listed
    image_folder(tmp_path, cat__b=8)
    assert source_state(source) == states[-1]


def test_a_remote_list_is_read_like_a_local_one(tmp_path: Path) -> None:
    remote = fsspec.filesystem("memory")
    remote.pipe("/lists/labels/list.csv", b"path,label\na.png,cat\ngone.png,dog\n")
    for folder, gray in (("labels", 1), ("images", 2)):
        remote.pipe(f"/lists/{folder}/a.png", png(gray))
    url = "memory://lists/labels/list.csv"
    for parameters, gray in (({}, 1), ({"root": "memory://lists/images"}, 2)):
        reader = opened("list", path=url, **parameters)
        listing = reader.listing()
        assert listing["id"].tolist() == ["a.png", "gone.png"]
        assert listing["fault"].fillna("-").tolist() == ["-", Reason.MISSING]
        assert gray_levels(reader.read(listing.iloc[:1])) == [gray]

    source = source_of("list", path=url)
    before = source_state(source)
    assert source_state(source) == before
    remote.pipe("/lists/labels/a.png", png(5))
    assert source_state(source) != before

    # A local list of remote files
    file = tmp_path / "list.csv"
    file.write_text("path\na.png\n")
    reader = opened("list", path=file, root="memory://lists/images")
    assert gray_levels(reader.read(reader.listing())) == [2]


@pytest.mark.parametrize("n_few", [100, 0])
def test_a_server_that_lists_no_folders_is_read(
    n_few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_list, "_FEW_FILES", n_few)
    list_of(tmp_path, ROWS + "cat/gone.png,cat\n")
    with served(tmp_path, FilesOnlyHandler) as url:
        reader = opened("list", path=f"{url}/list.csv")
        listing = reader.listing()
        assert listing["fault"].fillna("-").tolist() == ["-", "-", Reason.MISSING]
        assert gray_levels(reader.read(listing.iloc[:2])) == [1, 3]


def test_a_short_list_does_not_list_what_is_below_its_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crawl(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.find", crawl)
    fsspec.filesystem("memory").pipe("/short/a.png", png(1))
    file = tmp_path / "list.csv"
    file.write_text("path\na.png\n")
    assert listed("list", path=file, root="memory://short")["fault"].isna().all()


def test_a_server_that_is_down_has_no_missing_files(tmp_path: Path) -> None:
    list_of(tmp_path, ROWS)
    with served(tmp_path) as url:
        pass
    plan = plan_of(tmp_path / "list.csv", source={"type": "list", "root": url})
    with pytest.raises(InputError, match="check the address, the network and your credentials"):
        write_store(plan, tmp_path / "store")


def test_labels_of_a_list_are_joined_drawn_and_shared_like_others(tmp_path: Path) -> None:
    lines = ["path,label"]
    names = ["Cat", "dog", "chien", "junk"]
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(colored_png(number))
        lines.append(f"{number}.png,{names[number % 4]}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    source = {"type": "list", "exclude_labels": ["junk"], "label_map": {"Cat": 0, "dog": 1}}
    source |= {"labels": "truth", "name": "listed"}
    store = write_store(plan_of(tmp_path / "list.csv", source=source), tmp_path / "all")
    index = store.index
    assert len(index) == 30
    assert index["label"].value_counts().to_dict() == {0: 10, 1: 10}
    assert index["relevant"].sum() == 20
    assert index["id"].str.startswith("listed/").all()

    halves = []
    for half, share in enumerate([(0, 0.5), (0.5, 1)]):
        part = plan_of(tmp_path / "list.csv", source={**source, "share": share})
        halves.append(set(write_store(part, tmp_path / f"half{half}").index["id"]))
    assert halves[0].isdisjoint(halves[1])
    assert halves[0] | halves[1] == set(index["id"])

    few = {"type": "list", "per_class": 2, "label_map": {"Cat": 0, "dog": 1, "chien": 2}}
    few |= {"exclude_labels": ["junk"]}
    drawn = write_store(plan_of(tmp_path / "list.csv", source=few), tmp_path / "few")
    assert drawn.index["label"].value_counts().to_dict() == {0: 2, 1: 2, 2: 2}
