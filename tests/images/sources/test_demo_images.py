"""The images of the demo: what each part holds, and that its populations look alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pu_kd_pipeline.images.sources.demo_images import LETTERS, _demo, demo_part

PARTS = ("labeled", "pool", "test", "teacher_training")


def population(name: str, seed: int = 0) -> np.ndarray:
    """Return the images of the pool whose ids start with a name."""
    pool = demo_part("pool", seed)
    # A mask instead of a slice: populations are mixed in the pool.
    is_in_population = [image_id.startswith(name) for image_id in pool.ids]
    return pool.images[is_in_population]


def label_names(prefix: str) -> list[str]:
    """Return the label names of the pool's images that start with a prefix."""
    pool = demo_part("pool", 0)
    names = pool.label_names
    return [name for name in names if name.startswith(prefix)]


def test_the_parts_share_no_digit_and_use_them_all() -> None:
    sizes = []
    digits: list[str] = []
    for name in PARTS:
        ids = demo_part(name, 0).ids
        sizes.append(len(ids))
        digits += [image_id for image_id in ids if image_id.startswith("digits/")]

    assert sizes == [100, 3500, 500, 497]
    # scikit-learn has 1,797 digits. A shared one would occur in the list twice.
    assert len(digits) == 1797
    assert len(set(digits)) == 1797


def test_there_are_ten_labeled_images_of_each_digit() -> None:
    labeled = demo_part("labeled", 3)
    counts = np.bincount(labeled.labels)
    assert counts.tolist() == [10] * 10


def test_a_fifth_of_the_pool_are_digits_and_they_are_everywhere() -> None:
    pool = demo_part("pool", 0)
    is_digit = pool.labels >= 0
    assert is_digit.mean() == pytest.approx(0.2)

    # Were the digits at one end, a batch read in order would hold only one kind.
    n_in_half = len(is_digit) // 2
    first_half = is_digit[:n_in_half]
    assert first_half.mean() == pytest.approx(0.2, abs=0.03)


def test_the_pool_has_patches_and_every_letter() -> None:
    patches = label_names("patch ")
    assert len(patches) == 2100

    letters = label_names("letter ")
    assert len(letters) == 700
    characters = {name[-1] for name in letters}
    assert characters == set(LETTERS)


def test_no_image_occurs_twice() -> None:
    distinct = set()
    n_images = 0
    for name in PARTS:
        images = demo_part(name, 0).images
        n_images += len(images)
        distinct |= {image.tobytes() for image in images}

    assert len(distinct) == n_images


@pytest.mark.parametrize("name", ["digits", "letters", "patches"])
def test_every_population_has_the_same_seventeen_gray_levels(name: str) -> None:
    # The digits have values from 0 to 16. Other levels would give a population away.
    scaled = np.arange(17) * 255 / 16
    expected = np.round(scaled)

    # Sorted, as the expected levels are.
    levels = np.unique(population(name))
    np.testing.assert_array_equal(levels, expected)


def mean_ink(images: np.ndarray) -> float:
    return float(images.mean())


def spread_of_ink(images: np.ndarray) -> float:
    """Return how much the mean brightness of an image varies between images."""
    inks = images.mean(axis=(1, 2))
    return float(inks.std())


def contrast(images: np.ndarray) -> float:
    return float(images.std())


def empty_share(images: np.ndarray) -> float:
    is_empty = images == 0
    return float(is_empty.mean())


def full_share(images: np.ndarray) -> float:
    is_full = images == 1
    return float(is_full.mean())


# Otherwise a classifier would tell letters from digits by their ink instead of their shape.
@pytest.mark.parametrize(
    ("statistic", "tolerance"),
    [
        (mean_ink, {"rel": 0.03}),
        (spread_of_ink, {"rel": 0.2}),
        (contrast, {"rel": 0.05}),
        (empty_share, {"abs": 0.05}),
        (full_share, {"abs": 0.03}),
    ],
)
def test_letters_have_the_ink_the_contrast_and_the_black_of_digits(
    statistic: Callable[[np.ndarray], float], tolerance: dict[str, float]
) -> None:
    digits = population("digits") / 255
    letters = population("letters") / 255

    of_digits = statistic(digits)
    assert statistic(letters) == pytest.approx(of_digits, **tolerance)


def test_the_seed_decides_everything() -> None:
    first = demo_part("pool", 0)
    # The parts are cached: without this, the second call would return the same object.
    _demo.cache_clear()
    again = demo_part("pool", 0)
    assert again is not first
    assert again.ids == first.ids
    np.testing.assert_array_equal(again.images, first.images)


def test_another_seed_gives_other_letters_in_another_order() -> None:
    first = demo_part("pool", 0)
    other = demo_part("pool", 1)
    assert other.ids != first.ids

    letters = population("letters", seed=0)
    other_letters = population("letters", seed=1)
    assert not np.array_equal(letters, other_letters)


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(KeyError, match="validation"):
        demo_part("validation", 0)
