"""Relatedness on a small trained classifier: digits rank before shuffled digits and noise."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
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


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = load_digits()
    gray_levels = torch.tensor(data.images * (255 / 16)).round()
    images = gray_levels.to(torch.uint8).unsqueeze(1)
    labels = torch.tensor(data.target)
    with seeded(0):
        network = digits_cnn(10, width=8)
    optimizer = make_optimizer(
        network, algorithm="adam", learning_rate=0.01, momentum=0.9, weight_decay=1e-4
    )

    def step(rows: Tensor) -> dict[str, Tensor]:
        logits = network(NORMALIZE(images[rows]))
        return {"loss": functional.cross_entropy(logits, labels[rows])}

    generator = seeded_generator()
    batches = shuffled_batches(N_TRAIN, 64, generator)
    # `fit` is lazy: the list makes it train.
    list(fit(step, batches, optimizer, n_updates=150, record_every=150, schedule="cosine"))
    held_out = images[N_TRAIN:]
    # One order for all images: the pixel values stay, the strokes do not.
    order = torch.randperm(64, generator=generator)
    shuffled = held_out.flatten(1)[:, order].view_as(held_out)
    probe = RelatednessProbe(network.eval(), (1, 8, 8))
    return Digits(probe, probe(NORMALIZE(held_out)), probe(NORMALIZE(shuffled)))


def calibrated(probe: RelatednessProbe, generator: torch.Generator) -> NoiseCalibration:
    return calibrate_on_noise(probe, NORMALIZE, generator=generator, n_images=2_000)


def share_in_order(lower: Tensor, higher: Tensor) -> float:
    """The area under the ROC curve: how often a value of `lower` is below one of `higher`."""
    is_in_order = lower[:, None] < higher[None]
    return is_in_order.double().mean().item()


def test_digits_rank_before_noise_and_before_shuffled_digits(digits: Digits) -> None:
    calibration = calibrated(digits.probe, seeded_generator())
    noise_images = uniform_noise(500, (1, 8, 8), seeded_generator(1))
    noise = one_class_sum(digits.probe(NORMALIZE(noise_images)), calibration)
    related = one_class_sum(digits.related, calibration)
    shuffled = one_class_sum(digits.shuffled, calibration)

    assert noise.mean().item() == pytest.approx(0, abs=1)
    assert share_in_order(related, noise) > 0.75
    assert share_in_order(related, shuffled) > 0.95


def test_preferential_sampling_draws_digits_rather_than_shuffled_digits(digits: Digits) -> None:
    generator = seeded_generator()
    calibration = calibrated(digits.probe, generator)
    n_related = len(digits.related)
    pool = one_class_sum(torch.cat([digits.related, digits.shuffled]), calibration)
    probabilities = sampling_probabilities(pool, temperature=0.5, floor=0.1)
    drawn = next(preferential_batches(probabilities, 2_000, generator))
    is_related = drawn < n_related

    assert is_related.double().mean().item() > 0.85
    assert effective_sample_size(probabilities) > 0.2 * len(pool)


def test_every_indicator_alone_ranks_digits_before_shuffled_digits(digits: Digits) -> None:
    areas = {}
    for column, name in enumerate(digits.probe.names):
        areas[name] = share_in_order(digits.related[:, column], digits.shuffled[:, column])

    assert min(areas.values()) > 0.5, areas
    for name in ("mp", "h", "t1000", "act", "proj", "ang", "ang_plus"):
        assert areas[name] > 0.9, areas
