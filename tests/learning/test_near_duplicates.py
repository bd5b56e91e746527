"""Near-duplicates: edited copies are found, different pictures are not."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from pu_kd_pipeline.learning import near_duplicates
from pu_kd_pipeline.learning.near_duplicates import (
    Copies,
    copy_limits,
    find_copies,
    fingerprints,
)
from tests.learning.pictures import (
    BICUBIC,
    BILINEAR,
    LANCZOS,
    as_jpeg,
    gray,
    lit,
    resized,
    several_edits,
    strokes,
    textures,
    to_array,
)

LIMITS = {"max_distance": 0.1, "max_ratio": 0.12}  # of conf/base
Edit = Callable[[np.ndarray], np.ndarray]

EDITS: dict[str, Edit] = {
    "JPEG of quality 70": lambda images: as_jpeg(images, 70),
    "enlarged and reduced by another filter": lambda images: resized(images, 2, BICUBIC, LANCZOS),
    "enlarged by half and reduced": lambda images: resized(images, 1.5, LANCZOS, BICUBIC),
    "brighter with more contrast": lambda images: lit(images, 1.1, 5),
    "darker with less contrast": lambda images: lit(images, 0.8, -10),
    "several edits": several_edits,
}
# With one edit per test, a failure names the edit.
every_edit = pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())


# --- what is found


def prints(images: np.ndarray) -> Tensor:
    # `to_array` returns a transposed view.
    contiguous = np.ascontiguousarray(images)
    return fingerprints(torch.from_numpy(contiguous))


def limits_of(references: Tensor, others: Tensor | None = None) -> Tensor:
    if others is None:
        others = references[:0]
    return copy_limits(references, others, **LIMITS)


def copies_in(images: Tensor, references: Tensor, others: Tensor | None = None) -> Copies:
    return find_copies(images, references, limits_of(references, others))


def share_found(originals: np.ndarray, copies: np.ndarray) -> float:
    """Return the share of copies that are found as copies of their own originals."""
    found = copies_in(prints(copies), prints(originals))
    is_own_original = found.rows == found.references
    n_found = int(is_own_original.sum())
    return n_found / len(copies)


@every_edit
def test_copies_of_textures_and_of_strokes_are_found(edit):
    photos = textures(200)
    assert share_found(photos, edit(photos)) == 1

    # Strokes are so alike that the limits may reject a few true copies.
    drawings = strokes(20)
    assert share_found(drawings, edit(drawings)) >= 0.9


def test_a_gray_copy_is_found():
    photos = textures(200)
    gray_copies = gray(photos)

    assert share_found(photos, gray_copies) == 1


@pytest.mark.parametrize("make", [textures, strokes])
def test_different_pictures_are_not_copies(make):
    # 300,000 pairs, none of which may pass.
    images = prints(make(3000, seed=0))
    references = prints(make(100, seed=1))
    found = copies_in(images, references, images)

    assert len(found.rows) == 0


def test_a_similar_image_is_a_copy_only_where_similar_images_are_rare():
    reference = prints(strokes(1))
    crowd = prints(strokes(400)[1:])
    photos = prints(textures(399))
    products = crowd @ reference[0]
    nearest_row = int(products.argmax())
    nearest = crowd[[nearest_row]]
    smallest_distance = float(1 - products.max())

    assert smallest_distance < 0.1

    # Among photos nothing else is near, so the distance is suspicious; among strokes it is usual.
    among_photos = copies_in(nearest, reference, photos)
    assert len(among_photos.rows) == 1

    among_strokes = copies_in(nearest, reference, crowd)
    assert len(among_strokes.rows) == 0


def test_an_exact_copy_has_distance_zero_and_copies_among_the_references_hide_none():
    images = textures(60)
    first = images[:1]
    # Two more copies of the first image must not lower its limit so far that it is missed.
    known = np.concatenate([images, as_jpeg(first, 90), as_jpeg(first, 80)])
    references = prints(known)
    found = copies_in(prints(images), references)
    every_row = list(range(60))

    assert found.rows.tolist() == every_row
    assert found.references.tolist() == every_row
    assert found.distances.max() < 1e-6


def test_of_several_copies_the_nearest_is_returned():
    images = textures(50)
    first = images[:1]
    worse_copy = as_jpeg(first, 40)
    better_copy = as_jpeg(first, 95)
    # The worse copy comes first, so that the order does not decide.
    known = np.concatenate([worse_copy, better_copy, images[1:]])
    found = copies_in(prints(first), prints(known))

    assert found.references.tolist() == [1]


# --- against slow references


def slow_fingerprint(image: np.ndarray) -> np.ndarray:
    """Return all differences between neighboring gray pixels of a (C, 16, 16) image, normalized."""
    if len(image) == 3:
        pixels = np.tensordot(near_duplicates.LUMA, image, axes=1)
    else:
        pixels = image[0].astype(float)
    vertical = np.diff(pixels, axis=0)
    horizontal = np.diff(pixels, axis=1)
    differences = np.concatenate([vertical.ravel(), horizontal.ravel()])
    length = np.linalg.norm(differences)
    return differences / length


@pytest.mark.parametrize("channels", [1, 3])
def test_products_of_fingerprints_are_those_of_gradients(channels):
    # 16 pixels is the size at which fingerprints are taken, so nothing is resized.
    images = textures(12, size_px=16)[:, :channels]
    gradients = np.stack([slow_fingerprint(image) for image in images])
    expected = gradients @ gradients.T
    vectors = prints(images)
    products = vectors @ vectors.T

    assert_allclose(products.numpy(), expected, atol=1e-5)


def test_limits_follow_the_fifth_nearest_other_image():
    references = prints(textures(80))
    others = prints(textures(30, 2))
    limits = copy_limits(references, others, max_distance=0.2, max_ratio=0.25)
    known = torch.cat([references, others]).double()
    distances = 1 - references.double() @ known.T

    for row, row_distances in enumerate(distances.tolist()):
        # The references come first among the known images.
        del row_distances[row]  # its distance to itself
        row_distances.sort()
        fifth = row_distances[4]
        expected = min(0.2, 0.25 * fifth)
        assert limits[row].item() == pytest.approx(expected, abs=1e-5)


def slow_search(images: Tensor, references: Tensor, limits: Tensor) -> dict[int, tuple[int, float]]:
    """Return the nearest reference within its limit and the distance to it, for each copy's row."""
    distances = 1 - images.double() @ references.double().T
    copies = {}
    for row, row_distances in enumerate(distances):
        is_near = row_distances <= limits
        if is_near.any():
            # All distances are at most 2, so 9 is never the smallest.
            near_distances = row_distances.masked_fill(~is_near, 9.0)
            nearest = near_distances.min(dim=0)
            copies[row] = (int(nearest.indices), float(nearest.values))
    return copies


