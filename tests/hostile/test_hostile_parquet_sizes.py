"""Small Parquet files that unpack to gigabytes: refused or set aside, without the memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable
from pu_kd_pipeline.images.sources import parquet, parquet_columns, parquet_images
from pu_kd_pipeline.images.sources.base import Source
from pu_kd_pipeline.images.sources.registry import open_source
from pu_kd_pipeline.params.data_ingestion import ImageSource
from tests.hostile.valid_files import noise_png

MEBIBYTE = 2**20
N_ROWS = 4_000

# Reads each file in turn, and prints per file the largest memory so far and what was found.
READ_ALL = """
import json, sys
from collections import Counter
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.sources.registry import open_source
from pu_kd_pipeline.params.data_ingestion import ImageSource
from tests.hostile.memory import peak_bytes

for path in json.loads(sys.argv[1]):
    found = Counter()
    try:
        source = open_source(ImageSource(type="parquet", path=path), 0)
        for image in source.read(source.listing()):
            found[str(len(image) if isinstance(image, bytes) else image.reason)] += 1
    except InputError as error:
        found[str(error)] += 1
    print(json.dumps([peak_bytes(), found]))
"""


def source_of(file: Path, **more: Any) -> Source:
    block = ImageSource.model_validate({"type": "parquet", "path": str(file), **more})
    return open_source(block, seed=0)


def repeated(content: Any, n: int) -> pa.DictionaryArray:
    """Return a column that holds a value once, for many rows."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array([content]))


def written(file: Path, *, keeps_type: bool = False, **columns: Any) -> Path:
    """Write a file of at most a mebibyte; without its types, dictionaries are read as plain."""
    table = pa.table(columns)
    if len(table) >= N_ROWS:
        # So many rows need some bytes.
        padding = np.random.default_rng(0).integers(0, 2**62, (3, len(table)))
        for number, values in enumerate(padding):
            table = table.append_column(f"padding {number}", pa.array(values))
    pq.write_table(
        table,
        file,
        compression="zstd",
        dictionary_pagesize_limit=2**30,
        store_schema=keeps_type,
    )
    assert file.stat().st_size < MEBIBYTE
    return file


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, dict[str, int]]]:
    """Case -> memory in MiB that its file and those before it took, and what was found in it."""
    folder = tmp_path_factory.mktemp("sizes")
    images = repeated(noise_png(0), N_ROWS)
    large_image = repeated(noise_png(0) + bytes(8 * MEBIBYTE), 60)
    long_text = repeated("x" * MEBIBYTE, N_ROWS)
    files = [written(folder / "small.parquet", image=[noise_png(0)])]
    for role in ("id", "label", "label_name"):
        files.append(written(folder / f"{role}.parquet", image=images, **{role: long_text}))
    files.append(written(folder / "shared.parquet", image=large_image))
    files.append(written(folder / "typed.parquet", keeps_type=True, image=large_image))
    names = [f"column {number}" for number in range(2_000)]
    wide = pa.table({name: [1] for name in names})
    files.append(written(folder / "wide.parquet", **{name: wide[name] for name in names}))

    paths = json.dumps([str(file) for file in files])
    result = subprocess.run(
        [sys.executable, "-c", READ_ALL, paths], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    at_start, _ = reports[0]
    return {
        file.stem: ((peak - at_start) // MEBIBYTE, found)
        for file, (peak, found) in zip(files, reports, strict=True)
    }


@pytest.mark.parametrize("role", ["id", "label", "label_name"])
def test_a_long_text_that_many_rows_share_is_refused(role: str, outcomes: dict[str, Any]) -> None:
    n_mebibytes, found = outcomes[role]
    (message,) = found
    assert f"the column {role!r} holds a text of 1,048,576 characters" in message
    assert n_mebibytes < 100


@pytest.mark.parametrize("case", ["shared", "typed"])
def test_a_large_image_that_many_rows_share_is_read_a_few_times_at_once(
    case: str, outcomes: dict[str, Any]
) -> None:
    n_mebibytes, found = outcomes[case]
    assert found == {str(len(noise_png(0)) + 8 * MEBIBYTE): 60}
    assert n_mebibytes < 250  # and not 480


def test_very_many_columns_are_listed_in_short(outcomes: dict[str, Any]) -> None:
    n_mebibytes, found = outcomes["wide"]
    (message,) = found
    assert "has no column 'image'; found: column 0, " in message
    assert len(message) < 1_000
    assert n_mebibytes < 250


def test_texts_that_unpack_to_more_than_the_limit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_columns, "_MAX_TEXT_BYTES", 2**20)
    texts = repeated("x" * 5_000, N_ROWS)
    file = written(tmp_path / "a.parquet", image=[noise_png(0)] * N_ROWS, label_name=texts)
    message = "the columns label_name unpack to more than 1 MiB of text"
    with pytest.raises(InputError, match=message):
        source_of(file).listing()
    monkeypatch.setattr(parquet_columns, "_MAX_TEXT_BYTES", 2**25)
    assert len(source_of(file).listing()) == N_ROWS


def test_row_groups_that_shrink_as_no_images_do_are_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_images, "MAX_FILE_BYTES", 2**20)
    contents = [bytes([number]) * 2**19 for number in range(8)]
    source = source_of(written(tmp_path / "a.parquet", image=contents))
    assert list(source.read(source.listing())) == [Unusable(Reason.TOO_LARGE)] * 8


def test_only_the_row_group_that_is_too_large_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_images, "MAX_FILE_BYTES", MEBIBYTE)
    file = tmp_path / "a.parquet"
    table = pa.table({"image": [noise_png(0), noise_png(1), bytes(2**22), noise_png(2)]})
    pq.write_table(table, file, row_group_size=1)
    source = source_of(file)
    listing = source.listing()
    found = list(source.read(listing.iloc[[0, 2, 3]]))
    assert found == [noise_png(0), Unusable(Reason.TOO_LARGE), noise_png(2)]


@pytest.mark.parametrize("has_dictionary", [True, False])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_batches_hold_as_many_rows_as_fit(
    has_dictionary: bool, compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_images, "_BATCH_BYTES", 2**16)
    rng = np.random.default_rng(0)
    contents = [rng.bytes(10_000) for _ in range(20)]
    file = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": contents}), file, compression=compression, use_dictionary=has_dictionary
    )
    sizes = []
    original = pq.ParquetFile.iter_batches

    def recording(self: pq.ParquetFile, batch_size: int, **options: Any) -> Any:
        if options["columns"] == ["image"]:
            sizes.append(batch_size)
        return original(self, batch_size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", recording)
    source = source_of(file)
    assert list(source.read(source.listing())) == contents
    # All 200 kB may be one image where they are in a dictionary.
    assert sizes == [1 if has_dictionary else 6]


def test_more_rows_than_the_bytes_of_a_file_can_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_FEW_ROWS", 100)
    file = written(tmp_path / "a.parquet", image=pa.nulls(400, pa.binary()))
    with pytest.raises(InputError, match=r"it declares 400 rows in \d+ bytes"):
        source_of(file).listing()
