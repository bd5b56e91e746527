"""Views of photos against torchvision's transforms, one image at a time."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pu_kd_pipeline.learning.photo_views import (
    Boxes,
    PhotoViews,
    adjust_colors,
    resized_crop_boxes,
    resized_crops,
    uniform_numbers,
)
from tests.learning.generators import seeded_generator

N = 24
SIZES = [(3, 16, 16), (1, 9, 14), (3, 1, 1)]


@pytest.fixture(scope="module")
def transforms() -> Any:
    """Return `torchvision.transforms.v2`."""
    from pu_kd_pipeline.learning.networks.vision import torchvision

    return import_module(f"{torchvision.__name__}.transforms.v2")


def _images(channels: int, height: int, width: int, n: int = N) -> torch.Tensor:
    shape = (n, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded_generator())


def _numbers(n: int = N, seed: int = 1) -> torch.Tensor:
    return PhotoViews().draw(n, seeded_generator(seed))


def _boxes(height: int, width: int, numbers: torch.Tensor) -> Boxes:
    uniforms = uniform_numbers(numbers)
    return resized_crop_boxes(height, width, (0.2, 1.0), (3 / 4, 4 / 3), uniforms)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_resized_crops_are_those_of_torchvision_with_and_without_antialiasing(
    transforms, size, antialias
):
    images = _images(*size)
    height, width = size[1:]
    boxes = _boxes(height, width, _numbers())
    is_flipped = torch.arange(N) % 2 == 0
    found = resized_crops(images, boxes, is_flipped)

    places = zip(*(values.tolist() for values in boxes), strict=True)
    for number, (top, left, box_height, box_width) in enumerate(places):
        box = (top, left, box_height, box_width)
        image = images[number].float()
        expected = transforms.functional.resized_crop(
            image, *box, [height, width], antialias=antialias
        )
        if is_flipped[number]:
            expected = transforms.functional.horizontal_flip(expected)
        assert_close(found[number], expected, rtol=0.0, atol=2e-3)

        # torchvision's own result for uint8 is rounded, and nothing else.
        rounded = transforms.functional.resized_crop(
            images[number], *box, [height, width], antialias=antialias
        )
        if is_flipped[number]:
            rounded = transforms.functional.horizontal_flip(rounded)
        assert (found[number] - rounded).abs().max() < 1.01


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colors_change_as_torchvision_changes_them_image_by_image(transforms, name, channels):
    images = _images(channels, 8, 10)
    factors = 2 * torch.rand(N, generator=seeded_generator(2))
    pixels = images.float()
    adjust_colors(pixels, **{name: factors})
    adjust = getattr(transforms.functional, f"adjust_{name}")
    for image, factor, found in zip(images, factors.tolist(), pixels, strict=True):
        expected = adjust(image.float() / 255, factor)
        assert_close(found / 255, expected, rtol=0.0, atol=1e-5)


def test_several_changes_come_one_after_the_other(transforms):
    images = _images(3, 8, 10)
    factors = 2 * torch.rand(3, N, generator=seeded_generator(2))
    pixels = images.float()
    adjust_colors(pixels, *factors)
    for number, found in enumerate(pixels):
        brightness, contrast, saturation = factors[:, number].tolist()
        expected = transforms.functional.adjust_brightness(images[number].float() / 255, brightness)
        expected = transforms.functional.adjust_contrast(expected, contrast)
        expected = transforms.functional.adjust_saturation(expected, saturation)
        assert_close(found / 255, expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (20, 48, (0.3, 0.9), (3 / 4, 4 / 3)),
        # No attempt fits: the fallback.
        (8, 64, (0.9, 1.0), (1.0, 1.1)),
        (64, 8, (0.9, 1.0), (1.0, 1.1)),
    ],
)
def test_boxes_are_distributed_as_those_of_torchvision(transforms, height, width, scale, ratio):
    n = 4000
    boxes = resized_crop_boxes(height, width, scale, ratio, uniform_numbers(_numbers(n)))
    tops, lefts, heights, widths = boxes
    assert (tops >= 0).all()
    assert (lefts >= 0).all()
    assert (tops + heights <= height).all()
    assert (lefts + widths <= width).all()

    transform = transforms.RandomResizedCrop(4, scale=scale, ratio=ratio)
    image = torch.zeros(1, height, width, dtype=torch.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [transform.make_params([image]) for _ in range(1000)]
    for name, values in zip(("top", "left", "height", "width"), boxes, strict=True):
        expected = torch.tensor([params[name] for params in drawn], dtype=torch.float64)
        found = values.double()
        deviation = float(expected.std())
        # The means of 4,000 and 1,000 draws: five standard errors.
        error = deviation * math.sqrt(1 / n + 1 / 1000)
        assert abs(float(found.mean() - expected.mean())) <= 5 * error
        assert float(found.std()) == pytest.approx(deviation, rel=0.15)
        assert found.min() >= expected.min() - 2
        assert found.max() <= expected.max() + 2


VIEWS = PhotoViews(flip=True, scale=(0.3, 1.0), brightness=0.4, contrast=0.4, saturation=0.4)


def test_a_view_depends_on_its_image_and_number_alone():
    images = _images(3, 16, 16)
    numbers = _numbers()
    views = VIEWS.take(images, numbers)
    order = torch.randperm(N, generator=seeded_generator(4))
    assert torch.equal(VIEWS.take(images[order], numbers[order]), views[order])
    assert torch.equal(VIEWS.take(images[:1], numbers[:1]), views[:1])
    assert views.dtype == torch.float32
    assert views.min() >= 0
    assert views.max() <= 255


def test_images_of_a_batch_have_parameters_of_their_own():
    image = _images(3, 16, 16, n=1)
    copies = image.expand(N, -1, -1, -1)
    views = VIEWS.take(copies, _numbers())
    distinct = {tuple(view.flatten().tolist()) for view in views}
    assert len(distinct) == N


def test_each_option_changes_what_it_names_and_nothing_else():
    images = _images(3, 16, 16)
    numbers = _numbers()
    plain = PhotoViews().take(images, numbers)
    assert torch.equal(plain, images.float())

    flipped = PhotoViews(flip=True).take(images, numbers)
    n_flipped = 0
    for image, view in zip(plain, flipped, strict=True):
        is_flipped = not torch.equal(image, view)
        assert torch.equal(view, image.flip(2) if is_flipped else image)
        n_flipped += is_flipped
    assert 4 < n_flipped < N - 4

    # The whole image as a crop is the image itself.
    whole = PhotoViews(scale=(1.0, 1.0), ratio=(1.0, 1.0)).take(images, numbers)
    assert_close(whole, plain, rtol=0.0, atol=1e-3)

    darker = PhotoViews(brightness=0.5).take(images, numbers)
    colored = PhotoViews(brightness=0.5, saturation=0.5).take(images, numbers)
    factors = _brightness_factors(uniform_numbers(numbers))
    expected = (plain * factors.view(-1, 1, 1, 1)).clamp(0, 255)
    assert torch.equal(darker, expected)
    # Saturation comes last, and keeps the luma where no channel is clipped.
    assert not torch.equal(colored, darker)


def _brightness_factors(uniforms: torch.Tensor) -> torch.Tensor:
    return 0.5 + uniforms[:, 4]


def test_shifts_are_all_drawn():
    image = _images(1, 3, 3, n=1)
    copies = image.expand(2000, -1, -1, -1)
    # Colors, so that views are continuous; a factor of at least 1 keeps different shifts different.
    views = PhotoViews(padding=1, flip=True).take(copies, _numbers(2000))
    distinct = {tuple(view.flatten().tolist()) for view in views}
    assert len(distinct) == 18


def test_the_uniform_numbers_of_a_view_are_uniform_and_independent():
    # Neighboring numbers, the hardest case for a hash.
    for numbers in (torch.arange(20_000), _numbers(20_000)):
        uniforms = uniform_numbers(numbers)
        assert uniforms.min() >= 0
        assert uniforms.max() < 1
        assert_close(uniforms.mean(0), torch.full_like(uniforms[0], 0.5), rtol=0, atol=0.012)
        assert_close(uniforms.var(0), torch.full_like(uniforms[0], 1 / 12), rtol=0, atol=0.004)
        correlations = torch.corrcoef(uniforms.T).fill_diagonal_(0)
        assert correlations.abs().max() < 0.035


def test_the_uniform_numbers_are_the_same_in_every_version():
    # Kept teacher outputs of views and resumed trainings rely on them.
    found = uniform_numbers(torch.tensor([0, 123_456_789_012]))[:, :3]
    masks = 2**64 - 1

    def hashed(state: int) -> int:
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & masks
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & masks
        return state ^ (state >> 31)

    for row, number in zip(found.tolist(), (0, 123_456_789_012), strict=True):
        start = hashed((number + 0x9E3779B97F4A7C15) & masks)
        for position, value in enumerate(row, start=1):
            state = (start + position * 0x9E3779B97F4A7C15) & masks
            assert value == (hashed(state) >> 40) / 2**24
