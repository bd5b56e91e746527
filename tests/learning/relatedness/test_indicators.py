"""The indicators of logits, latents and BatchNorm: slow references, bounds and invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.testing import assert_close

from pu_kd_pipeline.learning.relatedness.indicators import (
    INDICATORS,
    LATENT_INDICATORS,
    batchnorm_sums,
    chi_square_range,
    latent_indicators,
    logit_indicators,
)
from tests.learning.generators import seeded_generator
from tests.learning.relatedness.slow_reference import (
    random_images,
    slow_latent_indicators,
    slow_logit_indicators,
    trained_looking,
)


def test_there_are_fifteen_indicators():
    assert INDICATORS == (
        "mp", "h", "t1000",
        "norm", "act", "proj", "ang", "norm_plus", "act_plus", "ang_plus", "ang_plus_plus",
        "dms", "dms_aos", "dss", "dss_ext",
    )  # fmt: skip


# --- logits

four_logits = st.lists(st.floats(-60, 60), min_size=4, max_size=4)


@given(rows=st.lists(four_logits, min_size=1, max_size=4), shift=st.floats(-50, 50))
def test_logit_indicators_are_bounded_and_do_not_see_a_constant(
    rows: list[list[float]], shift: float
) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    values = logit_indicators(logits)
    expected = [slow_logit_indicators(row) for row in rows]
    expected_values = torch.tensor(expected).double()
    shifted_logits = logits + shift
    shifted_values = logit_indicators(shifted_logits)

    assert_close(values, expected_values)
    assert_close(shifted_values, values)

    # 1 - 1/K, ln K and 1 - 1/K for K = 4; the sums may round up.
    upper_bounds = torch.tensor([0.75, math.log(4), 0.75])
    assert (values >= 0).all()
    rounded_up = upper_bounds + 1e-6
    assert (values <= rounded_up).all()


def test_confident_logits_stay_distinct_where_one_minus_the_maximum_is_zero():
    # In float32, 1 - exp(-20) is 1.
    logits = torch.tensor([[20.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
    probabilities = logits.softmax(dim=1)
    largest = probabilities.amax(dim=1)
    naive = 1 - largest

    assert naive.tolist() == [0, 0]

    # Of the two other classes, each with probability exp(-z) to first order.
    expected = [2 * math.exp(-20), 2 * math.exp(-40)]
    indicators = logit_indicators(logits)
    missing_probability = indicators[:, 0]

    assert missing_probability.tolist() == pytest.approx(expected, rel=1e-5)


# --- latents


def draw_latents(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents of six images, the weight of a last layer, and the predicted classes."""
    generator = seeded_generator(seed)
    latents = torch.randn(6, 7, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    logits = latents @ weight.T
    classes = logits.argmax(dim=1)
    return latents, weight, classes


IS_ANGLE = torch.tensor([name.startswith("ang") for name in LATENT_INDICATORS])


def angles_of(latents: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    indicators = latent_indicators(latents, weight, classes)
    return indicators[:, IS_ANGLE]


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
def test_lengths_scale_with_the_latents_and_angles_do_not(seed: int, scale: float) -> None:
    latents, weight, classes = draw_latents(seed)
    values = latent_indicators(latents, weight, classes)
    scaled_latents = scale * latents
    scaled = latent_indicators(scaled_latents, weight, classes)

    # All others are lengths or products, linear in the latents.
    scaled_values = scale * values
    expected = torch.where(IS_ANGLE, values, scaled_values)
    assert_close(scaled, expected)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
def test_angles_do_not_depend_on_the_length_of_the_weights(seed: int, scale: float) -> None:
    latents, weight, classes = draw_latents(seed)
    angles = angles_of(latents, weight, classes)
    scaled_weight = scale * weight
    scaled_angles = angles_of(latents, scaled_weight, classes)

    assert_close(scaled_angles, angles)
    # One minus a cosine.
    assert (angles >= 0).all()
    assert (angles <= 2).all()


def assert_latent_indicators_equal(found: Tensor, u: Tensor, weight_row: Tensor) -> None:
    u_list = u.tolist()
    row_list = weight_row.tolist()
    slow = slow_latent_indicators(u_list, row_list)
    expected = torch.tensor(slow, dtype=torch.float64)
    assert_close(found, expected)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_latent_indicators_equal_the_slow_ones(seed: int) -> None:
    latents, weight, classes = draw_latents(seed)
    values = latent_indicators(latents, weight, classes)
    for image, predicted_class in enumerate(classes):
        found = values[image]
        u = latents[image]
        weight_row = weight[predicted_class]
        assert_latent_indicators_equal(found, u, weight_row)


@pytest.fixture(scope="module")
def normal_maps() -> Tensor:
    """Maps that follow the statistics of a fresh BatchNorm: mean 0 and variance 1."""
    generator = seeded_generator()
    return torch.randn(20, 50, 16, 16, generator=generator)


def test_maps_that_match_the_statistics_are_related(normal_maps: Tensor) -> None:
    layer = nn.BatchNorm2d(50).eval()
    dms, dms_aos, dss, dss_ext = mean_batchnorm_indicators(layer, normal_maps)

    assert dms < 0.01
    assert dms_aos == pytest.approx(1, abs=0.01)
    assert dss < 0.01
    # 5 % on either side of the chi-square range
    assert dss_ext == pytest.approx(0.1, abs=0.03)


def test_shifted_maps_are_not_related_by_their_mean(normal_maps: Tensor) -> None:
    layer = nn.BatchNorm2d(50).eval()
    _, _, dss, dss_ext = mean_batchnorm_indicators(layer, normal_maps)
    shifted_maps = normal_maps + 3
    shifted = mean_batchnorm_indicators(layer, shifted_maps)

    # m^2 = 9, and 9 + 1 for the mean of squares.
    assert shifted[:2] == pytest.approx([9, 10], rel=0.02)
    assert shifted[2:] == pytest.approx([dss, dss_ext], rel=0.01, abs=1e-5)


@pytest.mark.parametrize(("scale", "rel"), [(2, 0.02), (0, 1e-4)])
def test_maps_of_another_spread_are_not_related_by_it(
    normal_maps: Tensor, scale: int, rel: float
) -> None:
    layer = nn.BatchNorm2d(50).eval()
    scaled_maps = normal_maps * scale
    indicators = mean_batchnorm_indicators(layer, scaled_maps)

    # A spread of two or of zero is one away from that of the statistics.
    assert indicators[2:] == pytest.approx([1, 1], rel=rel)


def indicators_of_latents_along_their_row() -> dict[str, list[float]]:
    """Return the indicators of latents that are twice the weight row of their class."""
    # Of length 5, zero, and without a positive entry.
    weight = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])
    latents = 2 * weight
    classes = torch.arange(3)

    indicators = latent_indicators(latents, weight, classes)
    columns = indicators.T.tolist()
    return dict(zip(LATENT_INDICATORS, columns, strict=True))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("norm", [-10, 0, -math.sqrt(12)]),
        ("act", [-50, 0, -6]),
        ("proj", [-10, 0, -math.sqrt(12)]),
    ],
)
def test_latents_along_their_row_have_its_length(name: str, expected: list[float]) -> None:
    values = indicators_of_latents_along_their_row()
    assert values[name] == pytest.approx(expected)


