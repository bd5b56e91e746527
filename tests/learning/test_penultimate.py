"""The last linear layer: finding it, recording its input, and sharing the teacher's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pu_kd_pipeline.learning.loop import make_optimizer
from pu_kd_pipeline.learning.losses.latent import latent_loss
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.learning.networks.cifar_resnet import cifar_resnet
from pu_kd_pipeline.learning.networks.lenet import lenet5, lenet5_half
from pu_kd_pipeline.learning.penultimate import (
    PenultimateTap,
    SharedHead,
    find_last_linear,
    fold_shared_head,
    penultimate_adapter,
    share_head,
)

# Whether the student's penultimate layer is narrower, wider or as wide as the teacher's.
PAIRS = ("narrower_lenet", "narrower_resnet", "wider_resnet", "equal_widths")


def make_pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A student, its teacher in eval mode, and images; of 10 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "narrower_lenet":
            student = lenet5_half(10)
            teacher = lenet5(10)
        elif name == "equal_widths":
            student = lenet5(10)
            teacher = lenet5(10)
        elif name == "narrower_resnet":
            student = cifar_resnet(10, in_channels=3, depth=8, width=4)
            teacher = cifar_resnet(10, in_channels=3, depth=8, width=8)
        else:
            student = cifar_resnet(10, in_channels=3, depth=8, width=8)
            teacher = cifar_resnet(10, in_channels=3, depth=8, width=4)
        shape = (3, 16, 16)
        if "resnet" not in name:
            shape = (1, 32, 32)
        images = torch.randn(6, *shape)
    return student, teacher.eval(), images


# --- the last linear layer and its input

CLASSIFIERS = {
    "lenet5": ("fc2", (1, 32, 32)),
    "digits_cnn": ("fc", (1, 8, 8)),
    "cifar_resnet": ("fc", (3, 16, 16)),
    "cifar_resnet18": ("fc", (3, 8, 8)),
    "cifar_vgg13": ("fc", (3, 32, 32)),
    "resnet18": ("fc", (3, 32, 32)),
    "mobilenet_v3_small": ("classifier.3", (3, 32, 32)),
    "shufflenet_v2_x0_5": ("fc", (3, 32, 32)),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_tap_records_the_input_of_the_logits(name):
    layer_name, shape = CLASSIFIERS[name]
    network = build_network(name, 7, shape[0]).eval()
    layer = network.get_submodule(layer_name)
    expected = (layer_name, layer)

    assert find_last_linear(network) == expected
    assert find_last_linear(network, 7) == expected

    images = torch.randn(3, *shape)
    with PenultimateTap(network, 7) as tap, torch.no_grad():
        # The tap holds the features of the latest pass.
        for batch in (images, 2 * images):
            logits = network(batch)
            logits_of_features = layer(tap.features)
            assert_close(logits_of_features, logits)

    assert not layer._forward_pre_hooks


@pytest.mark.parametrize(("name", "layer"), [("vgg11", "classifier.6"), ("vit_b_16", "heads.head")])
def test_the_last_linear_layer_of_large_networks_is_found(name, layer):
    # On the meta device, where large networks cost no memory.
    with torch.device("meta"):
        network = build_network(name, 7, 3)
    found_name, _ = find_last_linear(network, 7)

    assert found_name == layer


def test_gradients_go_through_the_tap():
    student, _, images = make_pair("narrower_lenet")
    with PenultimateTap(student, 10) as tap:
        student(images)
        loss = tap.features.square().sum()
        loss.backward()
    first_gradient = student.conv1.weight.grad

    # The features are the input of the last layer, which they do not depend on.
    assert first_gradient.abs().sum() > 0
    assert student.fc2.weight.grad is None


def test_layers_of_another_number_of_outputs_are_passed_over():
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 9))
    name_of_last, _ = find_last_linear(network)
    name_of_six, _ = find_last_linear(network, 6)

    assert name_of_last == "1"
    assert name_of_six == "0"

    message = "Sequential has no linear layer that gives 10 logits.*'0' of 6, '1' of 9"
    with pytest.raises(ValueError, match=message):
        find_last_linear(network, 10)


def test_a_network_that_ends_in_a_convolution_is_refused():
    with torch.device("meta"):
        network = build_network("squeezenet1_1", 10, 3)
    message = "SqueezeNet has no linear layer that gives the logits.*are: none"

    with pytest.raises(ValueError, match=message):
        find_last_linear(network)


def test_a_tap_without_features_is_refused():
    network = nn.Sequential(nn.Linear(4, 5))
    tokens = torch.zeros(2, 3, 4)  # as a linear layer may get them
    with PenultimateTap(network, 5) as tap:
        with pytest.raises(ValueError, match="no images went through the layer '0'"):
            _ = tap.features

        network(tokens)
        with pytest.raises(ValueError, match=r"'0' reads \(2, 3, 4\); expected \(N, D\)"):
            _ = tap.features

    # The tap holds nothing after its block.
    with pytest.raises(ValueError, match="no images went"):
        _ = tap.features


def test_the_adapter_maps_between_the_widths_and_is_empty_where_they_agree():
    student, teacher, _ = make_pair("narrower_lenet")
    features = torch.zeros(3, 42)

    adapter = penultimate_adapter(student, teacher, 10)
    adapted = adapter(features)

    assert adapted.shape == (3, 84)

    (weight,) = adapter.parameters()  # and no bias
    assert weight.shape == (84, 42)

    identity = penultimate_adapter(teacher, teacher, 10)
    assert not list(identity.parameters())


# --- the shared head


def train_latent(student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    optimizer = make_optimizer(
        student, algorithm="sgd", learning_rate=0.05, momentum=0.9, weight_decay=0.0
    )
    with PenultimateTap(student, 10) as student_tap, PenultimateTap(teacher, 10) as teacher_tap:
        for _ in range(3):
            with torch.no_grad():
                teacher_logits = teacher(images)
            result = latent_loss(
                student(images),
                teacher_logits,
                student_tap.features,
                teacher_tap.features,
                logits_weight=2.0,
                penultimate_weight=3.0,
                kl_weight=0.5,
                temperature=4.0,
            )
            result["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("name", PAIRS)
def test_folding_changes_no_logit_and_restores_the_architecture(name):
    student, teacher, images = make_pair(name)
    plain = copy.deepcopy(student).eval()
    share_head(student, teacher, 10)
    # Trained a little, so that no bias or statistic has its initial value.
    train_latent(student, teacher, images)
    student.eval()

    with torch.no_grad():
        expected = student(images)
        fold_shared_head(student)
        folded_logits = student(images)
        # The weights fit the network that the student was.
        plain.load_state_dict(student.state_dict())
        plain_logits = plain(images)

    assert_close(folded_logits, expected, atol=1e-5, rtol=1e-5)
    assert_close(plain_logits, expected, atol=1e-5, rtol=1e-5)
    for module in student.modules():
        assert not isinstance(module, SharedHead)
    for parameter in student.parameters():
        assert parameter.requires_grad


def test_only_the_teachers_part_of_the_head_is_frozen():
    student, teacher, images = make_pair("narrower_lenet")
    share_head(student, teacher, 10)
    frozen = []
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            frozen.append(name)

    assert frozen == ["fc2.head.weight", "fc2.head.bias"]

    loss = student(images).square().sum()
    loss.backward()
    adapter_gradient = student.fc2.adapter.weight.grad

    assert adapter_gradient.abs().sum() > 0


def test_the_head_is_a_copy_of_the_teachers():
    student, teacher, _ = make_pair("narrower_lenet")
    before = copy.deepcopy(teacher.state_dict())
    share_head(student, teacher, 10)
    student.fc2.head.weight.data.zero_()  # must not reach the teacher

    assert_close(teacher.state_dict(), before)


def test_with_the_teachers_features_the_shared_head_gives_the_teachers_logits():
    student, teacher, images = make_pair("equal_widths")
    share_head(student, teacher, 10)
    # All but the head itself, which the student has already.
    weights = teacher.state_dict()
    del weights["fc2.weight"]
    del weights["fc2.bias"]
    student.load_state_dict(weights, strict=False)
    student.eval()
    with torch.no_grad():
        student_logits = student(images)
        teacher_logits = teacher(images)

    assert_close(student_logits, teacher_logits)


def mlp(width: int, bias: bool) -> nn.Module:
    """A network of 5 classes whose last layer, '3', has a bias or none."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 5, bias=bias)
    )


