"""Random views against a slow reference, one image at a time, and normalization."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pu_kd_pipeline.learning.augmentation import (
    Normalize,
    copied,
    draw_views,
    gathered,
    n_views,
    random_views,
    take_views,
)


def _random_images(*shape, lowest=0):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(lowest, 256, shape, dtype=torch.uint8, generator=generator)


def _all_views(image, padding, flip):
    """Return every view of an image, cropped one after the other."""
    height, width = image.shape[1:]
    padded = functional.pad(image, (padding,) * 4)
    views = []
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            views.append(crop)
            if flip:
                views.append(crop.flip(2))
    return views


def _distinct(images):
    return {tuple(image.flatten().tolist()) for image in images}


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (1, False), (0, True)])
def test_random_views_are_crops_and_mirror_images_and_all_occur(padding, flip):
    # No pixel is 0, so that the padding can be told from the image.
    image = _random_images(3, 5, 6, lowest=1)
    copies = image.expand(2000, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    views = random_views(copies, padding=padding, flip=flip, generator=generator)
    assert _distinct(views) == _distinct(_all_views(image, padding, flip))


CASES = pytest.mark.parametrize(("padding", "flip"), [(2, True), (1, False), (0, True), (0, False)])


@CASES
def test_the_numbered_views_are_all_views(padding, flip):
    image = _random_images(3, 5, 6, lowest=1)
    numbers = torch.arange(n_views(padding, flip))
    copies = image.expand(len(numbers), -1, -1, -1)
    views = take_views(copies, numbers, padding=padding, flip=flip)
    expected = _all_views(image, padding, flip)
    assert len(views) == len(expected)
    assert _distinct(views) == _distinct(expected)


@CASES
def test_all_views_are_drawn_equally_often(padding, flip):
    n = n_views(padding, flip)
    generator = torch.Generator().manual_seed(0)
    drawn = draw_views(200 * n, padding=padding, flip=flip, generator=generator)
    counts = torch.bincount(drawn, minlength=n)
    assert len(counts) == n
    # 200 are expected of each
    assert counts.min() > 100
    assert counts.max() < 300


@pytest.mark.parametrize("take", [gathered, copied])
@pytest.mark.parametrize("shape", [(0, 3, 5, 6), (9, 1, 6, 6), (40, 3, 5, 6)])
def test_windows_are_cropped_and_mirrored_as_asked(take, shape):
    n, _, height, width = shape
    padded = functional.pad(_random_images(*shape), (2, 2, 2, 2))
    generator = torch.Generator().manual_seed(1)
    tops = torch.randint(0, 5, (n,), generator=generator)
    lefts = torch.randint(0, 5, (n,), generator=generator)
    is_flipped = torch.rand(n, generator=generator) < 0.5

    views = take(padded, tops, lefts, is_flipped, torch.Size(shape))
    assert views.shape == shape
    for number in range(n):
        top = tops[number]
        left = lefts[number]
        window = padded[number, :, top : top + height, left : left + width]
        if is_flipped[number]:
            window = window.flip(2)
        assert torch.equal(views[number], window)


def test_images_with_a_single_view_are_returned_as_they_are():
    images = _random_images(4, 1, 8, 8)
    assert random_views(images, padding=0, flip=False, generator=torch.Generator()) is images


def test_images_of_a_batch_get_different_views():
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(64, 1, 8, 8)
    generator = torch.Generator().manual_seed(1)
    views = random_views(images, padding=2, flip=True, generator=generator)
    assert len(_distinct(views)) > 20


def test_normalization_is_the_definition():
    images = _random_images(2, 3, 4, 4)
    mean = [0.1, 0.5, 0.9]
    std = [0.2, 0.3, 0.4]
    centered = images / 255 - torch.tensor(mean).view(1, 3, 1, 1)
    expected = centered / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(Normalize(mean, std)(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_normalization_is_one_multiply_add_to_the_last_bit(n, n_channels):
    images = _random_images(n, n_channels, 6, 5)
    mean = torch.rand(n_channels) + 0.1
    std = torch.rand(n_channels) + 0.1
    scale = (1.0 / (255.0 * std)).view(1, -1, 1, 1)
    shift = (-mean / std).view(1, -1, 1, 1)
    normalized = Normalize(mean.tolist(), std.tolist())(images)
    assert torch.equal(normalized, torch.addcmul(shift, images.to(torch.float32), scale))


def test_gray_images_keep_their_memory_order():
    normalized = Normalize([0.5], [0.25])(_random_images(2, 1, 5, 4))
    assert normalized.stride() == (20, 20, 4, 1)


def test_color_images_come_with_channels_last():
    images = _random_images(2, 3, 5, 4)
    normalized = Normalize([0.5] * 3, [0.25] * 3)(images)
    assert normalized.stride() == (60, 1, 12, 3)
    expected = (images / 255 - 0.5) / 0.25
    torch.testing.assert_close(normalized, expected, rtol=1e-5, atol=1e-5)
