"""Relatedness on a small trained classifier: digits rank before shuffled digits and noise."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.loop import fit, make_optimizer, seeded, shuffled_batches
from pu_kd_pipeline.learning.networks.lenet import digits_cnn
from pu_kd_pipeline.learning.relatedness.calibration import (
    NoiseCalibration,
    calibrate_on_noise,
    one_class_sum,
    uniform_noise,
)
from pu_kd_pipeline.learning.relatedness.probe import RelatednessProbe
from pu_kd_pipeline.learning.relatedness.sampling import (
    effective_sample_size,
    preferential_batches,
    sampling_probabilities,
)
from tests.learning.generators import seeded_generator

NORMALIZE = Normalize([0.3], [0.38])
N_TRAIN = 1200  # of 1,797 digits


class Digits(NamedTuple):
    """A probe of a small trained network, and its indicators of held-out images."""

    probe: RelatednessProbe
    related: Tensor
    """Of digits."""
    shuffled: Tensor
    """Of the same digits with their pixels in another order."""


def digit_images() -> tuple[Tensor, Tensor]:
    """Return the digits of scikit-learn, (N, 1, 8, 8) uint8, and their classes."""
    data = load_digits()
    # Their gray levels are 0 to 16.
    gray_levels = torch.tensor(data.images * (255 / 16)).round()
    images = gray_levels.to(torch.uint8).unsqueeze(1)
    return images, torch.tensor(data.target)


def trained_network(images: Tensor, labels: Tensor, generator: torch.Generator) -> nn.Module:
    with seeded(0):
        network = digits_cnn(10, width=8)
    optimizer = make_optimizer(
        network, algorithm="adam", learning_rate=0.01, momentum=0.9, weight_decay=1e-4
    )

    def step(rows: Tensor) -> dict[str, Tensor]:
        inputs = NORMALIZE(images[rows])
        loss = functional.cross_entropy(network(inputs), labels[rows])
        return {"loss": loss}

    batches = shuffled_batches(N_TRAIN, 64, generator)
    records = fit(step, batches, optimizer, n_updates=150, record_every=150, schedule="cosine")
    # `fit` is lazy: the list makes it train.
    list(records)
    return network.eval()


@pytest.fixture(scope="module")
def digits() -> Digits:
    images, labels = digit_images()
    generator = seeded_generator()
    network = trained_network(images, labels, generator)
    held_out = images[N_TRAIN:]
    # One order for all images: the pixel values stay, the strokes do not.
    order = torch.randperm(64, generator=generator)
    shuffled = held_out.flatten(1)[:, order].view_as(held_out)
    probe = RelatednessProbe(network, (1, 8, 8))
    indicators = probe(NORMALIZE(held_out))
    shuffled_indicators = probe(NORMALIZE(shuffled))
    return Digits(probe, indicators, shuffled_indicators)


def calibrated(probe: RelatednessProbe, generator: torch.Generator) -> NoiseCalibration:
    return calibrate_on_noise(probe, NORMALIZE, generator=generator, n_images=2_000)


def share_in_order(lower: Tensor, higher: Tensor) -> float:
    """The area under the ROC curve: how often a value of `lower` is below one of `higher`."""
    is_in_order = lower[:, None] < higher[None]
    return is_in_order.double().mean().item()


def test_digits_rank_before_noise_and_before_shuffled_digits(digits: Digits) -> None:
    calibration = calibrated(digits.probe, seeded_generator())
    # Other noise than that of the calibration.
    noise_images = uniform_noise(500, (1, 8, 8), seeded_generator(1))
    noise_indicators = digits.probe(NORMALIZE(noise_images))

    noise = one_class_sum(noise_indicators, calibration)
    related = one_class_sum(digits.related, calibration)
    shuffled = one_class_sum(digits.shuffled, calibration)
    mean_of_noise = noise.mean().item()

    assert mean_of_noise == pytest.approx(0, abs=1)
    assert share_in_order(related, noise) > 0.75
    assert share_in_order(related, shuffled) > 0.95


def test_preferential_sampling_draws_digits_rather_than_shuffled_digits(digits: Digits) -> None:
    generator = seeded_generator()
    calibration = calibrated(digits.probe, generator)
    indicators = torch.cat([digits.related, digits.shuffled])

    pool = one_class_sum(indicators, calibration)
    probabilities = sampling_probabilities(pool, temperature=0.5, floor=0.1)
    batches = preferential_batches(probabilities, 2_000, generator)
    drawn = next(batches)
    # The digits come first in the pool, and are half of it.
    is_related = drawn < len(digits.related)
    related_share = is_related.double().mean().item()
    effective_size = effective_sample_size(probabilities)

    assert related_share > 0.85
    assert effective_size > 0.2 * len(pool)


def test_every_indicator_alone_ranks_digits_before_shuffled_digits(digits: Digits) -> None:
    areas = {}
    for column, name in enumerate(digits.probe.names):
        related = digits.related[:, column]
        shuffled = digits.shuffled[:, column]
        areas[name] = share_in_order(related, shuffled)

    assert min(areas.values()) > 0.5, areas
    for name in ("mp", "h", "t1000", "act", "proj", "ang", "ang_plus"):
        assert areas[name] > 0.9, areas
