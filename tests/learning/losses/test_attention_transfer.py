"""Attention transfer: a slow reference with gradients, what attention does not see, and maps of two sizes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pu_kd_pipeline.learning.losses.attention_transfer import attention_map, attention_transfer_loss


def feature_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_attention(feature_map: Tensor) -> Tensor:
    """Mean of squares over the channels, one place at a time, divided by the length."""
    rows = []
    for channels in feature_map:
        _, height, width = channels.shape
        places = [
            sum(a[y, x] ** 2 for a in channels) / len(channels)
            for y in range(height)
            for x in range(width)
        ]
        length = sum(q**2 for q in places) ** 0.5
        rows.append(torch.stack([q / length for q in places]))
    return torch.stack(rows)


def slow_loss(student_maps: list[Tensor], teacher_maps: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        student_rows, teacher_rows = slow_attention(student), slow_attention(teacher)
        n, n_places = student_rows.shape
        for i in range(n):
            for place in range(n_places):
                total = total + (student_rows[i, place] - teacher_rows[i, place]) ** 2 / (
                    n * n_places
                )
    return total


def taps(seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Two taps of a student and of a teacher that is wider in the second."""
    student = [feature_map(3, 2, 4, 3, seed=seed), feature_map(3, 5, 2, 2, seed=seed + 1)]
    return student, [feature_map(3, 2, 4, 3, seed=seed + 2), feature_map(3, 7, 2, 2, seed=seed + 3)]


def test_map_equals_the_slow_one_with_non_negative_rows_of_length_one() -> None:
    activations = feature_map(3, 4, 5, 2)
    attention = attention_map(activations)
    torch.testing.assert_close(attention, slow_attention(activations))
    torch.testing.assert_close(attention.norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert (attention >= 0).all()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), exponent=st.floats(-2, 4), is_negative=st.booleans())
