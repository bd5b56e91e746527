"""Near-duplicates: copies are found however they were saved, different pictures are not, however it is computed."""

from __future__ import annotations

import itertools
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from pu_kd_pipeline.learning import near_duplicates
from pu_kd_pipeline.learning.near_duplicates import copy_limits, find_copies, fingerprints

LIMITS = {"max_distance": 0.1, "max_ratio": 0.12}  # of conf/base
BICUBIC, LANCZOS, BILINEAR = (
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.BILINEAR,
)


def textures(n: int, seed: int = 0, size_px: int = 32) -> np.ndarray:
    """Return (n, 3, H, W) uint8 clouds of color, whose spectrum falls like a photo's."""
    rng = np.random.default_rng(seed)
    frequencies = np.hypot(np.fft.fftfreq(size_px)[:, None], np.fft.fftfreq(size_px)) + 1 / size_px
    noise = np.fft.ifft2(
        np.fft.fft2(rng.normal(size=(n, 3, size_px, size_px))) / frequencies**1.2
    ).real
    noise = (
        noise - noise.mean(axis=(1, 2, 3), keepdims=True) + 0.5 * noise.mean(axis=1, keepdims=True)
    )
    return np.clip(128 + 40 * noise / noise.std(axis=(1, 2, 3), keepdims=True), 0, 255).astype(
        np.uint8
    )


