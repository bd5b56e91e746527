"""Mixed images against the formulas of the papers, written out image by image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.mixing import Mixing, cutmix, cutmix_box, mixup
from tests.learning.generators import seeded_generator

N = 8


def _images(channels: int = 3) -> torch.Tensor:
    images = torch.rand((N, channels, 6, 9), generator=seeded_generator())
    return images.contiguous(memory_format=torch.channels_last)


def _partners() -> torch.Tensor:
    return torch.randperm(N, generator=seeded_generator(1))


def _mixing(**changes) -> Mixing:
    given = {"kind": "cutmix", "alpha": 1.0, "share": 1.0, "seed": 0}
    return Mixing(**{**given, **changes})


def test_mixup_is_the_weighted_mean_of_two_images():
    images = _images()
    partners = _partners()
    mixed = mixup(images, partners, 0.3)
    for image, partner, found in zip(images, partners.tolist(), mixed, strict=True):
        assert_close(found, 0.3 * image + 0.7 * images[partner])


def _released_box(size: tuple[int, int], own_share: float, center: tuple[int, int]):
    """Return the box as the authors' code computes it, with the center that it draws."""
    ends = []
    for side, middle in zip(size, center, strict=True):
        cut = int(side * np.sqrt(1.0 - own_share))
        ends.append(int(np.clip(middle - cut // 2, 0, side)))
        ends.append(int(np.clip(middle + cut // 2, 0, side)))
    return tuple(ends)


@pytest.mark.parametrize("own_share", [0.0, 0.2, 0.5, 0.97, 1.0])
def test_the_box_of_cutmix_is_that_of_the_released_code(own_share):
    for top, left in itertools.product(range(6), range(9)):
        center = ((top + 0.5) / 6, (left + 0.5) / 9)
        box = cutmix_box(6, 9, own_share, center)
        assert box == _released_box((6, 9), own_share, (top, left))


@pytest.mark.parametrize("box", [(1, 4, 2, 9), (0, 6, 0, 9), (3, 3, 0, 9)])
def test_cutmix_takes_one_box_from_the_partner(box):
    images = _images()
    partners = _partners()
    before = images.clone()
    mixed = cutmix(images, partners, box)
    top, bottom, left, right = box
    for number, partner in enumerate(partners.tolist()):
        for row, column in itertools.product(range(6), range(9)):
            is_inside = top <= row < bottom and left <= column < right
            source = partner if is_inside else number
            expected = images[source, :, row, column]
            assert torch.equal(mixed[number, :, row, column], expected)
    # The teacher cache and other batches may still read them.
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_mixing_normalized_images_is_normalizing_mixed_ones(kind):
    pixels = torch.randint(0, 256, (N, 3, 6, 9), dtype=torch.uint8, generator=seeded_generator())
    normalize = Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.1])
    mixing = _mixing(kind=kind)
    for mixture in itertools.islice(mixing.mixtures(N), 5):
        assert mixture is not None
        found = mixing.mix(normalize(pixels), mixture)
        expected = normalize(mixing.mix(pixels.float(), mixture))
        assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_mixed_images_keep_the_order_that_convolutions_are_fast_with(kind):
    mixing = _mixing(kind=kind)
    mixture = next(mixing.mixtures(N))
    assert mixture is not None
    mixed = mixing.mix(_images(), mixture)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def _listed(mixing: Mixing, n: int, start: int = 0) -> list[object]:
    """Return some mixtures, as values that can be compared."""
    listed: list[object] = []
    for mixture in itertools.islice(mixing.mixtures(N), start, n):
        if mixture is None:
            listed.append(None)
        else:
            listed.append((mixture.own_share, mixture.partners.tolist(), mixture.center))
    return listed


def test_the_mixtures_of_a_seed_are_the_same_wherever_they_start():
    all_of_them = _listed(_mixing(share=0.5), 40)
    assert _listed(_mixing(share=0.5), 40) == all_of_them
    assert _listed(_mixing(share=0.5), 40, start=13) == all_of_them[13:]
    assert _listed(_mixing(share=0.5, seed=1), 40) != all_of_them


def test_a_smaller_share_mixes_fewer_batches_in_the_same_way():
    every_batch = _listed(_mixing(), 2000)
    some = _listed(_mixing(share=0.3), 2000)
    n_mixed = 0
    for one, other in zip(every_batch, some, strict=True):
        if other is not None:
            assert other == one
            n_mixed += 1
    assert 0.25 < n_mixed / 2000 < 0.35
    assert None not in every_batch


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_drawn_from_a_beta_distribution(alpha):
    mixtures = itertools.islice(_mixing(alpha=alpha).mixtures(N), 4000)
    shares = np.array([mixture.own_share for mixture in mixtures if mixture])
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 4 * np.sqrt(variance / 4000)
    assert shares.var() == pytest.approx(variance, rel=0.1)
