"""Attention transfer: a slow reference with gradients, its invariances, and maps of two sizes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from pu_kd_pipeline.learning.losses.attention_transfer import attention_map, attention_transfer_loss
from tests.learning.generators import seeded_generator

ZERO = torch.zeros((), dtype=torch.float64)


def draw_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded_generator(seed), dtype=torch.float64)


def draw_maps(shapes: list[tuple[int, ...]], seed: int) -> list[Tensor]:
    """Draw one map per tap, each from a seed of its own."""
    return [draw_map(*shape, seed=seed + tap) for tap, shape in enumerate(shapes)]


def draw_taps(seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Two taps of a student and of a teacher that is wider in the second."""
    student = draw_maps([(3, 2, 4, 3), (3, 5, 2, 2)], seed)
    teacher = draw_maps([(3, 2, 4, 3), (3, 7, 2, 2)], seed + 2)
    return student, teacher


def slow_square_sum(vector: Tensor) -> Tensor:
    return sum(entry**2 for entry in vector)


def slow_attention(feature_map: Tensor) -> Tensor:
    """Mean of squares over the channels, one position at a time, divided by the length."""
    rows = []
    for channels in feature_map:
        n_channels, height, width = channels.shape
        energies = []
        for y in range(height):
            for x in range(width):
                energy = slow_square_sum(channels[:, y, x])
                energies.append(energy / n_channels)
        vector = torch.stack(energies)
        length = slow_square_sum(vector) ** 0.5
        rows.append(vector / length)
    return torch.stack(rows)


def slow_loss(student_maps: list[Tensor], teacher_maps: list[Tensor]) -> Tensor:
    """Sum over the taps of the mean squared difference of attention."""
    total = ZERO
    for student_map, teacher_map in zip(student_maps, teacher_maps, strict=True):
        differences = slow_attention(student_map) - slow_attention(teacher_map)
        n_entries = differences.numel()
        for difference in differences.flatten():
            total = total + difference**2 / n_entries
    return total


# --- the map


def test_map_equals_the_slow_one_with_non_negative_rows_of_length_one() -> None:
    activations = draw_map(3, 4, 5, 2)
    attention = attention_map(activations)
    expected = slow_attention(activations)
    lengths = attention.norm(dim=1)

    assert_close(attention, expected)
    assert_close(lengths, torch.ones(3, dtype=torch.float64))
    assert (attention >= 0).all()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), exponent=st.floats(-2, 4), sign=st.sampled_from([-1, 1]))
def test_scale_sign_and_order_of_the_channels_change_nothing(
    seed: int, exponent: float, sign: int
) -> None:
    activations = draw_map(2, 6, 3, 4, seed=seed)
    expected = attention_map(activations)
    order = torch.randperm(6, generator=seeded_generator(seed))
    scale = sign * 10**exponent
    changed = scale * activations[:, order]

    assert_close(attention_map(changed), expected)


def test_repeating_the_channels_changes_nothing() -> None:
    activations = draw_map(2, 3, 4, 4)
    expected = attention_map(activations)
    # A sum over the channels would grow; the mean of squares does not.
    repeated = activations.repeat(1, 2, 1, 1)

    assert_close(attention_map(repeated), expected)


def test_large_float16_activations_do_not_overflow() -> None:
    activations = draw_map(2, 3, 4, 4)
    large = (1000 * activations).half()  # their squares exceed 65,504
    expected = attention_map(activations).float()

    assert_close(attention_map(large), expected, rtol=1e-2, atol=1e-3)


# --- the loss


def test_loss_equals_the_slow_one_with_its_gradient() -> None:
    student, teacher = draw_taps()
    for student_map in student:
        student_map.requires_grad_()

    fast = attention_transfer_loss(student, teacher)
    slow = slow_loss(student, teacher)
    fast_gradients = torch.autograd.grad(fast, student)
    slow_gradients = torch.autograd.grad(slow, student)

    assert_close(fast, slow)
    assert_close(fast_gradients, slow_gradients)


def test_equal_maps_of_other_scale_and_width_have_no_loss() -> None:
    student, _ = draw_taps()
    teacher = [3.0 * student_map.repeat(1, 2, 1, 1) for student_map in student]
    loss = attention_transfer_loss(student, teacher)

    assert_close(loss, ZERO)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_the_loss_of_a_tap_is_at_most_two_over_its_positions_and_taps_add_up(seed: int) -> None:
    student, teacher = draw_taps(seed)
    total = ZERO
    for student_map, teacher_map in zip(student, teacher, strict=True):
        loss = attention_transfer_loss([student_map], [teacher_map])
        n_positions = math.prod(student_map.shape[2:])
        # Two unit vectors without negative entries are at most sqrt(2) apart.
        assert 0 <= loss <= 2 / n_positions
        total = total + loss

    loss_of_all_taps = attention_transfer_loss(student, teacher)

    assert_close(loss_of_all_taps, total)