def test_every_pair_that_a_slow_search_finds_is_found():
    originals = textures(80)
    bad_jpegs = as_jpeg(originals, 20)[:40]
    shrunk = resized(originals, 0.4, BILINEAR, BICUBIC)[40:]
    different = textures(40, 1)
    images = prints(np.concatenate([bad_jpegs, shrunk, different]))
    references = prints(originals)
    others = prints(textures(30, 2))

    limits = copy_limits(references, others, max_distance=0.2, max_ratio=0.25)
    expected = slow_search(images, references, limits)

    # Some of the copies are too bad to be found: the limits matter here.
    assert 20 < len(expected) < 100

    found = find_copies(images, references, limits)
    expected_references = [reference for reference, _ in expected.values()]
    expected_distances = [distance for _, distance in expected.values()]

    assert found.rows.tolist() == list(expected)
    assert found.references.tolist() == expected_references
    assert_allclose(found.distances.numpy(), expected_distances, atol=1e-5)


# --- invariances and limits


def test_the_size_of_batches_and_blocks_changes_nothing(monkeypatch):
    originals = textures(70)
    copies = as_jpeg(originals, 30)
    references = prints(originals)
    limits = limits_of(references)
    all_prints = prints(copies)

    whole = find_copies(all_prints, references, limits)
    batches = np.split(copies, 10)
    parts = torch.cat([prints(batch) for batch in batches])

    # Rounding may differ with the size of the batch.
    assert_close(parts, all_prints, atol=1e-6, rtol=0)

    # Small enough for several blocks in both functions.
    monkeypatch.setattr(near_duplicates, "_BLOCK", 700)
    limits_by_blocks = limits_of(references)

    assert_close(limits_by_blocks, limits, atol=1e-6, rtol=0)

    again = find_copies(parts, references, limits)
    assert torch.equal(again.rows, whole.rows)
    assert torch.equal(again.references, whole.references)


