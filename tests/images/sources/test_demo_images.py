from __future__ import annotations

import numpy as np
import pytest

from pu_kd_pipeline.images.sources.demo_images import LETTERS, _demo, demo_part

PARTS = ("labeled", "pool", "test", "teacher_training")


def population(name: str, seed: int = 0) -> np.ndarray:
    part = demo_part("pool", seed)
    return part.images[[image_id.startswith(name) for image_id in part.ids]]


def test_the_parts_share_no_digit_and_use_them_all() -> None:
    digits = [
        image_id
        for name in PARTS
        for image_id in demo_part(name, 0).ids
        if image_id.startswith("digits/")
    ]
    assert len(digits) == len(set(digits)) == 1797
    assert [len(demo_part(name, 0).ids) for name in PARTS] == [100, 3500, 500, 497]


def test_there_are_ten_labeled_images_of_each_digit() -> None:
    assert np.bincount(demo_part("labeled", 3).labels).tolist() == [10] * 10


def test_a_fifth_of_the_pool_are_digits_and_their_place_does_not_tell() -> None:
    pool = demo_part("pool", 0)
    is_digit = pool.labels >= 0
    assert is_digit.mean() == pytest.approx(0.2)
    assert is_digit[: len(is_digit) // 2].mean() == pytest.approx(0.2, abs=0.03)
    names = np.array(pool.label_names)
    assert sum(name.startswith("letter ") for name in names) == 700
    assert sum(name.startswith("patch ") for name in names) == 2100
    assert {name[-1] for name in names if name.startswith("letter ")} == set(LETTERS)


def test_no_image_occurs_twice() -> None:
    images = np.concatenate([demo_part(name, 0).images for name in PARTS])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


@pytest.mark.parametrize("name", ["digits", "letters", "patches"])
def test_every_population_has_the_same_seventeen_gray_levels(name: str) -> None:
    levels = np.round(np.arange(17) * 255 / 16).astype(np.uint8)
    assert set(np.unique(population(name))) == set(levels)


def test_letters_have_the_ink_the_contrast_and_the_black_of_digits() -> None:
    digits, letters = (
        population("digits").astype(float) / 255,
        population("letters").astype(float) / 255,
    )
    assert letters.mean() == pytest.approx(digits.mean(), rel=0.03)
    assert letters.mean(axis=(1, 2)).std() == pytest.approx(digits.mean(axis=(1, 2)).std(), rel=0.2)
    assert letters.std() == pytest.approx(digits.std(), rel=0.05)
    assert (letters == 0).mean() == pytest.approx((digits == 0).mean(), abs=0.05)
    assert (letters == 1).mean() == pytest.approx((digits == 1).mean(), abs=0.03)


def test_the_seed_decides_everything() -> None:
    first = demo_part("pool", 0)
    _demo.cache_clear()
    again, other = demo_part("pool", 0), demo_part("pool", 1)
    assert again is not first
    assert again.ids == first.ids
    np.testing.assert_array_equal(again.images, first.images)
    assert other.ids != first.ids
    assert not np.array_equal(population("letters", 0), population("letters", 1))


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(KeyError, match="validation"):
        demo_part("validation", 0)