def test_attention_to_two_different_positions_has_the_largest_loss() -> None:
    student = torch.zeros(1, 1, 2, 2)
    teacher = torch.zeros(1, 1, 2, 2)
    # One position each, so that the unit vectors are orthogonal.
    student[..., 0, 0] = 1.0
    teacher[..., 1, 1] = 5.0

    loss = attention_transfer_loss([student], [teacher])

    assert loss == 2 / 4


def block_means(activations: Tensor, size: tuple[int, int]) -> Tensor:
    """Average the mean of squares over equal blocks of positions, and normalize."""
    energy = activations.square().mean(dim=1)
    n_images, height, width = energy.shape
    n_rows, n_columns = size
    block_height = height // n_rows
    block_width = width // n_columns
    # Adaptive pooling averages such blocks where the sizes divide each other.
    blocks = energy.view(n_images, n_rows, block_height, n_columns, block_width)
    means = blocks.mean(dim=(2, 4)).flatten(1)
    return functional.normalize(means, dim=1)


@pytest.mark.parametrize(
    ("student_size", "teacher_size", "common"),
    [((4, 6), (2, 3), (2, 3)), ((3, 2), (6, 8), (3, 2)), ((4, 2), (2, 6), (2, 2))],
)
def test_of_two_sizes_the_larger_is_averaged_down(
    student_size: tuple[int, int], teacher_size: tuple[int, int], common: tuple[int, int]
) -> None:
    student = draw_map(3, 2, *student_size)
    teacher = draw_map(3, 4, *teacher_size, seed=1)
    difference = block_means(student, common) - block_means(teacher, common)
    expected = difference.square().mean()

    loss = attention_transfer_loss([student], [teacher])

    assert_close(loss, expected)


def test_gradcheck_also_through_the_pooling() -> None:
    student = draw_map(2, 3, 4, 4).requires_grad_()
    smaller = draw_map(2, 2, 2, 4, seed=1)
    as_large = draw_map(2, 3, 4, 4, seed=2)

    # The first tap pools the student, the second needs no pooling.
    def loss(student_map: Tensor) -> Tensor:
        return attention_transfer_loss([student_map, student_map], [smaller, as_large])

    assert torch.autograd.gradcheck(loss, student)


def test_bf16_maps_give_a_float32_loss() -> None:
    student, teacher = draw_taps()
    student_map = student[0].bfloat16()
    teacher_map = teacher[0].bfloat16()

    loss = attention_transfer_loss([student_map], [teacher_map])

    assert loss.dtype == torch.float32

    expected = attention_transfer_loss([student_map.float()], [teacher_map.float()])
    assert_close(loss, expected, rtol=0, atol=0)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = draw_taps()
    for tensor in (*student, *teacher):
        tensor.requires_grad_()

    attention_transfer_loss(student, teacher).backward()

    for student_map, teacher_map in zip(student, teacher, strict=True):
        assert student_map.grad is not None
        assert teacher_map.grad is None


def test_a_dead_map_has_no_attention_and_a_finite_gradient() -> None:
    dead = torch.zeros(1, 3, 2, 2, requires_grad=True)
    loss = attention_transfer_loss([dead], [torch.ones(1, 3, 2, 2)])
    loss.backward()

    # The teacher's unit vector alone, averaged over its four positions.
    assert loss.item() == pytest.approx(1 / 4)
    assert dead.grad is not None
    assert (dead.grad == 0).all()


def test_the_host_never_reads_a_tensor() -> None:
    # A meta tensor has no data: any .item(), bool() or branch on a value raises.
    student = torch.empty(2, 3, 4, 4, device="meta")
    teacher = torch.empty(2, 3, 2, 4, device="meta")
    loss = attention_transfer_loss([student], [teacher])

    assert loss.shape == ()


def test_other_numbers_of_taps_are_refused() -> None:
    student, teacher = draw_taps()
    with pytest.raises(ValueError, match="equally many taps, at least one, got 2 and 1"):
        attention_transfer_loss(student, teacher[:1])
    with pytest.raises(ValueError, match="got 0 and 0"):
        attention_transfer_loss([], [])


def test_maps_that_do_not_fit_are_refused() -> None:
    student, teacher = draw_taps()
    vectors = teacher[1][:, :, 0, 0]
    message = r"teacher's map of tap 1 is \(3, 7\); expected \(N, C, H, W\)"

    with pytest.raises(ValueError, match=message):
        attention_transfer_loss(student, [teacher[0], vectors])

    two_images = teacher[0][:2]
    message = "tap 0 has maps of 3 images of the student, 2 of the teacher"

    with pytest.raises(ValueError, match=message):
        attention_transfer_loss(student[:1], [two_images])

    matrix = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"the feature map is \(4, 2\)"):
        attention_map(matrix)
