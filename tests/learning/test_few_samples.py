"""FitNet's hints and FSKD's alignment against slow references and their limits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import Tensor, nn
from torch.testing import assert_close

from pu_kd_pipeline.learning.few_samples import (
    absorb_pointwise,
    align,
    hint_adapter,
    hint_loss,
    pointwise_fit,
    record_outputs,
)
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.learning.networks.lenet import digits_cnn, lenet5, lenet5_half
from pu_kd_pipeline.learning.pruning import prune_teacher_into
from tests.learning.generators import seeded_generator

SHAPES = {"lenet5": (1, 32, 32), "digits_cnn": (1, 8, 8)}


def trained_looking(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorm statistics and weights that are not those of a fresh network."""
    generator = seeded_generator(seed)
    for module in network.modules():
        if not isinstance(module, nn.BatchNorm2d):
            continue
        weight = module.weight.data
        bias = module.bias.data
        for values in (module.running_mean, module.running_var, weight, bias):
            values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return network.eval()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded_generator(seed))


# --- hints


def slow_hint_loss(student: Tensor, teacher: Tensor, adapter: nn.Conv2d) -> float:
    """Half the mean squared distance, one position of one image at a time."""
    weight = adapter.weight.squeeze()
    total = 0.0
    for student_image, teacher_image in zip(student, teacher, strict=True):
        # One column per position.
        student_columns = student_image.flatten(1).T
        teacher_columns = teacher_image.flatten(1).T
        for column, expected in zip(student_columns, teacher_columns, strict=True):
            adapted = weight @ column + adapter.bias
            squares = (adapted - expected).square()
            total += squares.sum().item()
    # The mean, where the paper has the sum (Eq. 3).
    return total / (2 * teacher.numel())


