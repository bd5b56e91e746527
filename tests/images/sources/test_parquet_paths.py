"""What the paths of Parquet files say: ids that tell files apart, and Hive's partitions."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.sources import path_names
from pu_kd_pipeline.images.sources.path_names import with_pattern
from pu_kd_pipeline.images.sources.registry import source_state
from tests.images.numbered_images import parquet_of, plan_of
from tests.images.sources.examples import gray_levels, listed, opened, parquet_file, source_of

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def files_in(root: Path | str, *names: str, **columns: Any) -> Path | str:
    """Write a Parquet file of two images for each name; file n has the gray levels 2n, 2n + 1."""
    for number, name in enumerate(names):
        if isinstance(root, Path):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        parquet_file(f"{root}/{name}", 2, first=2 * number, **columns)
    return root


def labels_of(listing: pd.DataFrame) -> list[Any]:
    numbers = listing["label"].astype("object")
    labels = listing["label_name"].astype("object").fillna(numbers)
    return labels.astype("object").where(labels.notna(), None).tolist()


@pytest.mark.parametrize("scheme", ["", "memory:/"])
def test_equal_names_in_folders_have_ids_with_their_folder(tmp_path: Path, scheme: str) -> None:
    root = f"{scheme}{tmp_path}"
    names = ["train/0000.parquet", "val/0000.parquet", "val/0001.parquet"]
    files_in(tmp_path if not scheme else root, *names)
    reader = opened("parquet", path=f"{root}/*/*.parquet", name="hub")
    listing = reader.listing()
    assert listing["id"].tolist() == [
        *("train/0000.parquet:0", "train/0000.parquet:1"),
        *("val/0000.parquet:0", "val/0000.parquet:1"),
        # As it was before another file had the same name as a third one
        *("0001:0", "0001:1"),
    ]
    assert gray_levels(reader.read(listing)) == [0, 1, 2, 3, 4, 5]


def test_a_new_folder_does_not_rename_images_of_the_others(tmp_path: Path) -> None:
    files_in(tmp_path, "a/1/x.parquet", "a/2/x.parquet")
    before = listed("parquet", path=tmp_path / "**" / "*.parquet")["id"]
    files_in(tmp_path, "b/x.parquet")
    after = listed("parquet", path=tmp_path / "**" / "*.parquet")["id"]
    assert before.tolist() == after.tolist()[:4]
    assert before[0] == "a/1/x.parquet:0"


def test_names_that_differ_in_their_ending_are_told_apart(tmp_path: Path) -> None:
    files_in(tmp_path, "a.parquet", "a.pq")
    ids = listed("parquet", path=tmp_path / "a.*")["id"]
    assert ids.tolist() == ["a.parquet:0", "a.parquet:1", "a.pq:0", "a.pq:1"]


def test_equal_ids_in_the_files_of_one_source_are_explained(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        parquet_of(tmp_path / folder / "0.parquet", range(3))
    plan = plan_of(tmp_path / "*" / "*.parquet", source={"name": "hub"})
    with pytest.raises(
        InputError, match="3 ids occur more than once, such as .* in one source: fix"
    ):
        write_store(plan, tmp_path / "store")


@pytest.mark.parametrize("scheme", ["", "memory:/"])
@pytest.mark.parametrize("pattern", ["", "/*/*.parquet", "/**/*.parquet"])
def test_partitions_are_labels(tmp_path: Path, scheme: str, pattern: str) -> None:
    root = f"{scheme}{tmp_path}/hive"
    names = [
        f"label={HIVE_NULL}/part-0.parquet",
        "label=cat/part-0.parquet",
        "label=guinea%20pig%2F1/part-0.parquet",
    ]
    files_in(tmp_path / "hive" if not scheme else root, *names)
    listing = listed("parquet", path=f"{root}{pattern}")
    assert labels_of(listing) == [None, None, "cat", "cat", "guinea pig/1", "guinea pig/1"]
    assert listing["id"][2] == "label=cat/part-0.parquet:0"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["0", "10"], [0, 0, 10, 10]),
        (["001", "100"], ["001", "001", "100", "100"]),
        (["1", "cat"], ["1", "1", "cat", "cat"]),
    ],
)
def test_partitions_are_numbers_if_all_of_them_are(
    tmp_path: Path, values: list[str], labels: list[Any]
) -> None:
    files_in(tmp_path, *[f"label={value}/a.parquet" for value in values])
    assert labels_of(listed("parquet", path=tmp_path)) == labels


def test_other_keys_and_names_next_to_numbers_are_read(tmp_path: Path) -> None:
    names = [
        "year=2020/label=1/label_name=cat/a.parquet",
        "year=2021/label=0/label_name=dog/a.parquet",
    ]
    files_in(tmp_path, *names)
    listing = listed("parquet", path=tmp_path)
    assert listing["label"].tolist() == [1, 1, 0, 0]
    assert labels_of(listing) == ["cat", "cat", "dog", "dog"]


def test_a_partition_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    files_in(tmp_path / "same", "label=cat/a.parquet", label=["cat", None])
    assert labels_of(listed("parquet", path=tmp_path / "same")) == ["cat", "cat"]
    files_in(tmp_path / "other", "label=cat/a.parquet", label=["cat", "dog"])
    with pytest.raises(
        InputError, match="row 1: the label is 'cat' in its folder's name, and 'dog'"
    ):
        listed("parquet", path=tmp_path / "other")


@pytest.mark.parametrize("scheme", ["", "memory:/"])
@pytest.mark.parametrize("path", ["a.parquet", "", "/", "*.parquet", "**/*.parquet"])
def test_folders_above_a_source_are_no_partitions(tmp_path: Path, scheme: str, path: str) -> None:
    folder = tmp_path / "label=smooth"
    files_in(folder if not scheme else f"{scheme}{folder}", "a.parquet", label=[0, 1])
    listing = listed("parquet", path=f"{scheme}{folder}/{path}")
    assert listing["label"].tolist() == [0, 1]


def test_hidden_and_temporary_folders_are_no_partitions(tmp_path: Path) -> None:
    names = ["label=cat/a.parquet", "_temporary/a.parquet", "_x=1/a.parquet", ".x=1/a.parquet"]
    files_in(tmp_path, *names)
    assert listed("parquet", path=tmp_path)["id"].tolist() == ["a:0", "a:1"]


def test_the_state_follows_files_in_partitions(tmp_path: Path) -> None:
    files_in(tmp_path, "label=cat/a.parquet")
    source = source_of("parquet", path=tmp_path)
    states = [source_state(source)]
    files_in(tmp_path, "label=dog/a.parquet")
    states.append(source_state(source))
    (tmp_path / "label=dog").rename(tmp_path / "label=owl")
    states.append(source_state(source))
    assert len(set(states)) == 3


def test_files_in_other_folders_are_pointed_out(tmp_path: Path) -> None:
    files_in(tmp_path, "train/0.parquet", "val/0.parquet")
    message = r"directly in .*: there are some in its folders train, val: write `.*/\*/\*.parquet`"
    with pytest.raises(InputError, match=message):
        listed("parquet", path=tmp_path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("zip://::D/z.zip", "zip://*.pq::D/z.zip"),
        ("zip://in::memory://z.zip", "zip://in/*.pq::memory://z.zip"),
        ("simplecache::zip://in/::D/z.zip", "simplecache::zip://in/*.pq::D/z.zip"),
        ("simplecache::s3://bucket/in", "simplecache::s3://bucket/in/*.pq"),
        ("s3://bucket", "s3://bucket/*.pq"),
        ("in/", "in/*.pq"),
        ("in::2020", "in::2020/*.pq"),
        ("/", "/*.pq"),
    ],
)
def test_a_pattern_is_put_into_the_link_with_the_folder(path: str, expected: str) -> None:
    assert with_pattern(path, "*.pq") == expected


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["train/0.parquet", "val/0.parquet"], "train, val"),
        (["train/cat/0.parquet", "val/dog/0.parquet"], "train/cat, val/dog"),
        (["a/0.parquet", "b/c/d/0.parquet"], "a, b/c/d"),
    ],
)
def test_the_address_that_a_message_gives_can_be_used(
    names: list[str], folders: str, tmp_path: Path
) -> None:
    root = tmp_path / "in[1]"
    files_in(root, *names, ".hidden/0.parquet")
    archive = shutil.make_archive(str(tmp_path / "z"), "zip", root, ".")
    for path in (root, f"{root}/", f"zip://::{archive}", f"simplecache::file://{root}"):
        with pytest.raises(InputError) as error:
            listed("parquet", path=path)
        found, suggested = re.findall("in its folders (.*): write `(.*)`", str(error.value))[0]
        assert found == folders
        if "simplecache" not in str(path):  # whose patterns take "in[1]" as one, too
            assert len(listed("parquet", path=suggested)) == 4


def test_folders_are_searched_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files_in(tmp_path, "a/b/c/0.parquet")
    (tmp_path / "a" / "circle").symlink_to(tmp_path)
    monkeypatch.setattr(path_names, "_MAX_FOLDERS", 3)
    with pytest.raises(InputError, match="directly in .*: correct `path` of the source"):
        listed("parquet", path=tmp_path)


def test_labels_of_partitions_are_joined_like_others(tmp_path: Path) -> None:
    files_in(tmp_path, *[f"class={name}/0.parquet" for name in ("CAT", "dog", "junk")])
    source = {"label_column": "class", "labels": "truth", "exclude_labels": ["junk"]}
    store = write_store(plan_of(tmp_path, source=source), tmp_path / "store")
    labels = store.index.sort_values("id")["label"]
    assert labels.tolist() == [0, 0, 1, 1]
