"""Data sets of torchvision, in the formats in which their authors publish them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.labels import with_teacher_labels
from pu_kd_pipeline.images.sources.registry import source_state
from tests.images.sources.examples import gray_levels, image_folder, listed, opened, source_of


def idx_bytes(array: np.ndarray) -> bytes:
    """Return an array in the format of MNIST's files."""
    # Two zeros, 8 for unsigned bytes, and how many sizes follow.
    file = bytes([0, 0, 8, array.ndim])
    for size in array.shape:
        file += size.to_bytes(4, "big")
    return file + array.tobytes()


def random_pixels(*shape: int) -> np.ndarray:
    # Noise, so that an image read at a wrong offset or turned differs.
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def write_idx_files(folder: Path, images: np.ndarray, name: str) -> None:
    """Write images and labels (position % 10) in MNIST's raw format."""
    folder.mkdir(parents=True, exist_ok=True)
    n_images = len(images)
    labels = np.arange(n_images, dtype=np.uint8) % 10

    image_file = folder / f"{name}-images-idx3-ubyte"
    image_file.write_bytes(idx_bytes(images))

    label_file = folder / f"{name}-labels-idx1-ubyte"
    label_file.write_bytes(idx_bytes(labels))


@pytest.fixture
def mnist(tmp_path: Path) -> np.ndarray:
    """Write twenty training images and ten test images of MNIST, and return the former."""
    folder = tmp_path / "MNIST" / "raw"
    images = random_pixels(20, 28, 28)
    write_idx_files(folder, images, "train")
    write_idx_files(folder, images[:10], "t10k")
    return images


def test_mnist_is_read_from_its_raw_files(tmp_path: Path, mnist: np.ndarray) -> None:
    reader = opened("torchvision", dataset="MNIST", path=tmp_path)
    listing = reader.listing()

    read = [np.asarray(image) for image in reader.read(listing)]
    np.testing.assert_array_equal(read, mnist)
    # The labels that the fixture wrote, and the names that torchvision has for them.
    labels = listing["label"].tolist()
    assert labels == [*range(10), *range(10)]
    label_names = listing["label_name"].tolist()
    assert label_names[3] == "3 - three"


@pytest.mark.usefixtures("mnist")
def test_the_ids_of_two_splits_differ(tmp_path: Path) -> None:
    train = listed("torchvision", dataset="MNIST", path=tmp_path)
    ids = train["id"].tolist()
    assert ids[:2] == ["MNIST/train=True/0", "MNIST/train=True/1"]

    options = {"train": False}
    test = listed("torchvision", dataset="MNIST", path=tmp_path, options=options)
    test_ids = set(test["id"])
    assert len(test_ids) == 10
    # Both would start at 0, and a store refuses images with the same id.
    assert test_ids.isdisjoint(ids)


def test_emnist_is_turned_to_read_like_mnist(tmp_path: Path) -> None:
    folder = tmp_path / "EMNIST" / "raw"
    # Not symmetric, so that turning them shows.
    images = random_pixels(4, 28, 28)
    # torchvision looks for the files of all splits.
    for split in ("byclass", "bymerge", "balanced", "letters", "digits", "mnist"):
        write_idx_files(folder, images, f"emnist-{split}-train")
        write_idx_files(folder, images, f"emnist-{split}-test")

    options = {"split": "digits", "train": True}
    reader = opened("torchvision", dataset="EMNIST", path=tmp_path, options=options)
    listing = reader.listing()
    first = next(iter(reader.read(listing)))

    # Its files hold every image with rows and columns swapped.
    expected = images[0].T
    np.testing.assert_array_equal(np.asarray(first), expected)


def write_cifar_batches(folder: Path, pixels: np.ndarray, labels: list[int]) -> None:
    """Write images of (N, 3072) pixels as the six files of CIFAR-10, all of them alike."""
    folder.mkdir()
    batch = pickle.dumps({"data": pixels, "labels": labels})
    for number in range(1, 6):
        training_batch = folder / f"data_batch_{number}"
        training_batch.write_bytes(batch)
    test_batch = folder / "test_batch"
    test_batch.write_bytes(batch)

    label_names = pickle.dumps({"label_names": ["plane", "car", "bird"]})
    meta = folder / "batches.meta"
    meta.write_bytes(label_names)


def test_cifar_is_read_from_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pu_kd_pipeline.learning.networks.vision import datasets

    pixels = random_pixels(6, 3072)
    write_cifar_batches(tmp_path / "cifar-10-batches-py", pixels, labels=[0, 1, 2, 0, 1, 2])
    # These files have other checksums than the published ones.
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    meta = {"filename": "batches.meta", "key": "label_names", "md5": None}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)

    reader = opened("torchvision", dataset="CIFAR10", path=tmp_path, options={"train": False})
    listing = reader.listing()
    label_names = listing["label_name"].tolist()
    assert label_names == ["plane", "car", "bird", "plane", "car", "bird"]

    first = next(iter(reader.read(listing)))
    # Stored as one plane after the other, read as rows of colors.
    planes = pixels[0].reshape(3, 32, 32)
    expected = planes.transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(first), expected)


