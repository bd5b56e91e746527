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
    outputs_of,
    pointwise_fit,
    prune_into,
)
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.learning.networks.lenet import digits_cnn, lenet5, lenet5_half
from tests.learning.generators import seeded_generator

SHAPES = {"lenet5": (1, 32, 32), "digits_cnn": (1, 8, 8)}


def trained_looking(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorm statistics and weights that are not those of a fresh network."""
    generator = seeded_generator(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (
                module.running_mean,
                module.running_var,
                module.weight.data,
                module.bias.data,
            ):
                values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return network.eval()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded_generator(seed))


# --- hints


def test_hint_loss_is_half_the_mean_squared_distance_of_the_adapted_map():
    student = draw(3, 2, 4, 4)
    teacher = draw(3, 5, 4, 4, seed=1)
    adapter = hint_adapter(student, teacher)
    weight = adapter.weight[:, :, 0, 0]
    total = 0.0
    for n in range(3):
        for y in range(4):
            for x in range(4):
                adapted = weight @ student[n, :, y, x] + adapter.bias
                total += (adapted - teacher[n, :, y, x]).square().sum().item()
    # The mean, where the paper has the sum (Eq. 3).
    expected = total / (2 * teacher.numel())

    assert hint_loss(student, teacher, adapter).item() == pytest.approx(expected, rel=1e-5)


def test_vectors_are_maps_of_one_pixel_and_no_gradient_reaches_the_teacher():
    student = draw(4, 3).requires_grad_()
    teacher = draw(4, 3, seed=1).requires_grad_()
    adapter = hint_adapter(student, teacher)
    loss = hint_loss(student, teacher, adapter)
    loss_of_maps = hint_loss(student[..., None, None], teacher[..., None, None], adapter)

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
    with outputs_of(network, "pool2") as outputs:
        network(images)
    network(images)  # outside of the block: not recorded

    assert len(outputs) == 1
    assert outputs[0].shape == (2, 16, 5, 5)


def test_a_layer_that_does_not_exist_is_refused_by_name():
    context = outputs_of(lenet5(10), "pool9")
    message = "no layer 'pool9'; its layers are conv1, relu1"
    with pytest.raises(ValueError, match=message), context:
        pass


# --- least squares


def test_the_fit_equals_numpys_least_squares():
    x = draw(50, 6, 3, 3)
    y = draw(50, 6, 3, 3, seed=1)
    x_rows = x.double().permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    y_rows = y.double().permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    expected, *_ = np.linalg.lstsq(x_rows, y_rows, rcond=None)
    fitted = pointwise_fit(x, y, ridge=0.0)

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

    assert_close(x @ fitted.T, y, atol=1e-4, rtol=1e-4)

    # The last right singular vectors are the directions that no sample has.
    _, _, directions = torch.linalg.svd(x.double())
    unseen = directions[3:].float()

    assert_close(unseen @ fitted.T, unseen, atol=1e-4, rtol=1e-4)


@given(ridge=st.floats(0, 10), seed=st.integers(0, 5))
def test_the_ridge_pulls_to_the_identity_as_its_normal_equations_say(ridge, seed):
    x = draw(30, 4, seed=seed).double()
    y = draw(30, 4, seed=seed + 9).double()
    # s of the objective: the ridge does not depend on the scale of the features.
    mean_squared_norm = x.square().sum(dim=0).mean()
    pull = ridge * mean_squared_norm * torch.eye(4, dtype=torch.float64)
    expected = torch.linalg.solve(x.T @ x + pull, x.T @ y + pull).T
    fitted = pointwise_fit(x, y, ridge=ridge)

    assert_close(fitted, expected, atol=1e-8, rtol=0)


def test_different_shapes_and_a_negative_ridge_are_refused():
    three_channels = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 4\)"):
        pointwise_fit(three_channels, torch.zeros(2, 4), ridge=0.0)
    with pytest.raises(ValueError, match="ridge must be at least 0"):
        pointwise_fit(three_channels, three_channels, ridge=-1.0)


# --- absorption


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
    with torch.no_grad():
        outputs = layer(inputs)
        expected = torch.einsum("dc,nc...->nd...", pointwise, outputs)
        absorb_pointwise(layer, pointwise)
        assert_close(layer(inputs), expected, atol=1e-5, rtol=1e-4)


# --- pruning and alignment


@pytest.mark.parametrize("name", SHAPES)
def test_pruning_to_the_teachers_own_widths_changes_nothing(name):
    shape = SHAPES[name]
    teacher = trained_looking(build_network(name, 10, 1))
    student = build_network(name, 10, 1).eval()
    pairs = prune_into(student, teacher, shape)
    images = draw(5, *shape)
    with torch.no_grad():
        expected = teacher(images)
        assert_close(student(images), expected)
        align(student, pairs, teacher, images, ridge=0.0)
        assert_close(student(images), expected, atol=1e-4, rtol=1e-4)


def test_a_pruned_network_is_the_teacher_with_its_weak_filters_silenced():
    teacher = trained_looking(digits_cnn(10, width=8))
    student = digits_cnn(10, width=3).eval()
    pairs = prune_into(student, teacher, (1, 8, 8))
    silenced = copy.deepcopy(teacher)
    batchnorms = (silenced.block1[1], silenced.block2[1], silenced.block3[1])
    # The last pair is the linear layer, which keeps all.
    for batchnorm, pair, width in zip(batchnorms, pairs, (3, 6, 6), strict=False):
        strengths = pair.teacher.weight.abs().sum(dim=(1, 2, 3))
        by_strength = strengths.argsort(descending=True).tolist()
        assert set(pair.kept.tolist()) == set(by_strength[:width])
        weak = by_strength[width:]
        # BatchNorm and ReLU then give zero.
        batchnorm.weight.data[weak] = 0
        batchnorm.bias.data[weak] = 0
    images = draw(4, 1, 8, 8)
    with torch.no_grad():
        assert_close(student(images), silenced(images), atol=1e-5, rtol=1e-4)


def test_alignment_brings_the_logits_nearer_to_the_teachers():
    teacher = trained_looking(lenet5(10))
    student = lenet5_half(10)
    pairs = prune_into(student, teacher, (1, 32, 32))
    images = draw(200, 1, 32, 32)

    def distance() -> float:
        with torch.no_grad():
            difference = student.eval()(images) - teacher(images)
        return difference.square().mean().item()

    before = distance()
    student.train()
    align(student, pairs, teacher, images, ridge=0.0)

    assert student.training  # the mode in which it came
    assert distance() < 0.5 * before


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
        prune_into(student_network, teacher_network, shape)


class Shortcut(nn.Module):
    """Adds the channels of two layers, which their widths alone do not show."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        x = x + self.second(x)
        return self.fc(x.mean(dim=(2, 3)))


def test_a_network_with_a_shortcut_is_refused():
    with pytest.raises(ValueError, match="branches"):
        prune_into(Shortcut(), Shortcut(), (1, 8, 8))


def test_a_wider_student_and_unknown_layers_are_refused():
    with pytest.raises(ValueError, match="narrower copy of its teacher: 'conv1'"):
        prune_into(lenet5(10), lenet5_half(10), (1, 32, 32))

    odd = nn.Sequential(nn.Conv2d(1, 2, 3), nn.PReLU(), nn.Flatten(), nn.Linear(72, 10))
    with pytest.raises(ValueError, match="'1' is PReLU"):
        prune_into(copy.deepcopy(odd), odd, (1, 8, 8))
