"""Parquet files with a checksum: no damaged byte is used, and other programs can read them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.storage import parquet_files
from pu_kd_pipeline.storage.parquet_files import check_parquet, read_parquet, write_parquet
from pu_kd_pipeline.storage.table import read_table, write_table

CONTENT = pa.table({"id": ["a", "b", "a"], "score": [0.5, None, 2.0]})
CONTENT = CONTENT.replace_schema_metadata({"teacher": "3fa9"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A table that was written as `a`."""
    path = tmp_path / "a.parquet"
    write_parquet(CONTENT, path, "a")
    return path


def test_a_table_comes_back_with_its_metadata_and_without_the_checksum(file):
    assert read_parquet(file, "a").equals(CONTENT, check_metadata=True)


def test_every_byte_is_covered(file):
    valid = file.read_bytes()
    for position in range(len(valid)):
        damaged = bytearray(valid)
        damaged[position] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checksum|end is not"):
            read_parquet(file, "a")


def test_a_file_that_is_cut_short_or_extended_is_refused(file):
    valid = file.read_bytes()
    for damaged in (valid[:-1], valid[: len(valid) // 2], b"", valid + b"\0", valid + valid):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checksum|end is not"):
            read_parquet(file, "a")


def test_a_file_in_the_place_of_another_is_refused(file):
    # As after two shards were exchanged: each is intact in itself.
    with pytest.raises(ValueError, match="checksum is wrong"):
        read_parquet(file, "b")


def test_a_file_of_another_program_has_no_checksum(file):
    pq.write_table(CONTENT, file)
    with pytest.raises(ValueError, match="has no checksum"):
        read_parquet(file, "a")


def test_a_file_is_verified_once_and_again_after_it_changed(file, monkeypatch):
    checked = []
    original = parquet_files._is_sealed

    def is_sealed(path: Path, identity: str) -> bool:
        checked.append(path)
        return original(path, identity)

    monkeypatch.setattr(parquet_files, "_is_sealed", is_sealed)
    # Old enough: a file that was just written could change without another time.
    monkeypatch.setattr(parquet_files, "_CLOCK_STEP_NS", -1)
    for _ in range(3):
        read_parquet(file, "a", columns=["id"])
    assert len(checked) == 1

    damaged = bytearray(file.read_bytes())
    damaged[40] ^= 1
    file.write_bytes(damaged)
    os.utime(file, ns=(0, 0))
    with pytest.raises(ValueError, match="checksum is wrong"):
        read_parquet(file, "a")


def test_a_file_that_changes_within_one_step_of_the_clock_is_verified_again(file):
    check_parquet(file, "a")
    about = file.stat()
    damaged = bytearray(file.read_bytes())
    damaged[40] ^= 1
    file.write_bytes(damaged)
    # Neither size nor modification time tells the two apart.
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(ValueError, match="checksum is wrong"):
        check_parquet(file, "a")


def test_a_folder_name_adds_no_column(tmp_path):
    # To pyarrow, such a folder is a part of a larger table.
    path = tmp_path / "label=3" / "a.parquet"
    write_parquet(CONTENT, path)
    assert read_parquet(path).column_names == ["id", "score"]


# --- tables that a user may edit


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    table = pd.DataFrame({"id": ["a", "b"], "origin": ["labeled", "pool"]})
    table.attrs = {"rule": "nnpu"}
    path = tmp_path / "manifest.parquet"
    write_table(table, path)
    return path


def test_a_table_that_pandas_wrote_is_read(manifest):
    edited = pd.read_parquet(manifest).iloc[:1]
    edited.to_parquet(manifest)
    assert read_table(manifest)["id"].tolist() == ["a"]


def test_a_table_that_was_edited_with_its_metadata_is_read(manifest):
    edited = pq.read_table(manifest).slice(0, 1)
    pq.write_table(edited, manifest)
    table = read_table(manifest)
    assert table["id"].tolist() == ["a"]
    assert table.attrs == {"rule": "nnpu"}


def test_a_table_of_an_earlier_version_is_refused_with_what_to_do(manifest):
    table = pq.read_table(manifest)
    metadata = dict(table.schema.metadata)
    del metadata[parquet_files.CHECKSUM_KEY]
    pq.write_table(table.replace_schema_metadata(metadata), manifest)
    message = r"of an earlier version\): delete it, and run the stage that wrote it again"
    with pytest.raises(InputError, match=message):
        read_table(manifest)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), n_bytes=st.integers(1, 400))
def test_a_damaged_table_is_refused(tmp_path_factory, seed, n_bytes):
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    write_table(pd.DataFrame({"id": [f"image {n}" for n in range(300)]}), path)
    damaged = bytearray(path.read_bytes())
    places = random.Random(seed)
    for _ in range(n_bytes):
        damaged[places.randrange(len(damaged))] ^= places.randrange(1, 256)
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="delete it, and run the stage that wrote it again"):
        read_table(path)