@pytest.mark.parametrize("limit", [0.001, 0.01, 0.1])
def test_being_a_copy_is_mutual(limit):
    images = textures(100)
    originals = prints(images)
    copies = prints(as_jpeg(images, 50))
    limits = torch.full((100,), limit)

    there = find_copies(originals, copies, limits)
    back = find_copies(copies, originals, limits)

    assert torch.equal(there.rows, back.rows)
    assert_close(there.distances, back.distances)


def test_a_flat_image_has_no_copies():
    # Without any gradient nothing can be compared, not even two equal flat images.
    flat = np.full((2, 3, 32, 32), 77, dtype=np.uint8)
    images = np.concatenate([flat, textures(20)])
    references = prints(images)
    limits = limits_of(references)
    found = copies_in(references, references)
    flat_prints = references[:2]
    flat_limits = limits[:2].tolist()

    assert not flat_prints.any()
    assert flat_limits == [-1, -1]
    assert found.rows.tolist() == list(range(2, 22))


def test_one_reference_and_none_are_enough():
    images = prints(textures(3))
    none = images[:0]
    one = images[:1]

    of_one_reference = copies_in(images, one)

    assert of_one_reference.rows.tolist() == [0]

    of_no_reference = copies_in(images, none)
    assert len(of_no_reference.rows) == 0

    of_no_image = copies_in(none, images)
    assert len(of_no_image.rows) == 0


def test_other_tensors_and_limits_are_refused():
    message = r"\(N, 1 or 3, H, W\) uint8, got \(2, 3, 8, 8\) torch.float32"
    with pytest.raises(ValueError, match=message):
        fingerprints(torch.zeros(2, 3, 8, 8))

    images = prints(textures(2))
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\], got 0 and 0.1"):
        copy_limits(images, images, max_distance=0, max_ratio=0.1)


# --- real images


def real(folder: Path, name: str, n: int) -> np.ndarray:
    path = folder / f"{name}.parquet"
    table = pq.read_table(path, columns=["image"])
    first_rows = table.slice(0, n)
    pictures = []
    for content in first_rows["image"].to_pylist():
        picture = Image.open(BytesIO(content))
        pictures.append(picture)
    return to_array(pictures)


@every_edit
@pytest.mark.parametrize("name", ["cifar10_test", "mnist_test"])
def test_copies_of_photos_and_digits_are_found(data_folder, name, edit):
    images = real(data_folder, name, 1000)
    assert share_found(images, edit(images)) > 0.99


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("mnist_test", "mnist_train"),
        ("mnist_test", "characters_pool"),
        ("cifar10_test", "tiny_imagenet32_pool"),
    ],
)
def test_different_digits_and_photos_are_not_copies(data_folder, name, other):
    images = prints(real(data_folder, other, 10_000))
    for n_references in (100, 2000):
        references = prints(real(data_folder, name, n_references))
        found = copies_in(images, references, images)
        assert len(found.rows) == 0
