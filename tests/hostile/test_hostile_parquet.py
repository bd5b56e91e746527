"""Parquet sources that are broken or hostile: refused in one sentence, or set aside by image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.listing import list_images
from pu_kd_pipeline.images.store import ImageStore
from tests.hostile.valid_files import noise, noise_png, plan_of


def write_parquet(file: Path, n: int = 3, **columns: Any) -> Path:
    """Write a table with `n` images and further columns; `image=None` leaves the images out."""
    contents = [noise_png(seed) for seed in range(n)]
    # The type is given, since a column without rows has none.
    images = pa.array(contents, pa.binary())
    table = {"image": images, **columns}
    if table["image"] is None:
        del table["image"]
    pq.write_table(pa.table(table), file)
    return file


def listed(file: Path, **source: Any) -> pd.DataFrame:
    """Return the table of images that ingestion finds in a Parquet file."""
    plan = plan_of(source_of(file, **source))
    table, _ = list_images(plan)
    return table


def source_of(file: Path, **more: Any) -> dict[str, Any]:
    return {"type": "parquet", "path": str(file), **more}


def ingested(
    file: Path, out: Path, source: dict[str, Any] | None = None, **store: Any
) -> ImageStore:
    """Return a store of a Parquet file."""
    plan = plan_of(source or source_of(file), **store)
    return write_store(plan, out)


def error_of(file: Path, **source: Any) -> str:
    """Return the message with which ingestion refuses a file; it must leave nothing behind."""
    out = file.with_name("store")
    given = source_of(file, **source)
    with pytest.raises(InputError) as error:
        ingested(file, out, given)
    assert not out.exists()
    return str(error.value)


# --- columns

# pa.array would refuse to make this column: 0xff is not a character in UTF-8.
NOT_UTF8 = pa.StringArray.from_buffers(
    3, pa.py_buffer(np.arange(4, dtype=np.int32).tobytes()), pa.py_buffer(b"a\xffb")
)
TOO_LARGE = pa.array([2**64 - 1, 0, 1], pa.uint64())
TIMES = pa.array([0, 1, 2], pa.timestamp("s"))
ONLY_PATHS = pa.array([{"path": "a"}] * 3)

IMAGE_TYPE = "the column 'image' is"
LABEL_VALUES = "the column 'label' holds more than whole numbers of 64 bits"
LABEL_TYPE = "the column 'label' is"
ID_TYPE = "the column 'id' is"
TEXT_OR_NUMBERS = "it must hold text or whole numbers"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": None, "pixels": [1, 2, 3]}, "has no column 'image'; found: pixels"),
        ({"image": ["a", "b", "c"]}, f"{IMAGE_TYPE} string; it must hold the bytes of image files"),
        ({"image": [[1], [2], [3]]}, f"{IMAGE_TYPE} list<"),
        ({"image": pa.nulls(3)}, f"{IMAGE_TYPE} null"),
        ({"image": ONLY_PATHS}, "the column 'image' holds only the paths of image files"),
        ({"label": [0.5, 1.0, 2.0]}, LABEL_VALUES),
        ({"label": TOO_LARGE}, LABEL_VALUES),
        ({"label": [float("inf"), 0.0, 1.0]}, LABEL_VALUES),
        ({"label": [[0], [1], [2]]}, f"{LABEL_TYPE} list<"),
        ({"label": [b"\0", b"\1", b"\2"]}, f"{LABEL_TYPE} binary; {TEXT_OR_NUMBERS}"),
        ({"label": TIMES}, f"{LABEL_TYPE} timestamp"),
        ({"label_name": [{"a": 1}] * 3}, "the column 'label_name' is struct<"),
        ({"label": NOT_UTF8}, "the column 'label' holds text that is not UTF-8"),
        ({"id": NOT_UTF8}, "the column 'id' holds text that is not UTF-8"),
        ({"id": [1.5, 2.5, 3.5]}, f"{ID_TYPE} double; {TEXT_OR_NUMBERS}"),
        ({"id": [b"a", b"b", b"c"]}, f"{ID_TYPE} binary"),
        ({"id": ["a", "b", "a"]}, "1 ids occur more than once, such as 'a'"),
    ],
)
def test_columns_of_the_wrong_type_are_named(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    file = write_parquet(tmp_path / "a.parquet", **columns)
    found = error_of(file)
    assert message in found


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    column = pa.array([noise_png(0)], pa.binary())
    # Parquet allows it, and pandas would return a table for the name instead of a column.
    table = pa.Table.from_arrays([column, column], names=["image", "image"])
    pq.write_table(table, file)

    assert "has more than one column 'image'" in error_of(file)


def test_nulls_are_images_without_bytes_ids_or_labels(tmp_path: Path) -> None:
    images = pa.array([noise_png(0), None, noise_png(2)], pa.binary())
    ids = ["x", None, None]
    labels = [None, 1, None]
    file = write_parquet(tmp_path / "a.parquet", image=images, id=ids, label=labels)
    source = source_of(file, labels="truth")
    store = ingested(file, tmp_path / "store", source)
    index = store.index[["id", "label"]]
    # nan is not equal to itself, so missing values become a text.
    index = index.astype("string").fillna("-")

    # An image without an id is named by file and row.
    rows = index.values.tolist()
    assert rows == [["x", "-"], ["a:2", "-"]]
    quarantine = store.quarantine.values.tolist()
    assert quarantine == [["a:1", "a", "empty"]]


@pytest.mark.parametrize("with_path", [True, False])
def test_structs_and_plain_bytes_are_the_same_images(tmp_path: Path, with_path: bool) -> None:
    plain: list[Any] = []
    structs: list[Any] = []
    for seed in range(3):
        content = noise_png(seed)
        struct: dict[str, Any] = {"bytes": content}
        if with_path:
            # The format of Hugging Face data sets. The path must never be opened.
            struct["path"] = "../../etc/passwd"
        plain.append(content)
        structs.append(struct)
    # A fourth image without bytes, in both forms.
    plain.append(None)
    structs.append(None)

    plain_file = write_parquet(tmp_path / "plain.parquet", image=plain)
    struct_file = write_parquet(tmp_path / "struct.parquet", image=pa.array(structs))
    plain_store = ingested(plain_file, tmp_path / "plain")
    struct_store = ingested(struct_file, tmp_path / "struct")
    rows = np.arange(3)

    np.testing.assert_array_equal(plain_store.read(rows), struct_store.read(rows))
    assert plain_store.quarantine_counts == {"empty": 1}
    assert struct_store.quarantine_counts == {"empty": 1}


# --- labels


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
def test_labels_of_any_type_are_mapped_to_classes(
    tmp_path: Path, labels: Any, expected: list[int]
) -> None:
    file = write_parquet(tmp_path / "a.parquet", label=labels)
    images = listed(file, labels="classes")
    assert images["label"].tolist() == expected


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([0, 1, 3], "3 (1)"),
        ([0, -1, 1], "-1 (1)"),
        ([0, None, 1], "no label (1)"),
        ([0.0, float("nan"), 1.0], "no label (1)"),
        (["cat", "horse", "dog"], "horse (1)"),
        (["0", "1", "7"], "0 (1), 1 (1), 7 (1)"),
        ([2**62, 0, 1], f"{2**62} (1)"),
    ],
)
def test_labels_outside_the_classes_are_refused_with_their_counts(
    tmp_path: Path, labels: Any, found: str
) -> None:
    file = write_parquet(tmp_path / "a.parquet", label=labels)
    message = error_of(file, labels="classes")
    assert "the teacher has 3 classes (cat, dog, owl)" in message
    assert found in message


# --- whole files

NOT_READABLE = "is not a Parquet file that can be read"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-20], f"{NOT_READABLE} (ArrowInvalid: "),
        (lambda data: data[: len(data) // 2], f"{NOT_READABLE} (ArrowInvalid: "),
        (lambda data: b"", f"{NOT_READABLE} (ArrowInvalid: Parquet file size is 0 bytes)"),
        (lambda data: b"id,image\n1,2\n", NOT_READABLE),
        # The footer claims to be 2 GiB long.
        (lambda data: b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1", NOT_READABLE),
        (lambda data: json.dumps({"image": 1}).encode(), NOT_READABLE),
    ],
    ids=["cut", "half", "empty", "csv", "long footer", "json"],
)
def test_a_file_that_is_not_a_whole_parquet_file_is_refused(
    tmp_path: Path, damage: Any, message: str
) -> None:
    file = write_parquet(tmp_path / "a.parquet")
    whole = file.read_bytes()
    damaged = damage(whole)
    file.write_bytes(damaged)
    found = error_of(file)
    assert message in found


def test_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", n=0)
    assert "holds no image: it has no rows" in error_of(file)


def test_folders_named_like_parquet_files_are_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    subfolder = folder / "b.parquet"
    subfolder.mkdir(parents=True)
    write_parquet(folder / "a.parquet")

    assert len(listed(folder)) == 3


# --- ids

ODD_IDS = ["..", "../../etc/passwd", "/etc/passwd", "C:\\Windows\\x", "a/../../b", "./x", "~"]
ODD_IDS += ["-rf", "a\nb", "a\rb", "tab\tb", "nul\0b", " ", "x" * 5_000, "con.png", "*?["]
# One name in two Unicode forms, text that turns around, spaces without width, line separators.
ODD_IDS += ["caf\u00e9", "cafe\u0301", "\u202egnp.exe", "\u200b", "\ufeff", "\U0001f600", "\u2028"]
ODD_IDS += ["<script>alert(1)</script>", "\"'`;--", "{{7*7}}", "$(id)", "%s%n", "nan", "None"]


@pytest.mark.parametrize(("kind", "pixel_suffix"), [("packed", ".npy"), ("encoded", ".arrow")])
def test_ids_are_text_and_never_paths(tmp_path: Path, kind: str, pixel_suffix: str) -> None:
    file = write_parquet(tmp_path / "a.parquet", n=len(ODD_IDS), id=ODD_IDS)
    out = tmp_path / "out"
    # Small shards, so that several hold ids.
    store = ingested(file, out, kind=kind, shard_size=7)

    ids_in_shards = []
    for shard in store.shards:
        ids_in_shards += store.shard_ids(shard).to_pylist()
    assert store.index["id"].tolist() == ODD_IDS
    assert ids_in_shards == ODD_IDS

    # The order of the images is that of their ids.
    [fifth_image] = store.read(np.array([4]))
    expected = noise(8, 8, 3, seed=4)
    np.testing.assert_array_equal(fifth_image.transpose(1, 2, 0), expected)

    # Nothing was written outside the store, and no file is named after an id.
    assert set(tmp_path.iterdir()) == {file, out}
    suffixes = {path.suffix for path in out.rglob("*")}
    assert suffixes == {pixel_suffix, ".parquet", ".json"}
