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


@pytest.mark.parametrize("scheme", ["", "file://", "memory:/"])
def test_parquet_is_read_by_row_wherever_it_is(tmp_path: Path, scheme: str) -> None:
    ids = [f"i{row}" for row in range(11)]
    path = parquet_file(f"{scheme}{tmp_path}/a.parquet", 11, id=ids, label=list(range(11)))
    reader = opened("parquet", path=path)
    listing = reader.listing()
    assert listing["id"].tolist() == ids
    assert listing["label"].tolist() == list(range(11))
    assert gray_levels(reader.read(listing)) == list(range(11))
    assert gray_levels(reader.read(listing.iloc[[0, 3, 4, 10]])) == [0, 3, 4, 10]


def test_a_glob_and_a_folder_of_parquet_files_are_one_source(tmp_path: Path) -> None:
    parquet_file(tmp_path / "b.parquet", 3, first=10)
    parquet_file(tmp_path / "a.parquet", 2)
    for path in (tmp_path / "*.parquet", tmp_path):
        reader = opened("parquet", path=path)
        listing = reader.listing()
        assert listing["id"].tolist() == ["a:0", "a:1", "b:0", "b:1", "b:2"]
        assert gray_levels(reader.read(listing.iloc[1:4])) == [1, 10, 11]


def test_only_the_row_groups_that_are_wanted_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet_file(tmp_path / "a.parquet", 40, row_group_size=4)
    reader = opened("parquet", path=path)
    listing = reader.listing()
    read_groups: list[int] = []
    original = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *args: Any, row_groups: list[int], **kwargs: Any) -> Any:
        read_groups.extend(row_groups)
        return original(self, *args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert gray_levels(reader.read(listing.iloc[[5, 6, 39]])) == [5, 6, 39]
    assert read_groups == [1, 9]


def test_images_as_hugging_face_writes_them_and_names_as_labels_are_read(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = {"bytes": png(5), "path": None}
    only_a_path = {"bytes": None, "path": "x"}
    images = pa.array([image, only_a_path], kind)
    pq.write_table(pa.table({"image": images, "label": ["cat", "dog"]}), tmp_path / "a.parquet")
    reader = opened("parquet", path=tmp_path / "a.parquet")
    listing = reader.listing()
    assert listing["label_name"].tolist() == ["cat", "dog"]
    # a path could lead anywhere, so it is never opened
    assert gray_levels(reader.read(listing)) == [5, Unusable(Reason.EMPTY)]


def test_parquet_without_images_is_refused_with_the_columns_found(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a"], "pixels": [b""]}), path)
    with pytest.raises(InputError, match=r"a\.parquet has no column 'image'; found: id, pixels\."):
        listed("parquet", path=path)
    pq.write_table(pa.table({"image": ["a"]}), path)
    with pytest.raises(InputError, match="the column 'image' is string; it must hold the bytes"):
        listed("parquet", path=path)


@pytest.mark.parametrize("path", ["a.parquet", "*.parquet"])
def test_a_missing_parquet_file_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match=r"there is no Parquet file at .*: correct `path`"):
        listed("parquet", path=tmp_path / path)


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(InputError, match="is not a Parquet file"):
        listed("parquet", path=tmp_path / "a.parquet")
