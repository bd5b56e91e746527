"""Class names in the metadata of Parquet files, and labels of different types in one source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.listing import list_images
from tests.hostile.valid_files import noise_png, plan_of
from tests.images.sources.examples import listed


def class_label(*names: str) -> dict[str, Any]:
    """Return metadata that gives names to the numbers of the column `label`."""
    feature = {"names": list(names), "_type": "ClassLabel"}
    return metadata_of(feature)


def metadata_of(feature: Any) -> dict[str, Any]:
    """Return metadata with a feature `label`, as Hugging Face's data sets write it."""
    features = {"label": feature}
    info = {"features": features}
    return {"info": info}


def hugging_face_file(file: Path, about: Any = None, first: int = 0, **columns: Any) -> Path:
    """Write a file as Hugging Face's data sets do; `about` is its metadata."""
    n_images = len(columns["label"])
    images = []
    for number in range(first, first + n_images):
        images.append(noise_png(number))
    image_column = pa.array(images, pa.binary())
    table = pa.table({"image": image_column, **columns})
    content = about
    # Damaged metadata is given as bytes.
    if not isinstance(about, bytes):
        content = json.dumps(about).encode()
    if about is not None:
        table = table.replace_schema_metadata({b"huggingface": content})
    pq.write_table(table, file)
    return file


def classes_of(path: Path, **source: Any) -> list[Any]:
    """Return the classes of a teacher with the classes cat, dog and owl."""
    parameters = {
        "type": "parquet",
        "path": str(path),
        "labels": "classes",
        **source,
    }
    plan = plan_of(parameters)
    table, _ = list_images(plan)
    return table["label"].tolist()


def test_names_come_from_the_metadata(tmp_path: Path) -> None:
    names = class_label("dog", "cat")
    file = hugging_face_file(tmp_path / "a.parquet", names, label=[0, 1, 0])
    assert classes_of(file) == [1, 0, 1]
    # Without it, numbers are positions.
    plain = hugging_face_file(tmp_path / "b.parquet", label=[0, 1, 0])
    assert classes_of(plain) == [0, 1, 0]


def test_every_file_has_the_names_of_its_own_metadata(tmp_path: Path) -> None:
    names = class_label("dog", "cat")
    other_names = class_label("cat", "dog")
    hugging_face_file(tmp_path / "a.parquet", names, label=[0, 1])
    hugging_face_file(tmp_path / "b.parquet", other_names, first=2, label=[0, 1])
    assert classes_of(tmp_path) == [1, 0, 0, 1]

    # A third file without names may count like either of them.
    hugging_face_file(tmp_path / "c.parquet", first=4, label=[0, 1])
    with pytest.raises(InputError, match="elsewhere in this source the number 0 is 'dog'"):
        classes_of(tmp_path)


def test_files_of_one_source_may_have_labels_of_different_types(tmp_path: Path) -> None:
    names = pa.array(["cat", "owl"])
    columns = [
        pa.array([0, 2], pa.int32()),
        pa.array([0, 2], pa.int64()),
        pa.array([0.0, 2.0]),
        names,
        names.dictionary_encode(),
    ]
    for number, column in enumerate(columns):
        file = tmp_path / f"{number}.parquet"
        hugging_face_file(file, first=2 * number, label=column)
    assert classes_of(tmp_path) == [0, 2] * 5


def test_minus_one_is_no_label_where_the_metadata_names_the_classes(tmp_path: Path) -> None:
    names = class_label("cat", "dog")
    file = hugging_face_file(tmp_path / "a.parquet", names, label=[1, -1, None])
    listing = listed("parquet", path=file)
    label_names = listing["label_name"].fillna("-")
    assert label_names.tolist() == ["dog", "-", "-"]
    is_null = listing["label"].isna()
    assert is_null.tolist() == [False, True, True]


def test_labels_of_16_bit_floats_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_nan = pc.is_nan

    def is_nan_of_old_versions(column: pa.Array) -> Any:
        if pa.types.is_float16(column.type):
            raise pa.ArrowNotImplementedError("no kernel matching input types (halffloat)")
        return is_nan(column)

    monkeypatch.setattr(pc, "is_nan", is_nan_of_old_versions)
    values = [np.float16(value) if value is not None else None for value in (2, np.nan, None)]
    labels = pa.array(values, pa.float16())
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"x"] * 3, "label": labels}), file)
    assert listed("parquet", path=file)["label"].fillna(-1).tolist() == [2, -1, -1]