def test_the_classes_of_stl10_are_named_and_minus_one_is_no_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pu_kd_pipeline.learning.networks.vision import datasets

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pixels = random_pixels(3, 3 * 96 * 96)
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    # Its files count classes from one.
    (folder / "train_y.bin").write_bytes(bytes([2, 3, 1]))
    (folder / "train_X.bin").write_bytes(pixels.tobytes())
    (folder / "unlabeled_X.bin").write_bytes(pixels[:1].tobytes())
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)

    options = {"split": "train+unlabeled"}
    listing = listed("torchvision", dataset="STL10", path=tmp_path, options=options)
    assert listing["label_name"].fillna("-").tolist() == ["bird", "car", "airplane", "-"]
    assert listing["label"].isna().tolist() == [False, False, False, True]

    # By name: its class 1 is the bird, which is 2 of CIFAR-10's classes.
    source = source_of("torchvision", dataset="STL10", labels="truth")
    classes = ["airplane", "automobile", "bird"]
    joined = with_teacher_labels(listing, source, classes, "pool[0]")
    assert joined["label"].fillna(-1).tolist() == [2, -1, 0, -1]
    assert joined["relevant"].astype(object).where(joined["relevant"].notna(), None).tolist() == [
        *(True, False, True, None),
    ]


def test_a_torchvision_folder_is_read_by_file(tmp_path: Path) -> None:
    image_folder(tmp_path, cat__a=1, dog__b=2)

    # Ids by file: a new image in the first class must not rename all others.
    reader = opened("torchvision", dataset="ImageFolder", path=tmp_path)
    listing = reader.listing()
    columns = listing[["id", "label", "label_name"]]
    first, second = columns.to_numpy().tolist()
    assert first == ["cat/a.png", 0, "cat"]
    assert second == ["dog/b.png", 1, "dog"]

    grays = gray_levels(reader.read(listing))
    assert grays == [1, 2]


def test_a_data_set_without_a_list_of_labels_is_asked_image_by_image() -> None:
    options = {"size": 5, "image_size": [3, 8, 8], "num_classes": 4}
    with_labels = listed("torchvision", dataset="FakeData", options=options, labels="classes")
    is_class = with_labels["label"].between(0, 3)
    assert is_class.all()

    # But not where labels are ignored, because it is slow.
    ignored = listed("torchvision", dataset="FakeData", options=options)
    is_null = ignored["label"].isna()
    assert is_null.all()


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
def test_errors_of_torchvision_say_how_to_fix_them(
    tmp_path: Path, parameters: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        listed("torchvision", path=tmp_path, **parameters)


@pytest.mark.usefixtures("mnist")
def test_the_root_may_be_an_option_and_changes_no_id(tmp_path: Path) -> None:
    by_path = listed("torchvision", dataset="MNIST", path=tmp_path)
    by_option = listed("torchvision", dataset="MNIST", options={"root": str(tmp_path)})
    assert by_option["id"].tolist() == by_path["id"].tolist()
    without_download = {"root": str(tmp_path), "download": False}
    by_options = listed("torchvision", dataset="MNIST", options=without_download)
    assert by_options["id"].tolist() == by_path["id"].tolist()


def test_two_places_of_one_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"MNIST has a `path` \(.*\) and an option `root` \(b\)"):
        listed("torchvision", dataset="MNIST", path=tmp_path, options={"root": "b"})


def test_a_remote_data_set_of_torchvision_is_refused() -> None:
    with pytest.raises(InputError, match="reads local folders only, and s3://bucket is none"):
        listed("torchvision", dataset="MNIST", path="s3://bucket")


def test_another_file_of_the_data_set_makes_other_versions(
    tmp_path: Path, mnist: np.ndarray
) -> None:
    before = listed("torchvision", dataset="MNIST", path=tmp_path)
    write_idx_files(tmp_path / "MNIST" / "raw", 255 - mnist, "train")
    after = listed("torchvision", dataset="MNIST", path=tmp_path)
    assert (before["version"] != after["version"]).all()


def test_links_to_folders_are_followed_as_torchvision_does(tmp_path: Path) -> None:
    classes = image_folder(tmp_path / "elsewhere", a=1)
    root = tmp_path / "root"
    root.mkdir()
    (root / "cat").symlink_to(classes)
    (root / "cat" / "circle").symlink_to(root)
    source = source_of("torchvision", dataset="ImageFolder", path=root)
    before = source_state(source)
    image_folder(classes, a=2)
    assert source_state(source) != before
