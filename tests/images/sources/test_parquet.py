"""Images in a column of Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable
from tests.images.sources.examples import gray_levels, listed, opened, parquet_file, png

# How the `datasets` library of Hugging Face stores an image: one of the two fields is null.
HUGGING_FACE_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("scheme", ["", "file://", "memory:/"])
def test_parquet_is_read_by_row_wherever_it_is(tmp_path: Path, scheme: str) -> None:
    numbers = list(range(11))
    ids = [f"i{number}" for number in numbers]
    path = parquet_file(f"{scheme}{tmp_path}/a.parquet", 11, id=ids, label=numbers)

    reader = opened("parquet", path=path)
    listing = reader.listing()
    assert listing["id"].tolist() == ids
    assert listing["label"].tolist() == numbers

    # Image n has the gray level n.
    grays = gray_levels(reader.read(listing))
    assert grays == numbers
    # Rows of all three row groups of four, and the last row of the file.
    some_numbers = [0, 3, 4, 10]
    some_rows = listing.iloc[some_numbers]
    some_grays = gray_levels(reader.read(some_rows))
    assert some_grays == some_numbers


@pytest.mark.parametrize("pattern", ["*.parquet", ""], ids=["glob", "folder"])
def test_a_glob_and_a_folder_of_parquet_files_are_one_source(tmp_path: Path, pattern: str) -> None:
    # Written in the other order, so that sorting by name shows.
    parquet_file(tmp_path / "b.parquet", 3, first=10)
    parquet_file(tmp_path / "a.parquet", 2)

    path = tmp_path / pattern
    reader = opened("parquet", path=path)
    listing = reader.listing()
    ids = listing["id"].tolist()
    assert ids == ["a:0", "a:1", "b:0", "b:1", "b:2"]

    across_files = listing.iloc[1:4]
    found = gray_levels(reader.read(across_files))
    assert found == [1, 10, 11]


def test_only_the_row_groups_that_are_wanted_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet_file(tmp_path / "a.parquet", 40, row_group_size=4)
    reader = opened("parquet", path=path)
    listing = reader.listing()
    read_groups: list[int] = []
    original = pq.ParquetFile.iter_batches

    def recording(self: pq.ParquetFile, *args: Any, **options: Any) -> Any:
        read_groups.extend(options["row_groups"])
        return original(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", recording)
    wanted = [5, 6, 39]
    wanted_rows = listing.iloc[wanted]
    found = gray_levels(reader.read(wanted_rows))
    assert found == wanted
    # Rows 5 and 6 are in the second group of four, row 39 is in the last one.
    assert read_groups == [1, 9]


def test_images_as_hugging_face_writes_them_and_names_as_labels_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    embedded = {"bytes": png(5), "path": None}
    only_a_path = {"bytes": None, "path": "x"}
    images = pa.array([embedded, only_a_path], HUGGING_FACE_IMAGE)
    table = pa.table({"image": images, "label": ["cat", "dog"]})
    pq.write_table(table, path)

    # Numbers are labels, texts are label names.
    reader = opened("parquet", path=path)
    listing = reader.listing()
    assert listing["label_name"].tolist() == ["cat", "dog"]

    # A path could lead anywhere, so it is never opened.
    found = gray_levels(reader.read(listing))
    assert found == [5, Unusable(Reason.ONLY_A_PATH)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"id": ["a"], "pixels": [b""]},
            r"a\.parquet has no column 'image'; found: id, pixels\.",
        ),
        ({"image": ["a"]}, "the column 'image' is string; it must hold the bytes"),
    ],
)
def test_parquet_without_images_is_refused_with_the_columns_found(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table(columns)
    pq.write_table(table, path)
    with pytest.raises(InputError, match=message):
        listed("parquet", path=path)


@pytest.mark.parametrize("name", ["a.parquet", "*.parquet"])
def test_a_missing_parquet_file_is_refused(tmp_path: Path, name: str) -> None:
    missing = tmp_path / name
    with pytest.raises(InputError, match=r"there is no Parquet file at .*: correct `path`"):
        listed("parquet", path=missing)


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "a.parquet"
    # It has the signature at its start, and none at its end.
    damaged.write_bytes(b"PAR1 not")
    with pytest.raises(InputError, match="is not a Parquet file"):
        listed("parquet", path=damaged)
