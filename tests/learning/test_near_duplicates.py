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

LIMITS = {"max_distance": 0.1, "max_ratio": 0.12}  # of conf/base
BICUBIC = Image.Resampling.BICUBIC
LANCZOS = Image.Resampling.LANCZOS
BILINEAR = Image.Resampling.BILINEAR
Edit = Callable[[np.ndarray], np.ndarray]


# --- made-up pictures


def to_uint8(images: np.ndarray) -> np.ndarray:
    return np.clip(images, 0, 255).astype(np.uint8)


def textures(n: int, seed: int = 0, size_px: int = 32) -> np.ndarray:
    """Return (n, 3, H, W) uint8 clouds of color, whose spectrum falls like a photo's."""
    rng = np.random.default_rng(seed)
    frequencies_1d = np.fft.fftfreq(size_px)
    frequencies = np.hypot(frequencies_1d[:, None], frequencies_1d) + 1 / size_px
    spectrum = np.fft.fft2(rng.normal(size=(n, 3, size_px, size_px)))
    noise = np.fft.ifft2(spectrum / frequencies**1.2).real
    # Centered, and with a part that all channels share, as in a photo.
    centered = noise - noise.mean(axis=(1, 2, 3), keepdims=True)
    clouds = centered + 0.5 * noise.mean(axis=1, keepdims=True)
    contrast = 40 / clouds.std(axis=(1, 2, 3), keepdims=True)
    return to_uint8(128 + contrast * clouds)


