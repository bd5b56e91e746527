"""Random views against a slow reference, one image at a time."""

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


def _all_views(image, padding, flip):
    padded = functional.pad(image, (padding,) * 4)
    height, width = image.shape[1:]
    crops = [
        padded[:, y : y + height, x : x + width]
        for y in range(2 * padding + 1)
        for x in range(2 * padding + 1)
    ]
    return crops + [crop.flip(2) for crop in crops] if flip else crops


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (1, False), (0, True)])
def test_every_view_is_a_crop_or_its_mirror_image_and_all_occur(padding, flip):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(1, 256, (3, 5, 6), dtype=torch.uint8)
    views = random_views(
        image.expand(2000, -1, -1, -1), padding=padding, flip=flip, generator=generator
    )
    expected = {tuple(view.flatten().tolist()) for view in _all_views(image, padding, flip)}
    assert {tuple(view.flatten().tolist()) for view in views} == expected


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (1, False), (0, True), (0, False)])
def test_numbered_views_are_all_views_and_drawn_alike(padding, flip):
    image = torch.randint(1, 256, (3, 5, 6), dtype=torch.uint8)
    numbers = torch.arange(n_views(padding, flip))
    views = take_views(image.expand(len(numbers), -1, -1, -1), numbers, padding=padding, flip=flip)
    expected = _all_views(image, padding, flip)
    assert len(views) == len(expected)
    assert {tuple(view.flatten().tolist()) for view in views} == {
        tuple(v.flatten().tolist()) for v in expected
    }
    drawn = draw_views(
        200 * len(numbers), padding=padding, flip=flip, generator=torch.Generator().manual_seed(0)
    )
    counts = torch.bincount(drawn, minlength=len(numbers))
    assert len(counts) == len(numbers)
    assert counts.min() > 100  # 200 are expected of each
    assert counts.max() < 300


@pytest.mark.parametrize("shape", [(0, 3, 5, 6), (9, 1, 6, 6), (40, 3, 5, 6)])
def test_views_are_the_same_by_one_index_and_image_by_image(shape):
    padding, generator = 2, torch.Generator().manual_seed(0)
    padded = functional.pad(
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), (padding,) * 4
    )
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, shape[0]), generator=generator)
    is_flipped = torch.rand(shape[0], generator=generator) < 0.5
    views = [
        take(padded, tops, lefts, is_flipped, torch.Size(shape)) for take in (gathered, copied)
    ]
    assert torch.equal(*views)
    for view, image, top, left, mirrored in zip(
        views[0], padded, tops, lefts, is_flipped, strict=True
    ):
        window = image[:, top : top + shape[2], left : left + shape[3]]
        assert torch.equal(view, window.flip(2) if mirrored else window)


def test_nothing_to_do_returns_the_batch():
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    assert random_views(images, padding=0, flip=False, generator=torch.Generator()) is images


def test_images_of_a_batch_get_views_of_their_own():
    generator = torch.Generator().manual_seed(1)
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(64, 1, 8, 8)
    views = random_views(images, padding=2, flip=True, generator=generator)
    assert len({tuple(view.flatten().tolist()) for view in views}) > 20


def test_normalization_is_the_definition():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = [0.1, 0.5, 0.9], [0.2, 0.3, 0.4]
    expected = (images / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(
        1, 3, 1, 1
    )
    torch.testing.assert_close(Normalize(mean, std)(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_normalization_is_one_multiply_add_to_the_last_bit(n, n_channels):
    images = torch.randint(0, 256, (n, n_channels, 6, 5), dtype=torch.uint8)
    mean, std = (torch.rand(n_channels) + 0.1 for _ in range(2))
    scale, shift = (values.view(1, -1, 1, 1) for values in (1.0 / (255.0 * std), -mean / std))
    normalized = Normalize(mean.tolist(), std.tolist())(images)
    assert torch.equal(normalized, torch.addcmul(shift, images.to(torch.float32), scale))


def test_color_images_come_with_channels_last_and_gray_ones_as_they_were():
    gray, color = (torch.randint(0, 256, (2, n, 5, 4), dtype=torch.uint8) for n in (1, 3))
    assert Normalize([0.5], [0.25])(gray).stride() == (20, 20, 4, 1)
    normalized = Normalize([0.5] * 3, [0.25] * 3)(color)
    assert normalized.stride() == (60, 1, 12, 3)
    expected = (color / 255 - 0.5) / 0.25
    torch.testing.assert_close(normalized, expected, rtol=1e-5, atol=1e-5)