def test_a_head_without_bias_folds_into_a_layer_that_has_one():
    images = torch.randn(4, 3, 2, 2)
    student = mlp(6, bias=True)
    teacher = mlp(8, bias=False)
    share_head(student, teacher, 5)
    expected = student(images)

    fold_shared_head(student)
    folded_logits = student(images)

    assert_close(folded_logits, expected)
    # The architecture has a bias, so the folded layer needs one.
    assert (student[3].bias == 0).all()


def test_a_head_without_bias_folds_into_a_layer_without():
    student = mlp(6, bias=False)
    teacher = mlp(8, bias=False)
    share_head(student, teacher, 5)

    fold_shared_head(student)

    assert student[3].bias is None


def test_a_head_that_is_not_shared_cannot_be_folded():
    student, _, _ = make_pair("narrower_lenet")
    with pytest.raises(ValueError, match="no shared head to fold"):
        fold_shared_head(student)


def test_a_head_is_not_shared_twice():
    student, teacher, _ = make_pair("narrower_lenet")
    share_head(student, teacher, 10)

    with pytest.raises(ValueError, match="has a shared head already"):
        share_head(student, teacher, 10)


def test_heads_that_cannot_be_shared_are_refused():
    student, teacher, _ = make_pair("narrower_lenet")
    nine_classes = lenet5(9)

    with pytest.raises(ValueError, match="LeNet5 has no linear layer that gives 9 logits"):
        share_head(student, nine_classes, 9)

    single_layer = nn.Linear(4, 10)
    with pytest.raises(ValueError, match="the student is a single linear layer"):
        share_head(single_layer, teacher, 10)

    without_bias = mlp(6, bias=False)
    with_bias = mlp(8, bias=True)

    with pytest.raises(ValueError, match="last layer '3' has no bias and the teacher's has one"):
        share_head(without_bias, with_bias, 5)
