from __future__ import annotations

import os
import pickle
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable
from pu_kd_pipeline.images.labels import draw, in_share, with_teacher_labels
from pu_kd_pipeline.images.sources.registry import open_source
from pu_kd_pipeline.params.data_ingestion import ImageSource


def png(value: int, size: int = 8) -> bytes:
    buffer = BytesIO()
    Image.new("L", (size, size), value).save(buffer, "PNG")
    return buffer.getvalue()


def folder_of(root: Path, **files: int) -> Path:
    for name, value in files.items():
        path = root / name.replace("__", "/")
        path = path.with_name(f"{path.name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return root


def source_of(kind: str, **parameters: Any) -> ImageSource:
    return ImageSource.model_validate({"type": kind, **parameters})


def listed(kind: str, **parameters: Any) -> pd.DataFrame:
    return open_source(source_of(kind, **parameters), seed=0).listing()


def values(images: Any) -> list[Any]:
    return [
        image if isinstance(image, Unusable) else int(np.asarray(Image.open(BytesIO(image)))[0, 0])
        for image in images
    ]


# --- folders


def test_a_folder_lists_its_images_sorted_with_the_first_folder_as_class(tmp_path: Path) -> None:
    folder_of(tmp_path, dog__b=2, dog__a=1, cat__deep__c=3, loose=4)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(png(9))
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "x.png").write_bytes(png(9))
    (tmp_path / "dog" / "D.JPEG").write_bytes(png(5))
    reader = open_source(source_of("folder", path=str(tmp_path)), seed=0)
    listing = reader.listing()
    assert listing["id"].tolist() == [
        "cat/deep/c.png",
        "dog/D.JPEG",
        "dog/a.png",
        "dog/b.png",
        "loose.png",
    ]
    assert listing["label_name"].fillna("-").tolist() == ["cat", "dog", "dog", "dog", "-"]
    assert values(reader.read(listing)) == [3, 5, 1, 2, 4]
    assert values(reader.read(listing.iloc[[0, 3]])) == [3, 2]


def test_links_out_of_a_folder_are_listed_as_faults_and_links_inside_are_followed(
    tmp_path: Path,
) -> None:
    outside = folder_of(tmp_path / "outside", secret=1)
    root = folder_of(tmp_path / "images", a=2)
    (root / "leak.png").symlink_to(outside / "secret.png")
    (root / "leaks").symlink_to(outside)
    (root / "broken.png").symlink_to(outside / "nothing.png")
    (root / "inside.png").symlink_to(root / "a.png")
    listing = listed("folder", path=str(root)).set_index("id")
    assert listing.loc[["leak.png", "leaks", "broken.png"], "fault"].tolist() == [Reason.LINK] * 3
    assert listing.loc[["a.png", "inside.png"], "fault"].isna().all()
    assert len(listing) == 5


def test_a_pipe_named_like_an_image_is_never_opened(tmp_path: Path) -> None:
    folder_of(tmp_path, a=1)
    os.mkfifo(tmp_path / "pipe.png")
    assert (
        listed("folder", path=str(tmp_path)).set_index("id").loc["pipe.png", "fault"]
        == Reason.UNREADABLE
    )