def strokes(n: int, seed: int = 0) -> np.ndarray:
    """Return (n, 1, 28, 28) uint8 bars that a hand might have drawn, much more alike than photos are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-13.5:14, -13.5:14]
    waves = [
        y / 10,
        *(np.sin(k * np.pi * y / 20) for k in range(1, 5)),
        *(np.cos(k * np.pi * y / 20) for k in range(3)),
    ]
    middles = sum(rng.normal(scale=0.8, size=(n, 1, 1)) * wave for wave in waves)
    widths = rng.uniform(1.2, 2.2, size=(n, 1, 1))
    return (255 * np.clip(widths - np.abs(x - middles) + 0.5, 0, 1) * (np.abs(y) < 10)).astype(
        np.uint8
    )[:, None]


def prints(images: np.ndarray) -> Tensor:
    return fingerprints(torch.from_numpy(np.ascontiguousarray(images)))


def limits_of(references: Tensor, others: Tensor | None = None) -> Tensor:
    return copy_limits(references, references[:0] if others is None else others, **LIMITS)


def pictures(images: np.ndarray) -> list[Image.Image]:
    return [
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        for image in images
    ]


def arrays(images: list[Image.Image]) -> np.ndarray:
    stacked = np.stack([np.asarray(image) for image in images])
    return stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)


def as_jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    saved = []
    for picture in pictures(images):
        picture.save(buffer := BytesIO(), "JPEG", quality=quality)
        saved.append(Image.open(buffer))
    return arrays(saved)


def resized(
    images: np.ndarray, factor: float, there: Image.Resampling, back: Image.Resampling
) -> np.ndarray:
    size = images.shape[-1]
    between = (round(factor * size),) * 2
    return arrays(
        [picture.resize(between, there).resize((size, size), back) for picture in pictures(images)]
    )


def lit(images: np.ndarray, contrast: float, brightness: float) -> np.ndarray:
    return np.clip(contrast * images.astype(float) + brightness, 0, 255).astype(np.uint8)


def gray(images: np.ndarray) -> np.ndarray:
    return arrays([picture.convert("L").convert("RGB") for picture in pictures(images)])


EDITS = {
    "saved as JPEG of quality 70": lambda images: as_jpeg(images, 70),
    "enlarged, and reduced by another filter": lambda images: resized(images, 2, BICUBIC, LANCZOS),
    "enlarged by half, and reduced": lambda images: resized(images, 1.5, LANCZOS, BICUBIC),
    "brighter, of more contrast": lambda images: lit(images, 1.1, 5),
    "darker, of less contrast": lambda images: lit(images, 0.8, -10),
    "all of it": lambda images: as_jpeg(lit(resized(images, 2, BICUBIC, LANCZOS), 0.9, 5), 70),
}


def share_found(originals: np.ndarray, copies: np.ndarray) -> float:
    """Return how many of the copies are found, each as a copy of its own original."""
    references = prints(originals)
    found = find_copies(prints(copies), references, limits_of(references))
    return float((found.rows == found.references).sum()) / len(copies)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_copies_of_textures_and_of_strokes_are_found(edit):
    assert share_found(textures(200), edit(textures(200))) == 1
    assert share_found(strokes(20), edit(strokes(20))) >= 0.9


def test_a_gray_copy_is_found():
    assert share_found(textures(200), gray(textures(200))) == 1


def test_different_pictures_are_no_copies():
    for make in (textures, strokes):
        images, references = prints(make(3000, seed=0)), prints(make(100, seed=1))
        assert not len(find_copies(images, references, limits_of(references, images)).rows)


def test_what_is_alike_in_a_crowd_of_its_kind_is_no_copy_there():
    one, crowd, photos = prints(strokes(1)), prints(strokes(400)[1:]), prints(textures(399))
    other = crowd[int((crowd @ one[0]).argmax())][None]
    assert float(1 - other[0] @ one[0]) < 0.1
    for others, n_found in ((photos, 1), (crowd, 0)):
        assert len(find_copies(other, one, limits_of(one, others)).rows) == n_found


def test_an_exact_copy_has_no_distance_and_copies_among_the_references_hide_none():
    images = textures(60)
    references = prints(np.concatenate([images, as_jpeg(images[:1], 90), as_jpeg(images[:1], 80)]))
    found = find_copies(prints(images), references, limits_of(references))
    assert found.rows.tolist() == found.references.tolist() == list(range(60))
    assert found.distances.max() < 1e-6


def test_the_nearest_of_several_copies_is_named():
    images = textures(50)
    references = prints(
        np.concatenate([as_jpeg(images[:1], 40), as_jpeg(images[:1], 95), images[1:]])
    )
    assert find_copies(
        prints(images[:1]), references, limits_of(references)
    ).references.tolist() == [1]


def gradients(image: np.ndarray) -> np.ndarray:
    """Return all differences between neighboring gray pixels of one (C, 16, 16) image, as a unit vector."""
    pixels = (
        np.tensordot(near_duplicates.LUMA, image, axes=1)
        if len(image) == 3
        else image[0].astype(float)
    )
    differences = np.concatenate([np.diff(pixels, axis=axis).ravel() for axis in (0, 1)])
    return differences / np.linalg.norm(differences)


@pytest.mark.parametrize("channels", [1, 3])
def test_products_of_fingerprints_are_those_of_gradients(channels):
    images = textures(12, size_px=16)[:, :channels]
    expected = np.array([[gradients(a) @ gradients(b) for b in images] for a in images])
    np.testing.assert_allclose((prints(images) @ prints(images).T).numpy(), expected, atol=1e-5)


def test_every_pair_that_a_slow_search_finds_is_found():
    originals = textures(80)
    copies = np.concatenate(
        [
            as_jpeg(originals, 20)[:40],
            resized(originals, 0.4, BILINEAR, BICUBIC)[40:],
            textures(40, 1),
        ]
    )
    images, references = prints(copies), prints(originals)
    limits = copy_limits(references, prints(textures(30, 2)), max_distance=0.2, max_ratio=0.25)
    distances = 1 - (images.double() @ references.double().T)
    known = torch.cat([references, prints(textures(30, 2))]).double()
    between = 1 - references.double() @ known.T
    for row in range(80):
        others = sorted(float(between[row, other]) for other in range(110) if other != row)
        assert float(limits[row]) == pytest.approx(min(0.2, 0.25 * others[4]), abs=1e-5)
    expected = {}
    for row in range(len(images)):
        near = [other for other in range(80) if distances[row, other] <= limits[other]]
        if near:
            expected[row] = min(near, key=lambda other: float(distances[row, other]))
    found = find_copies(images, references, limits)
    assert dict(zip(found.rows.tolist(), found.references.tolist(), strict=True)) == expected
    assert 20 < len(expected) < 100
    np.testing.assert_allclose(
        found.distances.numpy(), [float(distances[pair]) for pair in expected.items()], atol=1e-5
    )


def test_the_size_of_batches_and_blocks_changes_nothing(monkeypatch):
    originals = textures(70)
    images, references = prints(as_jpeg(originals, 30)), prints(originals)
    limits = limits_of(references)
    whole = find_copies(images, references, limits)
    parts = torch.cat(
        [prints(as_jpeg(originals[start : start + 7], 30)) for start in range(0, 70, 7)]
    )
    torch.testing.assert_close(parts, images, atol=1e-6, rtol=0)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 700)
    torch.testing.assert_close(limits_of(references), limits, atol=1e-6, rtol=0)
    again = find_copies(parts, references, limits)
    assert again.rows.tolist() == whole.rows.tolist()
    assert again.references.tolist() == whole.references.tolist()


def test_being_a_copy_is_mutual():
    one, other = textures(100), as_jpeg(textures(100), 50)
    for limit in (0.001, 0.01, 0.1):
        there, back = (
            find_copies(prints(a), prints(b), torch.full((100,), limit))
            for a, b in ((one, other), (other, one))
        )
        assert there.rows.tolist() == back.rows.tolist()
        torch.testing.assert_close(there.distances, back.distances)


def test_flat_images_are_copies_of_nothing():
    images = np.concatenate([np.full((2, 3, 32, 32), 77, dtype=np.uint8), textures(20)])
    references = prints(images)
    assert not references[:2].any()
    limits = limits_of(references)
    assert limits[:2].tolist() == [-1, -1]
    assert find_copies(references, references, limits).rows.tolist() == list(range(2, 22))


def test_one_reference_and_none_are_enough():
    images = prints(textures(3))
    assert find_copies(images, images[:1], limits_of(images[:1])).rows.tolist() == [0]
    assert not len(find_copies(images, images[:0], limits_of(images[:0])).rows)
    assert not len(find_copies(images[:0], images, limits_of(images)).rows)


def test_other_tensors_and_limits_are_refused():
    with pytest.raises(
        ValueError, match=r"\(N, 1 or 3, H, W\) uint8, got \(2, 3, 8, 8\) torch.float32"
    ):
        fingerprints(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\], got 0 and 0.1"):
        copy_limits(prints(textures(2)), prints(textures(2)), max_distance=0, max_ratio=0.1)


# --- real images ------------------------------------------------------------------------------------------------------


def real(folder: Path, name: str, n: int) -> np.ndarray:
    table = pq.read_table(folder / f"{name}.parquet", columns=["image"]).slice(0, n)
    return arrays([Image.open(BytesIO(each.as_py())) for each in table["image"]])


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_copies_of_photos_and_digits_are_found(data_folder, edit):
    for name in ("cifar10_test", "mnist_test"):
        images = real(data_folder, name, 1000)
        assert share_found(images, edit(images)) > 0.99


def test_different_digits_and_photos_are_no_copies(data_folder):
    for name, others in (
        ("mnist_test", ("mnist_train", "characters_pool")),
        ("cifar10_test", ("tiny_imagenet32_pool",)),
    ):
        for n_references, other in itertools.product((100, 2000), others):
            references, images = (
                prints(real(data_folder, name, n_references)),
                prints(real(data_folder, other, 10_000)),
            )
            assert not len(find_copies(images, references, limits_of(references, images)).rows)
