"""Class names in the metadata of Parquet files, and labels of different types in one source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.listing import list_images
from tests.hostile.valid_files import noise_png, plan_of
from tests.images.sources.examples import listed


def class_label(*names: str) -> dict[str, Any]:
    return {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}


def hugging_face_file(file: Path, about: Any = None, first: int = 0, **columns: Any) -> Path:
    """Write a file as Hugging Face's data sets do; `about` is its metadata."""
    n = len(next(iter(columns.values())))
    images = [noise_png(first + number) for number in range(n)]
    table = pa.table({"image": pa.array(images, pa.binary()), **columns})
    if about is not None:
        content = about if isinstance(about, bytes) else json.dumps(about).encode()
        table = table.replace_schema_metadata({b"huggingface": content})
    pq.write_table(table, file)
    return file


def classes_of(path: Path, **source: Any) -> list[Any]:
    """Return the classes of a teacher with the classes cat, dog and owl."""
    plan = plan_of({"type": "parquet", "path": str(path), "labels": "classes", **source})
    table, _ = list_images(plan)
    return table["label"].tolist()


def test_names_come_from_the_metadata(tmp_path: Path) -> None:
    file = hugging_face_file(tmp_path / "a.parquet", class_label("dog", "cat"), label=[0, 1, 0])
    assert classes_of(file) == [1, 0, 1]
    # Without it, numbers are positions.
    plain = hugging_face_file(tmp_path / "b.parquet", label=[0, 1, 0])
    assert classes_of(plain) == [0, 1, 0]


def test_every_file_has_the_names_of_its_own_metadata(tmp_path: Path) -> None:
    hugging_face_file(tmp_path / "a.parquet", class_label("dog", "cat"), label=[0, 1])
    hugging_face_file(tmp_path / "b.parquet", class_label("cat", "dog"), first=2, label=[0, 1])
    assert classes_of(tmp_path) == [1, 0, 0, 1]

    # A third file without names may count like either of them.
    hugging_face_file(tmp_path / "c.parquet", first=4, label=[0, 1])
    with pytest.raises(InputError, match="elsewhere in this source the number 0 is 'dog'"):
        classes_of(tmp_path)


def test_files_of_one_source_may_have_labels_of_different_types(tmp_path: Path) -> None:
    columns = [
        pa.array([0, 2], pa.int32()),
        pa.array([0, 2], pa.int64()),
        pa.array([0.0, 2.0]),
        pa.array(["cat", "owl"]),
        pa.array(["cat", "owl"]).dictionary_encode(),
    ]
    for number, column in enumerate(columns):
        hugging_face_file(tmp_path / f"{number}.parquet", first=2 * number, label=column)
    assert classes_of(tmp_path) == [0, 2] * 5


def test_minus_one_is_no_label_where_the_metadata_names_the_classes(tmp_path: Path) -> None:
    file = hugging_face_file(tmp_path / "a.parquet", class_label("cat", "dog"), label=[1, -1, None])
    listing = listed("parquet", path=file)
    assert listing["label_name"].fillna("-").tolist() == ["dog", "-", "-"]
    assert listing["label"].isna().tolist() == [False, True, True]


def test_true_and_false_are_names(tmp_path: Path) -> None:
    # "is a cat" is class 0 here, where true would be 1.
    file = hugging_face_file(tmp_path / "a.parquet", label=[True, False])
    with pytest.raises(InputError, match=r"2 images are none of them: true \(1\), false \(1\)"):
        classes_of(file)
    assert classes_of(file, label_map={"true": 0, "false": 1}) == [0, 1]


@pytest.mark.parametrize(
    ("about", "columns", "message"),
    [
        (class_label("cat"), {"label": [0, 3]}, "the label 3 has no name in the file's metadata"),
        (b"{", {"label": [0, 1]}, "where the names of its classes may be, cannot be read"),
        (
            class_label("dog", "cat"),
            {"label": [0, 1], "label_name": ["dog", "dog"]},
            "row 1: the label is 'cat', and the column 'label_name' has 'dog'",
        ),
        (
            None,
            {"label": ["cat", "dog"], "label_name": ["cat", "owl"]},
            "row 1: the label is 'dog', and the column 'label_name' has 'owl'",
        ),
    ],
)
def test_names_that_disagree_are_refused(
    tmp_path: Path, about: Any, columns: dict[str, Any], message: str
) -> None:
    file = hugging_face_file(tmp_path / "a.parquet", about, **columns)
    with pytest.raises(InputError) as error:
        classes_of(file)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "about",
    [
        [],
        {"info": None},
        {"info": {"features": [{"name": "label"}]}},
        {"info": {"features": {"label": {"dtype": "int64", "_type": "Value"}}}},
        {"info": {"features": {"label": {"num_classes": 2, "_type": "ClassLabel"}}}},
    ],
)
def test_metadata_without_names_gives_none(tmp_path: Path, about: Any) -> None:
    file = hugging_face_file(tmp_path / "a.parquet", about, label=[0, 1])
    assert classes_of(file) == [0, 1]


def test_companions_of_macos_are_left_out_and_counted(tmp_path: Path) -> None:
    hugging_face_file(tmp_path / "a.parquet", label=[0, 1])
    companion = tmp_path / "._a.parquet"
    companion.write_bytes(b"\0\5\x16\7" + bytes(80))
    for path in (tmp_path, tmp_path / "*.parquet"):
        listing = listed("parquet", path=path)
        assert len(listing) == 2
        assert listing.attrs["passed_over"] == {"hidden file": 1}
