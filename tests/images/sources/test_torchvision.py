"""Data sets of torchvision, in the formats in which their authors publish them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pu_kd_pipeline.errors import InputError
from tests.images.sources.examples import gray_levels, image_folder, listed, opened


def idx_bytes(array: np.ndarray) -> bytes:
    """Return an array in the format of MNIST's files."""
    header = bytes([0, 0, 8, array.ndim])  # 8: unsigned bytes
    shape = np.array(array.shape, dtype=">i4").tobytes()
    return header + shape + array.tobytes()


def random_images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)


def write_idx_files(folder: Path, images: np.ndarray, name: str) -> None:
    """Write images and labels (position % 10) in MNIST's raw format."""
    labels = np.arange(len(images), dtype=np.uint8) % 10
    (folder / f"{name}-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))


def test_mnist_is_read_from_its_raw_files(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = random_images(20)
    write_idx_files(folder, images, "train")
    write_idx_files(folder, images[:10], "t10k")
    reader = opened("torchvision", dataset="MNIST", path=tmp_path)
    listing = reader.listing()
    assert listing["id"].tolist()[:2] == ["MNIST/train=True/0", "MNIST/train=True/1"]
    assert listing["label"].tolist() == [*range(10), *range(10)]
    assert listing["label_name"].iloc[3] == "3 - three"
    read = [np.asarray(image) for image in reader.read(listing)]
    np.testing.assert_array_equal(np.stack(read), images)
    test = listed("torchvision", dataset="MNIST", path=tmp_path, options={"train": False})
    assert len(test) == 10
    assert not set(test["id"]) & set(listing["id"])


def test_emnist_is_turned_to_read_like_mnist(tmp_path: Path) -> None:
    folder = tmp_path / "EMNIST" / "raw"
    folder.mkdir(parents=True)
    images = random_images(4)
    # torchvision looks for the files of all splits
    for split in ("byclass", "bymerge", "balanced", "letters", "digits", "mnist"):
        write_idx_files(folder, images, f"emnist-{split}-train")
        write_idx_files(folder, images, f"emnist-{split}-test")
    options = {"split": "digits", "train": True}
    reader = opened("torchvision", dataset="EMNIST", path=tmp_path, options=options)
    first = next(iter(reader.read(reader.listing())))
    np.testing.assert_array_equal(np.asarray(first), images[0].T)


def test_cifar_is_read_from_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pu_kd_pipeline.learning.networks.vision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    batch = pickle.dumps({"data": pixels, "labels": [0, 1, 2, 0, 1, 2]})
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(batch)
    (folder / "test_batch").write_bytes(batch)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["plane", "car", "bird"]}))
    # these files have other checksums than the published ones
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    meta = {"filename": "batches.meta", "key": "label_names", "md5": None}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    reader = opened("torchvision", dataset="CIFAR10", path=tmp_path, options={"train": False})
    listing = reader.listing()
    assert listing["label_name"].tolist() == ["plane", "car", "bird", "plane", "car", "bird"]
    image = np.asarray(next(iter(reader.read(listing))))
    np.testing.assert_array_equal(image, pixels[0].reshape(3, 32, 32).transpose(1, 2, 0))


def test_a_torchvision_folder_is_read_by_file(tmp_path: Path) -> None:
    image_folder(tmp_path, cat__a=1, dog__b=2)
    reader = opened("torchvision", dataset="ImageFolder", path=tmp_path)
    listing = reader.listing()
    found = listing[["id", "label", "label_name"]].values.tolist()
    assert found == [["cat/a.png", 0, "cat"], ["dog/b.png", 1, "dog"]]
    assert gray_levels(reader.read(listing)) == [1, 2]


def test_a_data_set_without_a_list_of_labels_is_asked_image_by_image() -> None:
    options = {"size": 5, "image_size": [3, 8, 8], "num_classes": 4}
    with_labels = listed("torchvision", dataset="FakeData", options=options, labels="classes")
    assert with_labels["label"].between(0, 3).all()
    # but not where labels are ignored, because it is slow
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
def test_errors_of_torchvision_say_how_to_fix_them(
    tmp_path: Path, parameters: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        listed("torchvision", path=tmp_path, **parameters)