def test_a_file_name_that_is_not_utf8_is_a_fault(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(png(1))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    listing = listed("folder", path=str(tmp_path))
    assert listing[["id", "fault"]].values.tolist() == [["caf\\xe9.png", Reason.NAME]]


def test_a_changed_file_has_another_version(tmp_path: Path) -> None:
    before = listed("folder", path=str(folder_of(tmp_path, a=1, b=2)))["version"]
    os.utime(tmp_path / "a.png", ns=(0, 1))
    after = listed("folder", path=str(tmp_path))["version"]
    assert (before != after).tolist() == [True, False]


def test_a_file_that_vanished_is_unusable_not_fatal(tmp_path: Path) -> None:
    reader = open_source(source_of("folder", path=str(folder_of(tmp_path, a=1, b=2))), seed=0)
    listing = reader.listing()
    (tmp_path / "a.png").unlink()
    assert values(reader.read(listing)) == [Unusable(Reason.NOT_OPENED), 2]


def test_a_folder_behind_a_url_is_read_like_a_local_one() -> None:
    remote = fsspec.filesystem("memory")
    for name, value in {"cat/a.png": 1, "dog/b.png": 2, "dog/notes.txt": 0, ".x/c.png": 3}.items():
        remote.pipe(f"/folder_test/{name}", png(value))
    reader = open_source(source_of("folder", path="memory://folder_test"), seed=0)
    listing = reader.listing()
    assert listing[["id", "label_name"]].values.tolist() == [
        ["cat/a.png", "cat"],
        ["dog/b.png", "dog"],
    ]
    assert values(reader.read(listing)) == [1, 2]


@pytest.mark.parametrize(
    ("make", "message"), [(False, "there is no folder"), (True, "holds no image: files ending")]
)
def test_a_missing_or_empty_folder_is_refused(tmp_path: Path, make: bool, message: str) -> None:
    if make:
        (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=message):
        listed("folder", path=str(tmp_path / "images"))


# --- Parquet


def parquet_of(
    file: Path | str, n: int, first: int = 0, row_group_size: int = 4, **columns: Any
) -> str:
    table = {
        "image": pa.array([png((first + row) % 256) for row in range(n)], pa.binary()),
        **columns,
    }
    with fsspec.open(str(file), "wb") as opened:
        pq.write_table(pa.table(table), opened, row_group_size=row_group_size)
    return str(file)


@pytest.mark.parametrize("scheme", ["", "file://", "memory:/"])
def test_parquet_is_read_by_row_wherever_it_lies(tmp_path: Path, scheme: str) -> None:
    path = parquet_of(
        f"{scheme}{tmp_path}/a.parquet",
        11,
        id=[f"i{row}" for row in range(11)],
        label=list(range(11)),
    )
    reader = open_source(source_of("parquet", path=path), seed=0)
    listing = reader.listing()
    assert listing["id"].tolist() == [f"i{row}" for row in range(11)]
    assert listing["label"].tolist() == list(range(11))
    assert values(reader.read(listing)) == list(range(11))
    assert values(reader.read(listing.iloc[[0, 3, 4, 10]])) == [0, 3, 4, 10]


def test_a_glob_and_a_folder_of_parquet_files_are_one_source(tmp_path: Path) -> None:
    parquet_of(tmp_path / "b.parquet", 3, first=10)
    parquet_of(tmp_path / "a.parquet", 2)
    for path in (tmp_path / "*.parquet", tmp_path):
        reader = open_source(source_of("parquet", path=str(path)), seed=0)
        listing = reader.listing()
        assert listing["id"].tolist() == ["a:0", "a:1", "b:0", "b:1", "b:2"]
        assert values(reader.read(listing.iloc[1:4])) == [1, 10, 11]


def test_only_the_row_groups_that_are_wanted_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = open_source(source_of("parquet", path=parquet_of(tmp_path / "a.parquet", 40)), seed=0)
    listing = reader.listing()
    touched: list[int] = []
    original = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *args: Any, row_groups: list[int], **kwargs: Any) -> Any:
        touched.extend(row_groups)
        return original(self, *args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert values(reader.read(listing.iloc[[5, 6, 39]])) == [5, 6, 39]
    assert touched == [1, 9]


def test_images_as_hugging_face_writes_them_and_names_as_labels_are_read(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": png(5), "path": None}, {"bytes": None, "path": "x"}], kind)
    pq.write_table(pa.table({"image": image, "label": ["cat", "dog"]}), tmp_path / "a.parquet")
    reader = open_source(source_of("parquet", path=str(tmp_path / "a.parquet")), seed=0)
    listing = reader.listing()
    assert listing["label_name"].tolist() == ["cat", "dog"]
    assert values(reader.read(listing)) == [5, Unusable(Reason.EMPTY)]


def test_parquet_without_images_is_refused_with_the_columns_found(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "pixels": [b""]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet has no column 'image'; found: id, pixels\."):
        listed("parquet", path=str(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"image": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="the column 'image' is string; it must hold the bytes"):
        listed("parquet", path=str(tmp_path / "a.parquet"))


def test_a_missing_or_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    for path in ("a.parquet", "*.parquet"):
        with pytest.raises(InputError, match=r"there is no Parquet file at .*: correct `path`"):
            listed("parquet", path=str(tmp_path / path))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(InputError, match="is not a Parquet file"):
        listed("parquet", path=str(tmp_path / "a.parquet"))


# --- torchvision


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + np.array(array.shape, dtype=">i4").tobytes()
        + array.tobytes()
    )


def mnist_of(root: Path, name: str = "MNIST", n: int = 20) -> np.ndarray:
    """Write a data set of `n` images in MNIST's raw format; training label = position % 10, test has half as many."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    for part, count in (("train", n), ("t10k", n // 2)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images[:count]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            idx(np.arange(count, dtype=np.uint8) % 10)
        )
    return images


def test_mnist_is_read_from_its_raw_files(tmp_path: Path) -> None:
    images = mnist_of(tmp_path)
    reader = open_source(source_of("torchvision", dataset="MNIST", path=str(tmp_path)), seed=0)
    listing = reader.listing()
    assert listing["id"].tolist()[:2] == ["MNIST/train=True/0", "MNIST/train=True/1"]
    assert listing["label"].tolist() == [*range(10), *range(10)]
    assert listing["label_name"].iloc[3] == "3 - three"
    np.testing.assert_array_equal(
        np.stack([np.asarray(image) for image in reader.read(listing)]), images
    )
    test = listed("torchvision", dataset="MNIST", path=str(tmp_path), options={"train": False})
    assert len(test) == 10
    assert not set(test["id"]) & set(listing["id"])


def test_emnist_is_turned_to_read_like_mnist(tmp_path: Path) -> None:
    folder = tmp_path / "EMNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    for split in ("byclass", "bymerge", "balanced", "letters", "digits", "mnist"):
        for part in ("train", "test"):
            (folder / f"emnist-{split}-{part}-images-idx3-ubyte").write_bytes(idx(images))
            (folder / f"emnist-{split}-{part}-labels-idx1-ubyte").write_bytes(
                idx(np.arange(4, dtype=np.uint8))
            )
    source = source_of(
        "torchvision",
        dataset="EMNIST",
        path=str(tmp_path),
        options={"split": "digits", "train": True},
    )
    reader = open_source(source, seed=0)
    read = [np.asarray(image) for image in reader.read(reader.listing())]
    np.testing.assert_array_equal(read[0], images[0].T)


def test_cifar_is_read_from_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pu_kd_pipeline.learning.networks.vision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 0, 1, 2]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["plane", "car", "bird"]}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None}
    )
    source = source_of(
        "torchvision", dataset="CIFAR10", path=str(tmp_path), options={"train": False}
    )
    reader = open_source(source, seed=0)
    listing = reader.listing()
    assert listing["label_name"].tolist() == ["plane", "car", "bird", "plane", "car", "bird"]
    image = np.asarray(next(iter(reader.read(listing))))
    np.testing.assert_array_equal(image, pixels[0].reshape(3, 32, 32).transpose(1, 2, 0))


def test_a_torchvision_folder_is_read_by_file(tmp_path: Path) -> None:
    folder_of(tmp_path, cat__a=1, dog__b=2)
    reader = open_source(
        source_of("torchvision", dataset="ImageFolder", path=str(tmp_path)), seed=0
    )
    listing = reader.listing()
    assert listing[["id", "label", "label_name"]].values.tolist() == [
        ["cat/a.png", 0, "cat"],
        ["dog/b.png", 1, "dog"],
    ]
    assert values(reader.read(listing)) == [1, 2]


def test_a_data_set_without_a_list_of_labels_is_asked_image_by_image() -> None:
    options = {"size": 5, "image_size": [3, 8, 8], "num_classes": 4}
    source = source_of("torchvision", dataset="FakeData", options=options, labels="classes")
    listing = open_source(source, seed=0).listing()
    assert listing["label"].between(0, 3).all()
    assert listed("torchvision", dataset="FakeData", options=options)["label"].isna().all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dataset": "MNISTT"}, "torchvision has no data set 'MNISTT': did you mean MNIST or"),
        ({"dataset": "MNIST"}, "cannot be opened .*set `download: true`, or `path`"),
        (
            {"dataset": "MNIST", "options": {"trian": True}},
            "does not take these options .*it knows train",
        ),
    ],
)
def test_torchvision_faults_say_how_to_mend_them(
    tmp_path: Path, parameters: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        listed("torchvision", path=str(tmp_path), **parameters)


def test_urls_that_nothing_reads_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError,
        match=r"cloud://bucket cannot be read \(Protocol not known: cloud\): correct `path`",
    ):
        listed("folder", path="cloud://bucket")
    fsspec.register_implementation(
        "needy", "no_such_package.NeedyFileSystem", errtxt="Install no_such_package"
    )
    with pytest.raises(
        InputError,
        match="needy://b/x.parquet cannot be read yet: Install no_such_package, with pip",
    ):
        listed("parquet", path="needy://b/x.parquet")


# --- labels, shares and draws

CLASSES = ("cat", "dog", "night owl")


def table(labels: Any = None, names: Any = None) -> pd.DataFrame:
    n = len(labels or names)
    return pd.DataFrame(
        {
            "id": [f"i{row}" for row in range(n)],
            "label": pd.Series(labels or [None] * n, dtype="Int64"),
            "label_name": pd.Series(names or [None] * n, dtype="str"),
        }
    )


def labeled(listing: pd.DataFrame, classes: Any = CLASSES, **parameters: Any) -> list[list[Any]]:
    result = with_teacher_labels(
        listing, source_of("folder", path="x", **parameters), classes, "pool[0]"
    )
    assert result["label"].dtype == "Int32"
    assert result["relevant"].dtype == "boolean"
    return [
        [None if pd.isna(value) else value for value in result[name]]
        for name in ("label", "relevant")
    ]


def test_labels_that_are_ignored_are_null() -> None:
    assert labeled(table([0, 1])) == [[None, None], [None, None]]


def test_a_class_number_is_the_teachers_and_every_image_needs_one() -> None:
    assert labeled(table([2, 0]), labels="classes") == [[2, 0], [True, True]]
    message = r"the teacher has 3 classes \(cat, dog, night owl\); the labels of 3 images are none of them: 7 \(2\), 3 \(1\)"
    with pytest.raises(InputError, match=message):
        labeled(table([0, 7, 7, 3]), labels="classes")
    with pytest.raises(InputError, match=r"no label \(1\)"):
        labeled(table([0, None]), labels="classes")


def test_the_truth_is_whether_a_label_is_a_class_of_the_teacher() -> None:
    assert labeled(table([1, 7, None]), labels="truth") == [[1, None, None], [True, False, None]]


def test_class_names_are_matched_whatever_their_order_and_spelling() -> None:
    names = ["Night_Owl", "DOG", "cat"]
    assert labeled(table(names=names), labels="classes")[0] == [2, 1, 0]
    # numbers beside names that are all the teacher's: the names count
    assert labeled(table([0, 1, 2], names), labels="classes")[0] == [2, 1, 0]
    assert labeled(table(names=["dog", "car"]), labels="truth") == [[1, None], [True, False]]


def test_sorted_names_are_the_classes_of_a_teacher_that_has_only_numbers() -> None:
    assert labeled(table(names=["b", "a", "c"]), ("0", "1", "2"), labels="classes")[0] == [1, 0, 2]
    with pytest.raises(InputError, match="the teacher has 3 classes"):
        labeled(table(names=["b", "a"]), ("0", "1", "2"), labels="classes")
    with pytest.raises(InputError, match="which images are relevant is unknown: give label_map"):
        labeled(table(names=["b", "a"]), ("0", "1", "2"), labels="truth")


def test_numbers_that_count_other_classes_are_refused() -> None:
    with pytest.raises(
        InputError, match="its label 0 is 'goldfish', the teacher's class 0 is 'cat'"
    ):
        labeled(table([0, 1], ["goldfish", "shark"]), labels="truth")


def test_a_label_map_takes_numbers_and_names_and_drops_the_rest() -> None:
    mapped = labeled(
        table([10, 11, 12], ["tabby", "pug", "car"]), labels="truth", label_map={"10": 0, "pug": 1}
    )
    assert mapped == [[0, 1, None], [True, True, False]]
    with pytest.raises(InputError, match="1 images label_map does not list: car"):
        labeled(table(names=["tabby", "car"]), labels="classes", label_map={"tabby": 0})
    with pytest.raises(InputError, match=r"outside 0..2 of the teacher: \{'tabby': 3\}"):
        labeled(table(names=["tabby"]), labels="classes", label_map={"tabby": 3})
    with pytest.raises(
        InputError, match=r"no key of label_map \(tabyb\) is a label there; found: tabby \(1\)"
    ):
        labeled(table(names=["tabby"]), labels="truth", label_map={"tabyb": 0})


@given(cuts=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True))
def test_neighboring_shares_divide_a_source(cuts: list[float]) -> None:
    ids = pd.Series([f"image-{number}" for number in range(300)])
    edges = [0.0, *sorted(cuts), 1.0]
    parts = [in_share(ids, (a, b)) for a, b in pairwise(edges)]
    assert (np.sum(parts, axis=0) == 1).all()


def test_a_share_is_about_as_large_as_it_says() -> None:
    ids = pd.Series([f"image-{number}" for number in range(20_000)])
    assert in_share(ids, (0.3, 0.5)).mean() == pytest.approx(0.2, abs=0.01)


def test_draws_keep_so_many_of_each_class_and_nest() -> None:
    labels = pd.Series([0, 1, 1, 0, 1, None, 0, 1], dtype="Int32")

    def drawn(per_class: int | None, limit: int | None, seed: int = 0) -> list[int]:
        return draw(labels, per_class, limit, np.random.default_rng(seed), n_classes=2).tolist()

    assert drawn(None, None) == list(range(8))
    two = drawn(2, None)
    assert labels.iloc[two].value_counts(dropna=False).to_dict() == {0: 2, 1: 2, pd.NA: 1}
    assert set(drawn(1, None)) < set(two) < set(drawn(3, None))
    assert drawn(9, None) == list(range(8))
    assert set(drawn(None, 3)) < set(drawn(None, 5))
    assert len({tuple(drawn(None, 4, seed)) for seed in range(20)}) > 5


def test_the_demo_is_a_source() -> None:
    reader = open_source(source_of("demo", part="pool"), seed=0)
    listing = reader.listing()
    assert listing["label"].notna().sum() == 700
    images = list(reader.read(listing.iloc[[4, 9]]))
    assert images[0].shape == (8, 8)
    assert not np.array_equal(images[0], images[1])
