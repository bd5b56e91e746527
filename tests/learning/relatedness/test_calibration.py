"""Calibration on uniform noise, and the sum 1C-Sum."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.testing import assert_close

from pu_kd_pipeline.learning.networks.lenet import digits_cnn
from pu_kd_pipeline.learning.relatedness.calibration import (
    NoiseCalibration,
    calibrate_on_noise,
    one_class_sum,
    uniform_noise,
)
from pu_kd_pipeline.learning.relatedness.indicators import INDICATORS
from pu_kd_pipeline.learning.relatedness.probe import RelatednessProbe
from tests.learning.generators import seeded_generator
from tests.learning.relatedness.slow_reference import trained_looking


def some_values(n: int = 50, seed: int = 0) -> Tensor:
    standard = torch.randn(n, len(INDICATORS), generator=seeded_generator(seed))
    # Neither centered nor of unit spread, so that the calibration matters.
    return 3 * standard + 7


# --- 1C-Sum


def slow_z_score(x: float, reference: list[float]) -> float:
    mean = statistics.fmean(reference)
    std = statistics.pstdev(reference)
    return (x - mean) / std


def slow_sums(values: Tensor, noise: Tensor, clip: float) -> Tensor:
    """Add the clipped z-scores of an image, one indicator at a time."""
    columns = noise.T.tolist()
    sums = []
    for row in values.tolist():
        total = 0.0
        for x, reference in zip(row, columns, strict=True):
            z = slow_z_score(x, reference)
            total += min(max(z, -clip), clip)
        sums.append(total)
    return torch.tensor(sums, dtype=torch.float64)


def test_the_sum_is_the_slow_one():
    noise = some_values()
    values = some_values(8, seed=1) * 2  # some of them beyond the clip
    calibration = NoiseCalibration.of(INDICATORS, noise)

    sums = one_class_sum(values, calibration, clip=1.5)
    expected = slow_sums(values, noise, clip=1.5)
    largest_sum = 1.5 * len(INDICATORS)

    assert_close(sums, expected, rtol=1e-6, atol=1e-6)
    assert (sums.abs() <= largest_sum).all()


def test_the_sum_does_not_see_the_units_of_an_indicator():
    noise = some_values()
    values = some_values(8, seed=1)
    calibration = NoiseCalibration.of(INDICATORS, noise)
    sums = one_class_sum(values, calibration)

    scale = torch.linspace(0.1, 10, len(INDICATORS))
    shift = torch.linspace(-5, 5, len(INDICATORS))
    other_calibration = NoiseCalibration.of(INDICATORS, noise * scale + shift)
    other_sums = one_class_sum(values * scale + shift, other_calibration)

    assert_close(other_sums, sums, rtol=1e-4, atol=1e-4)


def test_noise_sums_to_zero_on_average():
    noise = some_values()
    calibration = NoiseCalibration.of(INDICATORS, noise)

    # Without the clip, which is not symmetric for a skewed sample.
    sums = one_class_sum(noise, calibration, clip=math.inf)
    mean = sums.mean().item()

    assert mean == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, -3e5])
@pytest.mark.parametrize(("factor", "shift"), [(0.9, -0.1), (1.1, 1.0)])
def test_an_indicator_without_spread_on_noise_counts_nothing_there_and_the_clip_elsewhere(
    constant: float, factor: float, shift: float
) -> None:
    # 1,000 equal values have a mean that is rounded and a spread that is not exactly 0.
    noise = torch.full((1000, 1), constant)
    calibration = NoiseCalibration.of(("dss_ext",), noise)
    changed = constant * factor + shift
    values = torch.tensor([[constant], [changed]])

    at_constant, elsewhere = one_class_sum(values, calibration).tolist()
    # The sign says on which side of the noise a value is.
    expected = math.copysign(10.0, changed - constant)

    assert at_constant == 0
    assert elsewhere == pytest.approx(expected, abs=1.0)


def test_rounding_is_not_taken_for_spread():
    noise = torch.full((100, 1), 0.1)
    calibration = NoiseCalibration.of(("dss",), noise)
    constant = noise[:1]
    next_float = torch.nextafter(constant, torch.tensor(1.0))
    values = torch.cat([constant, next_float])

    at_constant, above = one_class_sum(values, calibration)

    assert at_constant == 0
    assert 0 < above <= 1


def test_values_that_do_not_fit_are_refused():
    calibration = NoiseCalibration.of(("mp", "h"), torch.rand(5, 2))
    four_columns = torch.rand(3, 4)
    message = r"values must be \(N, 2\), one column for each indicator, got \(3, 4\)"

    with pytest.raises(ValueError, match=message):
        one_class_sum(four_columns, calibration)

    not_finite = torch.tensor([[0.0, math.nan], [1.0, math.inf], [0.0, 0.0]])
    with pytest.raises(ValueError, match="h of 2 of 3 images are not finite"):
        one_class_sum(not_finite, calibration)


def test_a_clip_of_zero_and_a_calibration_on_nothing_are_refused():
    values = torch.rand(5, 2)
    calibration = NoiseCalibration.of(("mp", "h"), values)

    with pytest.raises(ValueError, match="clip must be positive, got 0"):
        one_class_sum(values, calibration, clip=0)
    with pytest.raises(ValueError, match="at least one noise image"):
        NoiseCalibration.of(("mp", "h"), values[:0])


# --- calibration


def test_a_calibration_is_written_by_indicator():
    calibration = NoiseCalibration.of(("mp", "h"), torch.tensor([[1.0, 4.0], [3.0, 4.0]]))
    content = calibration.to_dict()

    # JSON writers may sort keys, so the order must not carry meaning.
    assert set(content) == {"mp", "h"}
    assert content["mp"]["mean"] == 2.0
    assert content["h"]["mean"] == 4.0
    assert set(content["mp"]) == {"mean", "std"}


def test_noise_is_uniform_over_all_gray_levels_and_repeats_with_the_generator():
    first = uniform_noise(40, (3, 16, 16), seeded_generator(3))
    second = uniform_noise(40, (3, 16, 16), seeded_generator(3))

    assert first.dtype == torch.uint8
    assert first.shape == (40, 3, 16, 16)
    assert torch.equal(first, second)

    counts = first.flatten().bincount(minlength=256)
    test_result = stats.chisquare(counts.tolist())

    # By chance alone, one seed in a thousand would fail.
    assert test_result.pvalue > 1e-3


def test_calibration_is_over_all_batches_of_noise():
    network = trained_looking(digits_cnn(5, width=4))
    probe = RelatednessProbe(network, (1, 8, 8))
    batches = []

    def normalize(images: Tensor) -> Tensor:
        batches.append(images)
        return images / 255

    generator = seeded_generator()
    calibration = calibrate_on_noise(
        probe, normalize, generator=generator, n_images=25, batch_size=10
    )
    sizes = [len(images) for images in batches]
    values = probe(torch.cat(batches) / 255)
    expected = NoiseCalibration.of(probe.names, values)

    assert sizes == [10, 10, 5]
    assert calibration.names == expected.names
    # The float32 indicators of one large batch may be rounded otherwise than those of three.
    assert calibration.means == pytest.approx(expected.means, rel=1e-5)
    assert calibration.stds == pytest.approx(expected.stds, rel=1e-3, abs=1e-7)


def test_a_calibration_on_no_image_is_refused():
    probe = RelatednessProbe(digits_cnn(5, width=4).eval(), (1, 8, 8))
    message = "n_images and batch_size must be at least 1, got 0 and 10"

    with pytest.raises(ValueError, match=message):
        calibrate_on_noise(
            probe, torch.Tensor.float, generator=torch.Generator(), n_images=0, batch_size=10
        )