def test_true_and_false_are_names(tmp_path: Path) -> None:
    # "is a cat" is class 0 here, where true would be 1.
    file = hugging_face_file(tmp_path / "a.parquet", label=[True, False])
    with pytest.raises(InputError, match=r"2 images are none of them: true \(1\), false \(1\)"):
        classes_of(file)
    assert classes_of(file, label_map={"true": 0, "false": 1}) == [0, 1]


NUMBERS = [0, 1]
NOT_EQUAL = "and the column 'label_name' has"


@pytest.mark.parametrize(
    ("about", "label", "label_name", "message"),
    [
        (
            class_label("cat"),
            [0, 3],
            None,
            "the label 3 has no name in the file's metadata",
        ),
        (
            b"{",
            NUMBERS,
            None,
            "where the names of its classes may be, cannot be read",
        ),
        (
            class_label("dog", "cat"),
            NUMBERS,
            ["dog", "dog"],
            f"row 1: the label is 'cat', {NOT_EQUAL} 'dog'",
        ),
        (
            None,
            ["cat", "dog"],
            ["cat", "owl"],
            f"row 1: the label is 'dog', {NOT_EQUAL} 'owl'",
        ),
    ],
)
def test_names_that_disagree_are_refused(
    tmp_path: Path, about: Any, label: list[Any], label_name: Any, message: str
) -> None:
    columns = {"label": label}
    if label_name is not None:
        columns["label_name"] = label_name
    file = hugging_face_file(tmp_path / "a.parquet", about, **columns)
    with pytest.raises(InputError) as error:
        classes_of(file)
    assert message in str(error.value)


WITHOUT_NAMES = {"num_classes": 2, "_type": "ClassLabel"}
NO_CLASSES = {"dtype": "int64", "_type": "Value"}


@pytest.mark.parametrize(
    "about",
    [
        [],
        {"info": None},
        metadata_of([]),
        metadata_of(NO_CLASSES),
        metadata_of(WITHOUT_NAMES),
    ],
)
def test_metadata_without_names_gives_none(tmp_path: Path, about: Any) -> None:
    file = hugging_face_file(tmp_path / "a.parquet", about, label=NUMBERS)
    assert classes_of(file) == NUMBERS


def test_names_by_their_number_are_read_and_other_forms_refused(tmp_path: Path) -> None:
    # More than ten, so that text and numbers are ordered differently.
    names = {str(number): f"x{number}" for number in reversed(range(12))}
    names |= {"1": "cat", "10": "dog"}
    about = metadata_of({"names": names, "_type": "ClassLabel"})
    file = hugging_face_file(tmp_path / "a.parquet", about, label=[1, 10])
    assert classes_of(file) == [0, 1]

    for other in ({"1": "cat", "2": "dog"}, {"cat": 0, "dog": 1}, "cat,dog", 2):
        about = metadata_of({"names": other, "_type": "ClassLabel"})
        file = hugging_face_file(tmp_path / "a.parquet", about, label=NUMBERS)
        with pytest.raises(InputError, match="'label' that are neither a list nor a mapping"):
            classes_of(file)


def test_companions_of_macos_are_left_out_and_counted(tmp_path: Path) -> None:
    hugging_face_file(tmp_path / "a.parquet", label=[0, 1])
    companion = tmp_path / "._a.parquet"
    companion.write_bytes(b"\0\5\x16\7" + bytes(80))
    for path in (tmp_path, tmp_path / "*.parquet", tmp_path / "**" / "*.parquet"):
        listing = listed("parquet", path=path)
        assert len(listing) == 2
        assert listing.attrs["passed_over"] == {"hidden file": 1}
    # A pattern that could not match the companion passes nothing over.
    for path in (tmp_path / "a.parquet", tmp_path / "a*"):
        assert "passed_over" not in listed("parquet", path=path).attrs


def test_companions_of_macos_in_a_bucket_are_left_out_and_counted(tmp_path: Path) -> None:
    file = hugging_face_file(tmp_path / "a.parquet", label=[0, 1])
    bucket = fsspec.filesystem("memory")
    bucket.pipe("/companions/a.parquet", file.read_bytes())
    bucket.pipe("/companions/._a.parquet", bytes(80))
    bucket.pipe("/companions/.b.parquet", file.read_bytes())
    for path in ("memory://companions", "memory://companions/*.parquet"):
        listing = listed("parquet", path=path)
        assert len(listing) == 2
        assert listing.attrs["passed_over"] == {"hidden file": 2}
    # A name that is given is no companion.
    for path in ("memory://companions/.b.parquet", "memory://companions/.b*"):
        assert len(listed("parquet", path=path)) == 2
