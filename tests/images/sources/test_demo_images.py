from __future__ import annotations

import numpy as np
import pytest

from pu_kd_pipeline.images.sources.demo_images import LETTERS, _demo, demo_part

PARTS = ("labeled", "pool", "test", "teacher_training")


def population(name: str, seed: int = 0) -> np.ndarray:
    """Return the images of the pool whose ids start with a name."""
    pool = demo_part("pool", seed)
    is_in = [image_id.startswith(name) for image_id in pool.ids]
    return pool.images[is_in]


def test_the_parts_share_no_digit_and_use_them_all() -> None:
    sizes = []
    digits: list[str] = []
    for name in PARTS:
        ids = demo_part(name, 0).ids
        sizes.append(len(ids))
        digits += [image_id for image_id in ids if image_id.startswith("digits/")]
    assert sizes == [100, 3500, 500, 497]
    assert len(digits) == len(set(digits)) == 1797


def test_there_are_ten_labeled_images_of_each_digit() -> None:
    assert np.bincount(demo_part("labeled", 3).labels).tolist() == [10] * 10


def test_a_fifth_of_the_pool_are_digits_and_they_are_everywhere() -> None:
    pool = demo_part("pool", 0)
    is_digit = pool.labels >= 0
    first_half = is_digit[: len(is_digit) // 2]
    assert is_digit.mean() == pytest.approx(0.2)
    assert first_half.mean() == pytest.approx(0.2, abs=0.03)
    letters = [name for name in pool.label_names if name.startswith("letter ")]
    patches = [name for name in pool.label_names if name.startswith("patch ")]
    assert len(letters) == 700
    assert len(patches) == 2100
    assert {name[-1] for name in letters} == set(LETTERS)


def test_no_image_occurs_twice() -> None:
    images = np.concatenate([demo_part(name, 0).images for name in PARTS])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


@pytest.mark.parametrize("name", ["digits", "letters", "patches"])
def test_every_population_has_the_same_seventeen_gray_levels(name: str) -> None:
    levels = np.round(np.arange(17) * 255 / 16).astype(np.uint8)
    assert set(np.unique(population(name))) == set(levels)


def test_letters_have_the_ink_the_contrast_and_the_black_of_digits() -> None:
    digits = population("digits") / 255
    letters = population("letters") / 255
    digit_inks = digits.mean(axis=(1, 2))
    letter_inks = letters.mean(axis=(1, 2))
    assert letter_inks.mean() == pytest.approx(digit_inks.mean(), rel=0.03)
    assert letter_inks.std() == pytest.approx(digit_inks.std(), rel=0.2)
    assert letters.std() == pytest.approx(digits.std(), rel=0.05)
    # shares of empty and of full pixels
    assert (letters == 0).mean() == pytest.approx((digits == 0).mean(), abs=0.05)
    assert (letters == 1).mean() == pytest.approx((digits == 1).mean(), abs=0.03)


def test_the_seed_decides_everything() -> None:
    first = demo_part("pool", 0)
    _demo.cache_clear()
    again = demo_part("pool", 0)
    assert again is not first
    assert again.ids == first.ids
    np.testing.assert_array_equal(again.images, first.images)
    assert demo_part("pool", 1).ids != first.ids
    assert not np.array_equal(population("letters", 0), population("letters", 1))


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(KeyError, match="validation"):
        demo_part("validation", 0)