def test_scale_sign_and_order_of_the_channels_change_nothing(
    seed: int, exponent: float, is_negative: bool
) -> None:
    activations = feature_map(2, 6, 3, 4, seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    changed = (-1 if is_negative else 1) * 10**exponent * activations[:, order]
    torch.testing.assert_close(attention_map(changed), attention_map(activations))


def test_channels_that_are_there_twice_count_once() -> None:
    activations = feature_map(2, 3, 4, 4)
    torch.testing.assert_close(
        attention_map(activations.repeat(1, 2, 1, 1)), attention_map(activations)
    )


def test_loss_equals_the_slow_one_with_its_gradient() -> None:
    student, teacher = taps()
    for tensor in student:
        tensor.requires_grad_()
    fast, slow = attention_transfer_loss(student, teacher), slow_loss(student, teacher)
    torch.testing.assert_close(fast, slow)
    for mine, expected in zip(
        torch.autograd.grad(fast, student), torch.autograd.grad(slow, student), strict=True
    ):
        torch.testing.assert_close(mine, expected)


def test_equal_maps_of_other_scale_and_width_cost_nothing() -> None:
    student, _ = taps()
    teacher = [3.0 * tensor.repeat(1, 2, 1, 1) for tensor in student]
    torch.testing.assert_close(
        attention_transfer_loss(student, teacher), torch.zeros((), dtype=torch.float64)
    )


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_a_tap_costs_at_most_two_over_its_places_and_taps_add_up(seed: int) -> None:
    student, teacher = taps(seed)
    each = [attention_transfer_loss([s], [t]) for s, t in zip(student, teacher, strict=True)]
    assert all(
        0 <= loss <= 2 / math.prod(s.shape[2:]) for loss, s in zip(each, student, strict=True)
    )
    torch.testing.assert_close(attention_transfer_loss(student, teacher), each[0] + each[1])


def test_attention_in_two_places_costs_the_most() -> None:
    student, teacher = torch.zeros(2, 1, 1, 2, 2).unbind()
    student[..., 0, 0], teacher[..., 1, 1] = 1.0, 5.0
    assert attention_transfer_loss([student], [teacher]) == 2 / 4


@pytest.mark.parametrize(
    ("student_size", "teacher_size", "common"),
    [((4, 6), (2, 3), (2, 3)), ((3, 2), (6, 8), (3, 2)), ((4, 2), (2, 6), (2, 2))],
)
def test_of_two_sizes_the_larger_is_averaged_down(
    student_size: tuple[int, int], teacher_size: tuple[int, int], common: tuple[int, int]
) -> None:
    student, teacher = feature_map(3, 2, *student_size), feature_map(3, 4, *teacher_size, seed=1)

    def blocks(activations: Tensor) -> Tensor:
        energy = activations.square().mean(dim=1)
        step = [size // small for size, small in zip(energy.shape[1:], common, strict=True)]
        rows = [
            [
                energy[:, y * step[0] : (y + 1) * step[0], x * step[1] : (x + 1) * step[1]].mean(
                    dim=(1, 2)
                )
                for x in range(common[1])
            ]
            for y in range(common[0])
        ]
        return functional.normalize(
            torch.stack([cell for row in rows for cell in row], dim=1), dim=1
        )

    expected = (blocks(student) - blocks(teacher)).square().mean()
    torch.testing.assert_close(attention_transfer_loss([student], [teacher]), expected)


def test_gradcheck_also_through_the_pooling() -> None:
    student = feature_map(2, 3, 4, 4).requires_grad_()
    teacher_maps = [feature_map(2, 2, 2, 4, seed=1), feature_map(2, 3, 4, 4, seed=2)]
    assert torch.autograd.gradcheck(
        lambda s: attention_transfer_loss([s, s], teacher_maps), student
    )


def test_no_gradient_reaches_the_teacher_and_bf16_maps_give_a_float32_loss() -> None:
    student, teacher = ([tensor.bfloat16().requires_grad_() for tensor in maps] for maps in taps())
    loss = attention_transfer_loss(student, teacher)
    assert loss.dtype == torch.float32
    expected = attention_transfer_loss([s.float() for s in student], [t.float() for t in teacher])
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    loss.backward()
    assert all(tensor.grad is not None for tensor in student)
    assert all(tensor.grad is None for tensor in teacher)


def test_large_float16_activations_do_not_overflow() -> None:
    activations = feature_map(2, 3, 4, 4)
    large = (1000 * activations).half()
    torch.testing.assert_close(
        attention_map(large), attention_map(activations).float(), rtol=1e-2, atol=1e-3
    )


def test_a_dead_map_has_no_attention_and_a_finite_gradient() -> None:
    dead = torch.zeros(1, 3, 2, 2, requires_grad=True)
    loss = attention_transfer_loss([dead], [torch.ones(1, 3, 2, 2)])
    loss.backward()
    assert loss.item() == pytest.approx(1 / 4)
    assert dead.grad is not None
    assert (dead.grad == 0).all()


def test_the_host_never_reads_a_tensor() -> None:
    student, teacher = (torch.empty(2, 3, size, 4, device="meta") for size in (4, 2))
    assert attention_transfer_loss([student], [teacher]).shape == ()


def test_maps_that_do_not_fit_are_refused() -> None:
    student, teacher = taps()
    with pytest.raises(ValueError, match="equally many taps, at least one, got 2 and 1"):
        attention_transfer_loss(student, teacher[:1])
    with pytest.raises(ValueError, match="got 0 and 0"):
        attention_transfer_loss([], [])
    with pytest.raises(
        ValueError, match=r"teacher's map of tap 1 is \(3, 7\); expected \(N, C, H, W\)"
    ):
        attention_transfer_loss(student, [teacher[0], teacher[1][:, :, 0, 0]])
    with pytest.raises(
        ValueError, match="tap 0 has maps of 3 images of the student, 2 of the teacher"
    ):
        attention_transfer_loss(student, [tensor[:2] for tensor in teacher])
    with pytest.raises(ValueError, match=r"the feature map is \(4, 2\)"):
        attention_map(torch.zeros(4, 2))