def strokes(n: int, seed: int = 0) -> np.ndarray:
    """Return (n, 1, 28, 28) uint8 bars like a pen's, much more alike than photos are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-13.5:14, -13.5:14]
    waves = [y / 10]
    phases = np.pi * y / 20
    for k in range(1, 5):
        waves.append(np.sin(k * phases))
    for k in range(3):
        waves.append(np.cos(k * phases))
    # Slow waves with random heights: a smooth line from top to bottom.
    # Where the stroke is in each row of pixels.
    centers = np.zeros((n, 28, 28))
    for wave in waves:
        centers += rng.normal(scale=0.8, size=(n, 1, 1)) * wave
    half_widths = rng.uniform(1.2, 2.2, size=(n, 1, 1))
    ink = np.clip(half_widths - np.abs(x - centers) + 0.5, 0, 1)
    is_inside = np.abs(y) < 10
    return to_uint8(255 * ink * is_inside)[:, None]


def to_pictures(images: np.ndarray) -> list[Image.Image]:
    if images.shape[1] == 1:
        return [Image.fromarray(image[0]) for image in images]
    return [Image.fromarray(image.transpose(1, 2, 0)) for image in images]


def to_array(pictures: list[Image.Image]) -> np.ndarray:
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    if stacked.ndim == 3:
        return stacked[:, None]
    return stacked.transpose(0, 3, 1, 2)


# --- edits


def as_jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    decoded = []
    for picture in to_pictures(images):
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        decoded.append(Image.open(buffer))
    return to_array(decoded)


def resized(
    images: np.ndarray, factor: float, there: Image.Resampling, back: Image.Resampling
) -> np.ndarray:
    """Resize by a factor and back to the original size."""
    size_px = images.shape[-1]
    other_px = round(factor * size_px)
    results = []
    for picture in to_pictures(images):
        other = picture.resize((other_px, other_px), there)
        results.append(other.resize((size_px, size_px), back))
    return to_array(results)


def lit(images: np.ndarray, contrast: float, brightness: float) -> np.ndarray:
    return to_uint8(contrast * images.astype(float) + brightness)


def gray(images: np.ndarray) -> np.ndarray:
    results = []
    for picture in to_pictures(images):
        results.append(picture.convert("L").convert("RGB"))
    return to_array(results)


def several_edits(images: np.ndarray) -> np.ndarray:
    enlarged = resized(images, 2, BICUBIC, LANCZOS)
    return as_jpeg(lit(enlarged, 0.9, 5), 70)


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
    return fingerprints(torch.from_numpy(np.ascontiguousarray(images)))


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
    return int(is_own_original.sum()) / len(copies)


@every_edit
def test_copies_of_textures_and_of_strokes_are_found(edit):
    assert share_found(textures(200), edit(textures(200))) == 1
    assert share_found(strokes(20), edit(strokes(20))) >= 0.9


def test_a_gray_copy_is_found():
    assert share_found(textures(200), gray(textures(200))) == 1


@pytest.mark.parametrize("make", [textures, strokes])
def test_different_pictures_are_not_copies(make):
    # 300,000 pairs, none of which may pass.
    images = prints(make(3000, seed=0))
    references = prints(make(100, seed=1))
    assert len(copies_in(images, references, images).rows) == 0


def test_a_similar_image_is_a_copy_only_where_similar_images_are_rare():
    reference = prints(strokes(1))
    crowd = prints(strokes(400)[1:])
    photos = prints(textures(399))
    products = crowd @ reference[0]
    nearest = crowd[[int(products.argmax())]]

    assert float(1 - products.max()) < 0.1
    assert len(copies_in(nearest, reference, photos).rows) == 1
    assert len(copies_in(nearest, reference, crowd).rows) == 0


def test_an_exact_copy_has_distance_zero_and_copies_among_the_references_hide_none():
    images = textures(60)
    first = images[:1]
    references = prints(np.concatenate([images, as_jpeg(first, 90), as_jpeg(first, 80)]))
    found = copies_in(prints(images), references)

    assert found.rows.tolist() == list(range(60))
    assert found.references.tolist() == list(range(60))
    assert found.distances.max() < 1e-6


def test_of_several_copies_the_nearest_is_returned():
    images = textures(50)
    first = images[:1]
    # The worse copy comes first, so that the order does not decide.
    references = prints(np.concatenate([as_jpeg(first, 40), as_jpeg(first, 95), images[1:]]))
    found = copies_in(prints(first), references)

    assert found.references.tolist() == [1]


# --- against slow references


def slow_fingerprint(image: np.ndarray) -> np.ndarray:
    """Return all differences between neighboring gray pixels of a (C, 16, 16) image, normalized."""
    pixels = image[0].astype(float)
    if len(image) == 3:
        pixels = np.tensordot(near_duplicates.LUMA, image, axes=1)
    vertical = np.diff(pixels, axis=0)
    horizontal = np.diff(pixels, axis=1)
    differences = np.concatenate([vertical.ravel(), horizontal.ravel()])
    return differences / np.linalg.norm(differences)


@pytest.mark.parametrize("channels", [1, 3])
def test_products_of_fingerprints_are_those_of_gradients(channels):
    images = textures(12, size_px=16)[:, :channels]
    gradients = np.stack([slow_fingerprint(image) for image in images])
    vectors = prints(images)
    products = (vectors @ vectors.T).numpy()

    assert_allclose(products, gradients @ gradients.T, atol=1e-5)


def test_limits_follow_the_fifth_nearest_other_image():
    references = prints(textures(80))
    others = prints(textures(30, 2))
    limits = copy_limits(references, others, max_distance=0.2, max_ratio=0.25)
    known = torch.cat([references, others]).double()
    distances = 1 - references.double() @ known.T
    for row, row_distances in enumerate(distances.tolist()):
        # The references come first among the known images.
        del row_distances[row]  # its distance to itself
        fifth = sorted(row_distances)[4]
        assert float(limits[row]) == pytest.approx(min(0.2, 0.25 * fifth), abs=1e-5)


def test_every_pair_that_a_slow_search_finds_is_found():
    originals = textures(80)
    bad_jpegs = as_jpeg(originals, 20)[:40]
    shrunk = resized(originals, 0.4, BILINEAR, BICUBIC)[40:]
    images = prints(np.concatenate([bad_jpegs, shrunk, textures(40, 1)]))
    references = prints(originals)
    others = prints(textures(30, 2))
    limits = copy_limits(references, others, max_distance=0.2, max_ratio=0.25)
    distances = 1 - images.double() @ references.double().T
    expected_references = {}
    expected_distances = []
    for row in range(len(images)):
        is_near = distances[row] <= limits
        if is_near.any():
            nearest = distances[row].masked_fill(~is_near, 9.0).min(dim=0)
            expected_references[row] = int(nearest.indices)
            expected_distances.append(float(nearest.values))

    # Some of the copies are too bad to be found: the limits matter here.
    assert 20 < len(expected_references) < 100

    found = find_copies(images, references, limits)
    pairs = zip(found.rows.tolist(), found.references.tolist(), strict=True)

    assert dict(pairs) == expected_references
    assert_allclose(found.distances.numpy(), expected_distances, atol=1e-5)


# --- invariances and limits


def test_the_size_of_batches_and_blocks_changes_nothing(monkeypatch):
    originals = textures(70)
    copies = as_jpeg(originals, 30)
    references = prints(originals)
    limits = limits_of(references)
    whole = find_copies(prints(copies), references, limits)
    parts = torch.cat([prints(batch) for batch in np.split(copies, 10)])

    assert_close(parts, prints(copies), atol=1e-6, rtol=0)

    # Small enough for several blocks in both functions.
    monkeypatch.setattr(near_duplicates, "_BLOCK", 700)
    assert_close(limits_of(references), limits, atol=1e-6, rtol=0)

    again = find_copies(parts, references, limits)
    assert torch.equal(again.rows, whole.rows)
    assert torch.equal(again.references, whole.references)


@pytest.mark.parametrize("limit", [0.001, 0.01, 0.1])
def test_being_a_copy_is_mutual(limit):
    originals = prints(textures(100))
    copies = prints(as_jpeg(textures(100), 50))
    limits = torch.full((100,), limit)
    there = find_copies(originals, copies, limits)
    back = find_copies(copies, originals, limits)

    assert torch.equal(there.rows, back.rows)
    assert_close(there.distances, back.distances)


def test_a_flat_image_has_no_copies():
    flat = np.full((2, 3, 32, 32), 77, dtype=np.uint8)
    references = prints(np.concatenate([flat, textures(20)]))
    assert not references[:2].any()
    assert limits_of(references)[:2].tolist() == [-1, -1]
    assert copies_in(references, references).rows.tolist() == list(range(2, 22))


def test_one_reference_and_none_are_enough():
    images = prints(textures(3))
    none = images[:0]
    assert copies_in(images, images[:1]).rows.tolist() == [0]
    assert len(copies_in(images, none).rows) == 0
    assert len(copies_in(none, images).rows) == 0


def test_other_tensors_and_limits_are_refused():
    message = r"\(N, 1 or 3, H, W\) uint8, got \(2, 3, 8, 8\) torch.float32"
    with pytest.raises(ValueError, match=message):
        fingerprints(torch.zeros(2, 3, 8, 8))

    images = prints(textures(2))
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\], got 0 and 0.1"):
        copy_limits(images, images, max_distance=0, max_ratio=0.1)


# --- real images


def real(folder: Path, name: str, n: int) -> np.ndarray:
    table = pq.read_table(folder / f"{name}.parquet", columns=["image"]).slice(0, n)
    pictures = []
    for content in table["image"].to_pylist():
        pictures.append(Image.open(BytesIO(content)))
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
        assert len(copies_in(images, references, images).rows) == 0