def test_hint_loss_is_half_the_mean_squared_distance_of_the_adapted_map():
    student = draw(3, 2, 4, 4)
    teacher = draw(3, 5, 4, 4, seed=1)
    adapter = hint_adapter(student, teacher)

    loss = hint_loss(student, teacher, adapter)
    expected = slow_hint_loss(student, teacher, adapter)

    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_vectors_are_maps_of_one_pixel_and_no_gradient_reaches_the_teacher():
    student = draw(4, 3).requires_grad_()
    teacher = draw(4, 3, seed=1).requires_grad_()
    adapter = hint_adapter(student, teacher)

    loss = hint_loss(student, teacher, adapter)
    student_maps = student[..., None, None]
    teacher_maps = teacher[..., None, None]
    loss_of_maps = hint_loss(student_maps, teacher_maps, adapter)

    assert_close(loss, loss_of_maps)

    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((1, 2, 4, 4), (1, 2, 8, 8), "equal height and width"),
        ((1, 2, 4), (1, 2, 4), r"guided layer gives \(1, 2, 4\)"),
    ],
)
def test_hints_between_maps_that_do_not_fit_are_refused(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        hint_adapter(torch.zeros(student), torch.zeros(teacher))


def test_outputs_are_recorded_by_name_and_the_hook_is_removed_afterwards():
    network = lenet5(10).eval()
    images = draw(2, 1, 32, 32)

    with record_outputs(network, "pool2") as outputs:
        network(images)
    network(images)  # outside of the block: not recorded

    assert len(outputs) == 1
    assert outputs[0].shape == (2, 16, 5, 5)


def test_a_layer_that_does_not_exist_is_refused_by_name():
    context = record_outputs(lenet5(10), "pool9")
    message = "no layer 'pool9'; its layers are conv1, relu1"

    with pytest.raises(ValueError, match=message), context:
        pass


# --- least squares


def as_rows(maps: Tensor) -> np.ndarray:
    """Return (N H W, C) float64: every position is a sample of its channels."""
    channels_last = maps.double().permute(0, 2, 3, 1)
    return channels_last.flatten(0, 2).numpy()


def test_the_fit_equals_numpys_least_squares():
    x = draw(50, 6, 3, 3)
    y = draw(50, 6, 3, 3, seed=1)
    expected, *_ = np.linalg.lstsq(as_rows(x), as_rows(y), rcond=None)

    fitted = pointwise_fit(x, y, ridge=0.0)

    # NumPy multiplies rows from the right, a pointwise convolution columns from the left.
    assert_allclose(fitted.numpy(), expected.T, atol=1e-5)


def test_a_known_mixing_of_channels_is_recovered():
    mixing = draw(5, 5)
    x = draw(40, 5, 2, 2, seed=1)
    y = torch.einsum("dc,nchw->ndhw", mixing, x)

    fitted = pointwise_fit(x, y, ridge=0.0)

    assert_close(fitted, mixing, atol=1e-4, rtol=1e-4)


def test_with_fewer_samples_than_channels_the_rest_stays_the_identity():
    # Three samples leave five directions undetermined.
    x = draw(3, 8)
    y = draw(3, 8, seed=1)

    fitted = pointwise_fit(x, y, ridge=0.0)
    fitted_y = x @ fitted.T

    assert_close(fitted_y, y, atol=1e-4, rtol=1e-4)

    # The last right singular vectors are the directions that no sample has.
    _, _, directions = torch.linalg.svd(x.double())
    unseen = directions[3:].float()
    fitted_unseen = unseen @ fitted.T

    assert_close(fitted_unseen, unseen, atol=1e-4, rtol=1e-4)


def slow_ridge_fit(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Solve the normal equations of least squares that are pulled to the identity."""
    identity = torch.eye(x.shape[1], dtype=x.dtype)
    # s of the objective: the ridge does not depend on the scale of the features.
    squared_norms = x.square().sum(dim=0)
    s = squared_norms.mean()
    pull = ridge * s * identity
    left = x.T @ x + pull
    right = x.T @ y + pull
    solution = torch.linalg.solve(left, right)
    return solution.T


@given(ridge=st.floats(0, 10), seed=st.integers(0, 5))
def test_the_ridge_pulls_to_the_identity_as_its_normal_equations_say(ridge, seed):
    x = draw(30, 4, seed=seed).double()
    y = draw(30, 4, seed=seed + 9).double()

    fitted = pointwise_fit(x, y, ridge=ridge)
    expected = slow_ridge_fit(x, y, ridge)

    assert_close(fitted, expected, atol=1e-8, rtol=0)


def test_different_shapes_and_a_negative_ridge_are_refused():
    three_channels = torch.zeros(2, 3)
    four_channels = torch.zeros(2, 4)

    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 4\)"):
        pointwise_fit(three_channels, four_channels, ridge=0.0)
    with pytest.raises(ValueError, match="ridge must be at least 0"):
        pointwise_fit(three_channels, three_channels, ridge=-1.0)


# --- absorption


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "input_shape"),
    [
        (nn.Conv2d(3, 5, 3, padding=1), (4, 3, 6, 6)),
        (nn.Conv2d(3, 5, 2, bias=False), (4, 3, 6, 6)),
        (nn.Linear(7, 5), (4, 7)),
    ],
)
def test_an_absorbed_convolution_gives_the_same_function(layer, input_shape):
    inputs = draw(*input_shape)
    pointwise = draw(5, 5, seed=3)
    outputs = layer(inputs)
    # The ellipsis stands for height and width, or for nothing.
    expected = torch.einsum("dc,nc...->nd...", pointwise, outputs)

    absorb_pointwise(layer, pointwise)
    absorbed_outputs = layer(inputs)

    assert_close(absorbed_outputs, expected, atol=1e-5, rtol=1e-4)


# --- pruning and alignment


@torch.no_grad()
def batch_logits(network: nn.Module, images: Tensor) -> Tensor:
    return network(images)


@pytest.mark.parametrize("name", SHAPES)
def test_pruning_to_the_teachers_own_widths_changes_nothing(name):
    shape = SHAPES[name]
    teacher = trained_looking(build_network(name, 10, 1))
    student = build_network(name, 10, 1).eval()
    pairs = prune_teacher_into(student, teacher, shape)
    images = draw(5, *shape)
    expected = batch_logits(teacher, images)
    pruned_logits = batch_logits(student, images)

    assert_close(pruned_logits, expected)

    # There is nothing to align either: the least squares are solved by the identity.
    align(student, pairs, teacher, images, ridge=0.0)
    aligned_logits = batch_logits(student, images)

    assert_close(aligned_logits, expected, atol=1e-4, rtol=1e-4)


def silence(batchnorm: nn.BatchNorm2d, channels: list[int]) -> None:
    """Make the channels zero: so are then the outputs of BatchNorm and ReLU."""
    batchnorm.weight.data[channels] = 0
    batchnorm.bias.data[channels] = 0


def filters_by_strength(layer: nn.Module) -> list[int]:
    """Return the filters, the one with the largest sum of absolute weights first."""
    weight = layer.weight
    strengths = weight.abs().sum(dim=(1, 2, 3))
    return strengths.argsort(descending=True).tolist()


def test_a_pruned_network_is_the_teacher_with_its_weak_filters_silenced():
    teacher = trained_looking(digits_cnn(10, width=8))
    student = digits_cnn(10, width=3).eval()
    pairs = prune_teacher_into(student, teacher, (1, 8, 8))
    silenced = copy.deepcopy(teacher)
    batchnorms = (silenced.block1[1], silenced.block2[1], silenced.block3[1])

    # The last pair is the linear layer, which keeps all.
    for batchnorm, pair, width in zip(batchnorms, pairs, (3, 6, 6), strict=False):
        by_strength = filters_by_strength(pair.teacher)
        strongest = by_strength[:width]
        weak = by_strength[width:]
        assert sorted(pair.kept.tolist()) == sorted(strongest)
        silence(batchnorm, weak)

    images = draw(4, 1, 8, 8)
    found = batch_logits(student, images)
    expected = batch_logits(silenced, images)

    assert_close(found, expected, atol=1e-5, rtol=1e-4)


def mean_squared_difference(student: nn.Module, teacher: nn.Module, images: Tensor) -> float:
    """Compare the logits of the student, in eval mode afterwards, with those of the teacher."""
    student.eval()
    difference = batch_logits(student, images) - batch_logits(teacher, images)
    return difference.square().mean().item()


def test_alignment_brings_the_logits_nearer_to_the_teachers():
    teacher = trained_looking(lenet5(10))
    student = lenet5_half(10)
    pairs = prune_teacher_into(student, teacher, (1, 32, 32))
    images = draw(200, 1, 32, 32)
    before = mean_squared_difference(student, teacher, images)
    student.train()

    align(student, pairs, teacher, images, ridge=0.0)

    assert student.training  # the mode in which it came

    after = mean_squared_difference(student, teacher, images)
    assert after < 0.5 * before


@pytest.mark.parametrize(
    ("student", "teacher", "shape", "message"),
    [
        ("digits_cnn", "lenet5", (1, 32, 32), "it has 7 layers with weights, the teacher 5"),
        ("cifar_resnet18", "cifar_resnet18", (1, 8, 8), "plain chain"),
    ],
)
def test_networks_that_are_not_a_chain_or_not_a_pair_are_refused(student, teacher, shape, message):
    student_network = build_network(student, 10, 1)
    teacher_network = build_network(teacher, 10, 1)

    with pytest.raises(ValueError, match=message):
        prune_teacher_into(student_network, teacher_network, shape)


class Shortcut(nn.Module):
    """Adds the channels of two layers, which their widths alone do not show."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        second = self.second(first)
        maps = first + second
        averages = maps.mean(dim=(2, 3))
        return self.fc(averages)


def test_a_network_with_a_shortcut_is_refused():
    student = Shortcut()
    teacher = Shortcut()

    with pytest.raises(ValueError, match="branches"):
        prune_teacher_into(student, teacher, (1, 8, 8))


def test_a_wider_student_is_refused():
    student = lenet5(10)
    teacher = lenet5_half(10)

    with pytest.raises(ValueError, match="narrower copy of its teacher: 'conv1'"):
        prune_teacher_into(student, teacher, (1, 32, 32))


def test_unknown_layers_are_refused():
    # A PReLU has weights per channel, which pruning would have to select.
    odd = nn.Sequential(nn.Conv2d(1, 2, 3), nn.PReLU(), nn.Flatten(), nn.Linear(72, 10))
    student = copy.deepcopy(odd)

    with pytest.raises(ValueError, match="'1' is PReLU"):
        prune_teacher_into(student, odd, (1, 8, 8))
