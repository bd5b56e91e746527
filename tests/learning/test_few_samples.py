"""FitNet's hints and FSKD's alignment against slow references and their limits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

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

SHAPES = {"lenet5": (1, 32, 32), "digits_cnn": (1, 8, 8)}


def trained_looking(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorm statistics and weights that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.weight.data, module.bias.data):
                values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
            module.running_var.copy_(
                torch.rand(module.running_var.shape, generator=generator) + 0.5
            )
    return network.eval()


def images(n: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


# --- hints


def test_hint_loss_is_half_the_mean_squared_distance_of_the_adapted_map():
    student, teacher = images(3, (2, 4, 4)), images(3, (5, 4, 4), seed=1)
    adapter = hint_adapter(student, teacher)
    total = 0.0
    for n in range(3):
        for y in range(4):
            for x in range(4):
                adapted = adapter.weight[:, :, 0, 0] @ student[n, :, y, x] + adapter.bias
                total += (adapted - teacher[n, :, y, x]).square().sum().item()
    assert hint_loss(student, teacher, adapter).item() == pytest.approx(
        total / (2 * teacher.numel()), rel=1e-5
    )


def test_vectors_are_maps_of_one_pixel_and_no_gradient_reaches_the_teacher():
    student, teacher = (images(4, (3, 1, 1), seed).flatten(1).requires_grad_() for seed in (0, 1))
    adapter = hint_adapter(student, teacher)
    loss = hint_loss(student, teacher, adapter)
    assert loss.item() == pytest.approx(
        hint_loss(student[..., None, None], teacher[..., None, None], adapter).item(), rel=1e-6
    )
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


def test_outputs_are_caught_by_name_and_the_hook_is_gone_afterwards():
    network = lenet5(10).eval()
    with outputs_of(network, "pool2") as caught:
        network(images(2, (1, 32, 32)))
    network(images(2, (1, 32, 32)))
    assert [tuple(output.shape) for output in caught] == [(2, 16, 5, 5)]
    with (
        pytest.raises(ValueError, match="no layer 'pool9'; its layers are conv1, relu1"),
        outputs_of(network, "pool9"),
    ):
        pass


# --- least squares


def test_the_fit_equals_numpys_least_squares():
    x, y = images(50, (6, 3, 3)), images(50, (6, 3, 3), seed=1)
    flat = [part.numpy().astype(np.float64).transpose(0, 2, 3, 1).reshape(-1, 6) for part in (x, y)]
    expected, *_ = np.linalg.lstsq(*flat, rcond=None)
    np.testing.assert_allclose(pointwise_fit(x, y, ridge=0.0).numpy(), expected.T, atol=1e-5)


def test_a_known_mixing_of_channels_is_found_again():
    mixing = images(1, (5, 5, 1)).view(5, 5)
    x = images(40, (5, 2, 2), seed=1)
    y = torch.einsum("dc,nchw->ndhw", mixing, x)
    torch.testing.assert_close(pointwise_fit(x, y, ridge=0.0), mixing, atol=1e-4, rtol=1e-4)


def test_with_fewer_samples_than_channels_the_rest_stays_as_it_is():
    x, y = images(3, (8, 1, 1)).flatten(1), images(3, (8, 1, 1), seed=1).flatten(1)
    fitted = pointwise_fit(x, y, ridge=0.0)
    torch.testing.assert_close(x @ fitted.T, y, atol=1e-4, rtol=1e-4)  # what the samples say
    orthogonal = torch.linalg.svd(x.double())[2][3:].float()  # directions that no sample has
    torch.testing.assert_close(orthogonal @ fitted.T, orthogonal, atol=1e-4, rtol=1e-4)


@given(ridge=st.floats(0, 10), seed=st.integers(0, 5))
def test_the_ridge_pulls_to_the_identity_as_its_normal_equations_say(ridge, seed):
    x, y = (
        part.flatten(1).double().numpy()
        for part in (images(30, (4, 1, 1), seed), images(30, (4, 1, 1), seed + 9))
    )
    pull = ridge * (x**2).sum(axis=0).mean() * np.eye(4)
    expected = np.linalg.solve(x.T @ x + pull, x.T @ y + pull).T
    fitted = pointwise_fit(torch.from_numpy(x), torch.from_numpy(y), ridge=ridge)
    np.testing.assert_allclose(fitted.numpy(), expected, atol=1e-8)


def test_fits_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 4\)"):
        pointwise_fit(torch.zeros(2, 3), torch.zeros(2, 4), ridge=0.0)
    with pytest.raises(ValueError, match="ridge must be at least 0"):
        pointwise_fit(torch.zeros(2, 3), torch.zeros(2, 3), ridge=-1.0)


# --- absorption


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 2, bias=False), nn.Linear(7, 5)]
)
def test_an_absorbed_convolution_gives_the_same_function(layer):
    inputs = (
        images(4, (3, 6, 6)) if isinstance(layer, nn.Conv2d) else images(4, (7, 1, 1)).flatten(1)
    )
    pointwise = images(1, (5, 5, 1), seed=3).view(5, 5)
    added = nn.Conv2d(5, 5, 1, bias=False)
    added.weight.data.copy_(pointwise[..., None, None])
    with torch.no_grad():
        outputs = layer(inputs)
        expected = added(outputs if outputs.ndim == 4 else outputs[..., None, None]).view_as(
            outputs
        )
        absorb_pointwise(layer, pointwise)
        torch.testing.assert_close(layer(inputs), expected, atol=1e-5, rtol=1e-4)


# --- pruning and alignment


@pytest.mark.parametrize("name", SHAPES)
def test_pruning_to_the_teachers_own_widths_changes_nothing(name):
    teacher = trained_looking(build_network(name, 10, 1))
    student = build_network(name, 10, 1).eval()
    pairs = prune_into(student, teacher, SHAPES[name])
    x = images(5, SHAPES[name])
    with torch.no_grad():
        torch.testing.assert_close(student(x), teacher(x))
        align(student, pairs, teacher, x, ridge=0.0)
        torch.testing.assert_close(student(x), teacher(x), atol=1e-4, rtol=1e-4)


def test_a_pruned_network_is_the_teacher_with_its_weak_filters_silenced():
    teacher, student = trained_looking(digits_cnn(10, width=8)), digits_cnn(10, width=3).eval()
    pairs = prune_into(student, teacher, (1, 8, 8))
    silenced = copy.deepcopy(teacher)
    blocks = (silenced.block1, silenced.block2, silenced.block3)
    with torch.no_grad():
        for block, pair, width in zip(blocks, pairs, (3, 6, 6), strict=False):
            norms = pair.teacher.weight.abs().sum(dim=(1, 2, 3))
            assert set(pair.kept.tolist()) == set(norms.argsort(descending=True)[:width].tolist())
            weak = [channel for channel in range(len(norms)) if channel not in pair.kept]
            block[1].weight[weak] = 0  # what leaves BatchNorm and ReLU is zero
            block[1].bias[weak] = 0
        x = images(4, (1, 8, 8))
        torch.testing.assert_close(student(x), silenced(x), atol=1e-5, rtol=1e-4)


def test_alignment_brings_every_layer_nearer_to_the_teacher():
    teacher, student = trained_looking(lenet5(10)), lenet5_half(10)
    pairs = prune_into(student, teacher, (1, 32, 32))
    x = images(200, (1, 32, 32))

    def distance() -> float:
        with torch.no_grad():
            return float((student.eval()(x) - teacher(x)).square().mean())

    before = distance()
    student.train()
    align(student, pairs, teacher, x, ridge=0.0)
    assert student.training
    assert distance() < 0.5 * before


@pytest.mark.parametrize(
    ("student", "teacher", "shape", "message"),
    [
        ("digits_cnn", "lenet5", (1, 32, 32), "it has 7 layers with weights, the teacher 5"),
        ("cifar_resnet18", "cifar_resnet18", (1, 8, 8), "no chain|branches"),
    ],
)
def test_networks_that_are_no_chain_or_no_pair_are_refused(student, teacher, shape, message):
    with pytest.raises(ValueError, match=message):
        prune_into(build_network(student, 10, 1), build_network(teacher, 10, 1), shape)


def test_a_wider_student_and_unknown_layers_are_refused():
    with pytest.raises(ValueError, match="narrower copy of its teacher: 'conv1'"):
        prune_into(lenet5(10), lenet5_half(10), (1, 32, 32))
    odd = nn.Sequential(nn.Conv2d(1, 2, 3), nn.PReLU(), nn.Flatten(), nn.Linear(72, 10))
    with pytest.raises(ValueError, match="'1' is PReLU"):
        prune_into(copy.deepcopy(odd), odd, (1, 8, 8))
    shortcut = Shortcut()
    with pytest.raises(ValueError, match="branches"):
        prune_into(Shortcut(), shortcut, (1, 8, 8))


class Shortcut(nn.Module):
    """Adds two layers' channels, which widths alone do not show."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.fc((x + self.second(x)).mean(dim=(2, 3)))