def test_a_row_without_a_positive_entry_masks_all_latents():
    values = indicators_of_latents_along_their_row()
    first_length, second_length, _ = values["proj"]
    assert values["norm_plus"] == [first_length, second_length, 0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ang", [0, 1, 0]), ("ang_plus", [0, 1, 1]), ("ang_plus_plus", [0, 1, 1])],
)
def test_latents_along_their_row_have_no_angle_and_zero_has_a_right_one(
    name: str, expected: list[float]
) -> None:
    values = indicators_of_latents_along_their_row()
    # A cosine of one is rounded in float32.
    assert values[name] == pytest.approx(expected, abs=1e-6)


def test_latents_whose_weight_is_zero_or_negative_are_masked():
    weight = torch.tensor([[3.0, 0.0, -2.0]])
    latents = torch.tensor([[4.0, 50.0, 60.0]])
    predicted_class = torch.tensor([0])

    indicators = latent_indicators(latents, weight, predicted_class)
    first_image = indicators[0].tolist()
    values = dict(zip(LATENT_INDICATORS, first_image, strict=True))

    # Of the first latent alone: its length, and its product with the weight.
    assert values["norm_plus"] == -4
    assert values["act_plus"] == -12


# --- BatchNorm


def test_channels_that_are_switched_off_do_not_count_however_large():
    layer = trained_looking(nn.BatchNorm2d(6))
    maps = random_images(4, (6, 5, 5))

    sums, n_channels = batchnorm_sums(layer, maps)
    maps[:, [1, 5]] = math.nan  # the channels that `trained_looking` switches off
    sums_with_nan, _ = batchnorm_sums(layer, maps)

    assert_close(sums_with_nan, sums, rtol=0, atol=0)
    assert n_channels.tolist() == [4, 4, 4, 4]

    layer.weight.data.zero_()
    _, n_channels = batchnorm_sums(layer, maps)

    assert n_channels.tolist() == [0, 0, 0, 0]


def mean_batchnorm_indicators(layer: nn.BatchNorm2d, maps: Tensor) -> list[float]:
    sums, n_channels = batchnorm_sums(layer, maps)
    counts = n_channels[:, None]
    indicators = sums / counts
    means = indicators.mean(dim=1)
    return means.tolist()


@pytest.mark.parametrize("maps_dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_in_float32(maps_dtype: torch.dtype) -> None:
    layer = trained_looking(nn.BatchNorm2d(6))
    images = random_images(4, (6, 5, 5))
    maps = images.to(maps_dtype)
    single_maps = maps.float()

    half_sums, _ = batchnorm_sums(layer, maps)
    single_sums, _ = batchnorm_sums(layer, single_maps)
    half_logits = maps[0, 0]
    logit_values = logit_indicators(half_logits)

    assert_close(half_sums, single_sums, rtol=0, atol=0)
    assert logit_values.dtype == torch.float32


def test_far_from_zero_the_spread_keeps_its_digits():
    layer = nn.BatchNorm2d(3).eval()
    images = random_images(2, (3, 9, 9))
    maps = 2 * images
    far_maps = maps + 1000

    # E[x^2] - E[x]^2 would lose them.
    near, _ = batchnorm_sums(layer, maps)
    far, _ = batchnorm_sums(layer, far_maps)
    near_spread = near[2]
    far_spread = far[2]

    assert_close(far_spread, near_spread, rtol=1e-3, atol=0)


@pytest.mark.parametrize("degrees_of_freedom", [1, 2, 3, 15, 255, 1023, 12_543, 50_175])
def test_chi_square_range_is_scipys(degrees_of_freedom: int) -> None:
    expected = stats.chi2.ppf([0.05, 0.95], degrees_of_freedom)
    found = chi_square_range(degrees_of_freedom)

    assert found == pytest.approx(expected.tolist(), rel=1e-6)
