"""Random views against a slow reference, one image at a time, and normalization."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.testing import assert_close

from pu_kd_pipeline.learning.augmentation import (
    Normalize,
    copied,
    draw_views,
    gathered,
    n_views,
    take_views,
)
from tests.learning.generators import seeded_generator


def _random_images(*shape, lowest=0):
    generator = seeded_generator()
    return torch.randint(lowest, 256, shape, dtype=torch.uint8, generator=generator)


def _all_views(image, padding, flip):
    """Return every view of an image, cropped one after the other."""
    height, width = image.shape[1:]
    n_offsets = 2 * padding + 1
    offsets = range(n_offsets)
    all_sides = (padding,) * 4
    padded = functional.pad(image, all_sides)

    views = []
    for top in offsets:
        for left in offsets:
            bottom = top + height
            right = left + width
            crop = padded[:, top:bottom, left:right]
            views.append(crop)
            if flip:
                mirrored = crop.flip(2)
                views.append(mirrored)
    return views


def _distinct(images):
    """Return the set of different images, as tuples of their pixels."""
    pixels = [image.flatten().tolist() for image in images]
    return set(map(tuple, pixels))


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (1, False), (0, True)])
def test_random_views_are_crops_and_mirror_images_and_all_occur(padding, flip):
    # No pixel is 0, so that the padding can be told from the image.
    image = _random_images(3, 5, 6, lowest=1)
    # 2,000 draws of at most 50 views: none is missed.
    copies = image.expand(2000, -1, -1, -1)

    numbers = draw_views(len(copies), padding=padding, flip=flip, generator=seeded_generator())
    views = take_views(copies, numbers, padding=padding, flip=flip)
    found = _distinct(views)
    expected_views = _all_views(image, padding, flip)
    expected = _distinct(expected_views)

    assert found == expected


CASES = pytest.mark.parametrize(("padding", "flip"), [(2, True), (1, False), (0, True), (0, False)])


@CASES
def test_the_numbered_views_are_all_views(padding, flip):
    image = _random_images(3, 5, 6, lowest=1)
    n = n_views(padding, flip)
    numbers = torch.arange(n)
    copies = image.expand(n, -1, -1, -1)

    views = take_views(copies, numbers, padding=padding, flip=flip)
    expected = _all_views(image, padding, flip)

    assert len(views) == len(expected)
    assert _distinct(views) == _distinct(expected)


@CASES
def test_all_views_are_drawn_equally_often(padding, flip):
    n = n_views(padding, flip)
    n_draws = 200 * n
    generator = seeded_generator()

    drawn = draw_views(n_draws, padding=padding, flip=flip, generator=generator)
    counts = torch.bincount(drawn, minlength=n)

    assert len(counts) == n
    # 200 are expected of each
    assert counts.min() > 100
    assert counts.max() < 300


def _slow_windows(padded, tops, lefts, is_flipped, size):
    """Return one crop of every padded image, mirrored where asked."""
    height, width = size
    windows = []
    for image, top, left, flips in zip(padded, tops, lefts, is_flipped, strict=True):
        bottom = top + height
        right = left + width
        window = image[:, top:bottom, left:right]
        if flips:
            window = window.flip(2)
        windows.append(window)
    return windows


def _draw_windows(n):
    """Draw where each of n images is cropped, and whether it is mirrored."""
    generator = seeded_generator(1)
    # Offsets of a padding of two pixels on each side.
    tops = torch.randint(0, 5, (n,), generator=generator)
    lefts = torch.randint(0, 5, (n,), generator=generator)
    uniform = torch.rand(n, generator=generator)
    is_flipped = uniform < 0.5
    return tops, lefts, is_flipped


@pytest.mark.parametrize("take", [gathered, copied])
@pytest.mark.parametrize("shape", [(0, 3, 5, 6), (9, 1, 6, 6), (40, 3, 5, 6)])
def test_windows_are_cropped_and_mirrored_as_asked(take, shape):
    n, _, *size = shape
    images = _random_images(*shape)
    padded = functional.pad(images, (2, 2, 2, 2))
    windows = _draw_windows(n)

    size_of_views = torch.Size(shape)
    views = take(padded, *windows, size_of_views)
    expected = _slow_windows(padded, *windows, size)

    assert views.shape == shape
    for view, window in zip(views, expected, strict=True):
        assert torch.equal(view, window)


def test_images_with_a_single_view_are_returned_as_they_are():
    images = _random_images(4, 1, 8, 8)
    views = take_views(images, torch.zeros(4, dtype=torch.int64), padding=0, flip=False)

    # Not even a copy is made.
    assert views is images


def test_images_of_a_batch_get_different_views():
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    images = image.expand(64, 1, 8, 8)

    numbers = draw_views(64, padding=2, flip=True, generator=seeded_generator(1))
    views = take_views(images, numbers, padding=2, flip=True)
    distinct_views = _distinct(views)

    # Of 50 that are possible.
    assert len(distinct_views) > 20


def _per_channel(values):
    """Return values that broadcast over the channels of (N, C, H, W)."""
    vector = torch.as_tensor(values)
    return vector.view(1, -1, 1, 1)


def test_normalization_is_the_definition():
    images = _random_images(2, 3, 4, 4)
    mean = [0.1, 0.5, 0.9]
    std = [0.2, 0.3, 0.4]
    normalize = Normalize(mean, std)

    normalized = normalize(images)
    unit_range = images / 255
    centered = unit_range - _per_channel(mean)
    expected = centered / _per_channel(std)

    assert_close(normalized, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_normalization_is_one_multiply_add_to_the_last_bit(n, n_channels):
    images = _random_images(n, n_channels, 6, 5)
    mean = torch.rand(n_channels) + 0.1
    std = torch.rand(n_channels) + 0.1
    normalize = Normalize(mean.tolist(), std.tolist())

    normalized = normalize(images)
    # The mean and the division by 255 are folded into one scale and one shift.
    std_in_levels = 255.0 * std
    scale = _per_channel(1.0 / std_in_levels)
    shift = _per_channel(-mean / std)
    expected = torch.addcmul(shift, images.float(), scale)

    assert torch.equal(normalized, expected)


def test_gray_images_keep_their_memory_order():
    images = _random_images(2, 1, 5, 4)
    normalize = Normalize([0.5], [0.25])
    normalized = normalize(images)

    assert normalized.stride() == (20, 20, 4, 1)


def test_color_images_come_with_channels_last():
    images = _random_images(2, 3, 5, 4)
    normalize = Normalize([0.5] * 3, [0.25] * 3)

    normalized = normalize(images)
    centered = images / 255 - 0.5
    expected = centered / 0.25

    # The stride of the channels is 1: they are next to each other in memory.
    assert normalized.stride() == (60, 1, 12, 3)
    assert_close(normalized, expected, rtol=1e-5, atol=1e-5)


def test_reversed_channels_equal_swapped_pixels():
    images = _random_images(3, 3, 6, 5)
    # Per channel of the network: blue, green, red.
    mean = [0.1, 0.5, 0.9]
    std = [0.2, 0.3, 0.4]
    in_order = Normalize(mean, std)
    is_reversed = Normalize(mean, std, is_reversed=True)

    swapped = images[:, [2, 1, 0]]
    assert torch.equal(is_reversed(images), in_order(swapped))
    assert is_reversed(images).stride() == in_order(images).stride()


@given(
    low=st.floats(-300, 100),
    width=st.floats(0.1, 500),
    mean=st.floats(-1, 1),
    std=st.floats(0.05, 2),
)
@settings(deadline=None, max_examples=30)
def test_another_range_with_scaled_mean_and_std_is_the_same_input(low, width, mean, std):
    images = _random_images(2, 3, 4, 4)
    in_unit_range = Normalize([mean] * 3, [std] * 3)
    # x in [0, 1] becomes low + x * width, and mean and std with it.
    scaled = Normalize([low + width * mean] * 3, [width * std] * 3, value_range=(low, low + width))
    tolerance = 1e-4 * (1 + (abs(low) + width) / width / std)
    assert_close(scaled(images), in_unit_range(images), rtol=1e-3, atol=tolerance)


def test_pixels_of_0_to_255_are_what_a_network_without_normalization_reads():
    images = _random_images(2, 3, 4, 4)
    normalize = Normalize([0.0] * 3, [1.0] * 3, value_range=(0.0, 255.0))
    assert_close(normalize(images), images.float(), rtol=1e-6, atol=0.0)
