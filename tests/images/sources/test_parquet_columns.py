"""Which columns of a Parquet file are read, and the types that images may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable
from tests.images.sources.examples import gray_levels, listed, opened, png

GRAYS = [1, 2, 3]
IMAGES = [png(gray) for gray in GRAYS]
STRUCTS = [{"bytes": image, "path": f"/data/{gray}.png"} for gray, image in enumerate(IMAGES)]
WITH_PATH = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def writes_views() -> bool:
    """Return whether this version of pyarrow can make the file of a test."""
    try:
        pq.write_table(
            pa.table({"image": pa.array([b""], pa.binary_view())}), pa.BufferOutputStream()
        )
    except pa.ArrowNotImplementedError:
        return False
    return True


def written(folder: Path, **columns: Any) -> Path:
    file = folder / "a.parquet"
    pq.write_table(pa.table(columns), file)
    return file


def grays_of(file: Path, **source: Any) -> list[Any]:
    reader = opened("parquet", path=file, **source)
    return gray_levels(reader.read(reader.listing()))


def error_of(file: Path, **source: Any) -> str:
    with pytest.raises(InputError) as error:
        listed("parquet", path=file, **source)
    return str(error.value)


@pytest.mark.parametrize("name", ["image", "img", "jpg", "PNG", "bytes", "image_bytes"])
def test_images_are_found_in_the_only_column_with_a_common_name(name: str, tmp_path: Path) -> None:
    file = written(tmp_path, **{"other": [b"x"] * 3, name: IMAGES, "n": [1, 2, 3]})
    assert grays_of(file) == GRAYS


def test_a_column_without_bytes_is_no_candidate(tmp_path: Path) -> None:
    file = written(tmp_path, img=["a.png", "b.png", "c.png"], bytes=IMAGES)
    assert grays_of(file) == GRAYS


def test_image_comes_before_other_common_names(tmp_path: Path) -> None:
    file = written(tmp_path, jpg=[b"x"] * 3, image=IMAGES)
    assert grays_of(file) == GRAYS
    assert grays_of(file, image_column="image") == GRAYS


def test_several_candidates_need_image_column(tmp_path: Path) -> None:
    file = written(tmp_path, img=[b"x"] * 3, png=IMAGES)
    assert error_of(file) == (
        f"{file} has 2 columns that may hold the images (img, png): name one of them as "
        "`image_column` of the source"
    )
    assert grays_of(file, image_column="png") == GRAYS


def test_columns_are_called_as_the_parameters_say(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        image=[b"x"] * 3,
        id=["x", "y", "z"],
        label=[9, 9, 9],
        **{"photo data": IMAGES, "key": [7, 8, 9], "fine": [2, 0, 1], "text": ["c", "a", "b"]},
    )
    names = {
        "image_column": "photo data",
        "id_column": "key",
        "label_column": "fine",
        "label_name_column": "text",
    }
    listing = listed("parquet", path=file, **names)
    assert listing[["id", "label", "label_name"]].values.tolist() == [
        ["7", 2, "c"],
        ["8", 0, "a"],
        ["9", 1, "b"],
    ]
    assert grays_of(file, **names) == GRAYS
    assert listed("parquet", path=file, label_column="text")["label_name"].tolist() == list("cab")


@pytest.mark.parametrize("key", ["image_column", "id_column", "label_column", "label_name_column"])
def test_a_column_that_is_named_and_missing_is_refused(key: str, tmp_path: Path) -> None:
    file = written(tmp_path, image=IMAGES)
    message = f"{file} has no column 'x', which `{key}` of the source names; found: image"
    assert error_of(file, **{key: "x"}) == message


def test_class_names_of_a_column_with_another_name_are_used(tmp_path: Path) -> None:
    names = '{"info": {"features": {"fine": {"_type": "ClassLabel", "names": ["a", "b", "c"]}}}}'
    table = pa.table({"image": IMAGES, "fine": [2, 0, 1]})
    file = tmp_path / "a.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": names}), file)
    listing = listed("parquet", path=file, label_column="fine")
    assert listing["label_name"].tolist() == ["c", "a", "b"]


@pytest.mark.parametrize(
    "images",
    [
        pa.array(IMAGES, pa.binary()),
        pa.array(IMAGES, pa.large_binary()),
        pytest.param(
            pa.array(IMAGES, pa.binary_view()),
            marks=pytest.mark.skipif(
                not writes_views(), reason="this pyarrow does not write views to Parquet"
            ),
        ),
        pa.array(IMAGES, pa.binary()).dictionary_encode(),
        pa.array(STRUCTS, WITH_PATH),
        pa.array([{"bytes": image} for image in IMAGES]),
        pa.array([[image] for image in IMAGES]),
        pa.array([[struct] for struct in STRUCTS], pa.list_(WITH_PATH)),
        pa.array([[image] for image in IMAGES], pa.large_list(pa.large_binary())),
    ],
    ids=lambda images: str(images.type)[:40],
)
def test_images_of_every_type_with_bytes_are_read(images: pa.Array, tmp_path: Path) -> None:
    file = written(tmp_path, image=images, label=GRAYS)
    assert grays_of(file) == GRAYS


def test_lists_need_one_image_each(tmp_path: Path) -> None:
    lists = pa.array([IMAGES[:1], IMAGES, [], None], pa.list_(pa.binary()))
    several = Unusable(Reason.SEVERAL_IMAGES)
    empty = Unusable(Reason.EMPTY)
    assert grays_of(written(tmp_path, image=lists)) == [1, several, empty, empty]


@pytest.mark.parametrize(
    "images",
    [
        pa.array([{"bytes": None, "path": "/a.png"}] * 3, WITH_PATH),
        pa.array([{"bytes": None, "path": "/a.png"}] * 3),
        pa.array([{"path": "/a.png"}] * 3),
        pa.array([[{"bytes": None, "path": "/a.png"}]] * 3, pa.list_(WITH_PATH)),
    ],
    ids=["struct", "null bytes", "path alone", "list"],
)
@pytest.mark.parametrize("name", ["image", "img"])
def test_images_that_are_only_paths_are_refused_when_they_are_listed(
    images: pa.Array, name: str, tmp_path: Path
) -> None:
    file = written(tmp_path, **{name: images})
    message = error_of(file)
    assert f"the column {name!r} holds only the paths of image files and not their" in message
    assert "embed_table_storage" in message


def test_single_images_that_are_only_paths_are_set_aside(tmp_path: Path) -> None:
    structs = [STRUCTS[0], {"bytes": None, "path": "/a.png"}, {"bytes": None, "path": None}]
    file = written(tmp_path, image=pa.array(structs, WITH_PATH))
    assert grays_of(file) == [1, Unusable(Reason.ONLY_A_PATH), Unusable(Reason.EMPTY)]

    # Without statistics it is unknown before the images are read.
    file = tmp_path / "b.parquet"
    images = pa.array([{"bytes": None, "path": "/a.png"}] * 2, WITH_PATH)
    pq.write_table(pa.table({"image": images}), file, write_statistics=False)
    assert grays_of(file) == [Unusable(Reason.ONLY_A_PATH)] * 2


def test_empty_bytes_next_to_a_path_are_only_a_path(tmp_path: Path) -> None:
    structs = [{"bytes": b"", "path": "/a.png"}, {"bytes": None, "path": ""}, None]
    file = written(tmp_path, image=pa.array(structs, WITH_PATH))
    assert grays_of(file) == [Unusable(Reason.ONLY_A_PATH), *[Unusable(Reason.EMPTY)] * 2]


def test_images_that_are_null_are_not_called_paths(tmp_path: Path) -> None:
    for struct in ({"bytes": None, "path": None}, None):
        file = written(tmp_path, image=pa.array([struct] * 2, WITH_PATH))
        assert grays_of(file) == [Unusable(Reason.EMPTY)] * 2
    nulls = pa.array([{"bytes": None, "path": None}] * 2)
    assert "is struct<bytes: null, path: null>; it must" in error_of(written(tmp_path, image=nulls))


def test_a_column_of_paths_is_pointed_to_sources_of_type_list(tmp_path: Path) -> None:
    hint = "use a source of type 'list' with this column as `path_column`"
    assert hint in error_of(written(tmp_path, image=["a.png", "b.png"]))
    assert hint not in error_of(written(tmp_path, image=[1, 2]))
