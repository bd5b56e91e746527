"""The latent objective: slow references with gradients and limits, the tap, and the shared head that folds away."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pu_kd_pipeline.learning.loop import make_optimizer
from pu_kd_pipeline.learning.losses.distillation import kl_divergence
from pu_kd_pipeline.learning.losses.latent import (
    centered_logits_loss,
    latent_loss,
    penultimate_loss,
)
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.learning.networks.cifar_resnet import cifar_resnet
from pu_kd_pipeline.learning.networks.lenet import lenet5, lenet5_half
from pu_kd_pipeline.learning.penultimate import (
    PenultimateTap,
    SharedHead,
    fold_shared_head,
    last_linear,
    penultimate_adapter,
    share_head,
)

WEIGHTS = {"logits_weight": 2.0, "penultimate_weight": 3.0, "kl_weight": 0.5, "temperature": 4.0}
PAIRS = {
    "lenet5_half": (lenet5_half, {}, lenet5, {}, (1, 32, 32)),
    "narrow_resnet": (
        cifar_resnet,
        {"depth": 8, "width": 4},
        cifar_resnet,
        {"depth": 8, "width": 8},
        (3, 16, 16),
    ),
    "wide_resnet": (
        cifar_resnet,
        {"depth": 8, "width": 8},
        cifar_resnet,
        {"depth": 8, "width": 4},
        (3, 16, 16),
    ),
    "equal_widths": (lenet5, {}, lenet5, {}, (1, 32, 32)),
}


def batch(seed: int, n: int = 7, width: int = 5) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's logits or features, float64."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(2, n, width, generator=generator, dtype=torch.float64))


def pair(name: str, n_classes: int = 10) -> tuple[nn.Module, nn.Module, Tensor]:
    make_student, student_options, make_teacher, teacher_options, shape = PAIRS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = make_student(n_classes, in_channels=shape[0], **student_options)
        teacher = make_teacher(n_classes, in_channels=shape[0], **teacher_options)
        return student, teacher.eval(), torch.randn(6, *shape)


# --- losses


def slow_centered(student: Tensor, teacher: Tensor) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for mine, theirs in zip(student, teacher, strict=True):
        for k in range(len(mine)):
            total = (
                total
                + ((mine[k] - sum(mine) / len(mine)) - (theirs[k] - sum(theirs) / len(theirs))) ** 2
            )
    return total / student.numel()


def slow_penultimate(student: Tensor, teacher: Tensor) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for mine, theirs in zip(student, teacher, strict=True):
        my_length, their_length = (
            torch.sqrt(sum(entry**2 for entry in vector)) for vector in (mine, theirs)
        )
        for d in range(len(mine)):
            total = total + (mine[d] / my_length - theirs[d] / their_length) ** 2
    return total / len(student)


@pytest.mark.parametrize(
    ("fast", "slow"),
    [(centered_logits_loss, slow_centered), (penultimate_loss, slow_penultimate)],
    ids=["c", "p"],
)
@pytest.mark.parametrize(("n", "width"), [(1, 2), (7, 5)])
def test_losses_equal_the_loops_with_their_gradients(fast, slow, n, width):
    student, teacher = batch(0, n, width)
    student.requires_grad_()
    torch.testing.assert_close(fast(student, teacher), slow(student, teacher))
    gradients = [torch.autograd.grad(loss(student, teacher), student)[0] for loss in (fast, slow)]
    torch.testing.assert_close(*gradients)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), mine=st.floats(-50, 50), theirs=st.floats(-50, 50))
def test_a_constant_in_the_logits_changes_nothing(seed, mine, theirs):
    student, teacher = batch(seed)
    torch.testing.assert_close(
        centered_logits_loss(student + mine, teacher + theirs), slow_centered(student, teacher)
    )
    assert centered_logits_loss(teacher + mine, teacher) < 1e-20


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), mine=st.floats(1e-3, 1e3), theirs=st.floats(1e-3, 1e3))
def test_the_length_of_the_features_changes_nothing(seed, mine, theirs):
    student, teacher = batch(seed)
    loss = penultimate_loss(mine * student, theirs * teacher)
    torch.testing.assert_close(loss, slow_penultimate(student, teacher))
    assert 0 <= loss <= 4
    assert penultimate_loss(mine * teacher, teacher) < 1e-20
    torch.testing.assert_close(
        penultimate_loss(-mine * teacher, teacher), torch.tensor(4.0, dtype=torch.float64)
    )


def test_the_penultimate_loss_is_twice_the_missing_cosine():
    student, teacher = batch(1)
    cosine = torch.nn.functional.cosine_similarity(student, teacher)
    torch.testing.assert_close(penultimate_loss(student, teacher), (2 - 2 * cosine).mean())


def test_zero_features_are_at_distance_one_and_push_nothing():
    student, teacher = batch(2, n=3)
    student[0], teacher[1], student[2], teacher[2] = 0, 0, 0, 0
    student = student.float().requires_grad_()
    rows = [penultimate_loss(student[i : i + 1], teacher[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.stack(rows).detach(), torch.tensor([1.0, 1.0, 0.0]))
    (gradient,) = torch.autograd.grad(penultimate_loss(student, teacher), student)
    assert (gradient == 0)[[0, 2]].all()
    assert gradient.isfinite().all()


def test_the_divergence_at_a_high_temperature_is_half_the_centered_loss():
    student, teacher = batch(3)
    temperature = 1e4
    divergence = temperature**2 * kl_divergence(teacher / temperature, student / temperature).mean()
    torch.testing.assert_close(
        divergence, centered_logits_loss(student, teacher) / 2, rtol=1e-3, atol=0
    )


def test_the_latent_loss_is_the_weighted_sum_of_its_parts():
    (student, teacher), (mine, theirs) = batch(4), batch(5, width=3)
    result = latent_loss(student, teacher, mine, theirs, **WEIGHTS)
    assert list(result) == ["loss", "logits_loss", "penultimate_loss", "kl_loss"]
    assert result["logits_loss"] == centered_logits_loss(student, teacher)
    assert result["penultimate_loss"] == penultimate_loss(mine, theirs)
    divergence = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(z / 4.0) for z in logits] for logits in (z_t, z_s))
        p, q = ([value / sum(values) for value in values] for values in (p, q))
        divergence += (
            4.0**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(student)
        )
    assert result["kl_loss"].item() == pytest.approx(divergence)
    expected = (
        2.0 * result["logits_loss"] + 3.0 * result["penultimate_loss"] + 0.5 * result["kl_loss"]
    )
    torch.testing.assert_close(result["loss"], expected)


def test_without_its_weight_the_divergence_is_left_out():
    (student, teacher), (mine, theirs) = batch(6), batch(7)
    result = latent_loss(student, teacher, mine, theirs, **{**WEIGHTS, "kl_weight": 0.0})
    assert list(result) == ["loss", "logits_loss", "penultimate_loss"]
    torch.testing.assert_close(
        result["loss"], 2.0 * result["logits_loss"] + 3.0 * result["penultimate_loss"]
    )


def test_a_student_that_agrees_has_no_loss_and_no_gradient():
    (_, teacher), (_, theirs) = batch(8), batch(9)
    student, mine = (teacher + 5.0).requires_grad_(), (3.0 * theirs).requires_grad_()
    loss = latent_loss(student, teacher, mine, theirs, **WEIGHTS)["loss"]
    assert 0 <= loss < 1e-12
    for gradient in torch.autograd.grad(loss, (student, mine)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
def test_gradcheck(kl_weight):
    (student, teacher), (mine, theirs) = batch(10, n=4), batch(11, n=4)
    weights = {**WEIGHTS, "kl_weight": kl_weight}
    assert torch.autograd.gradcheck(
        lambda z, u: latent_loss(z, teacher, u, theirs, **weights)["loss"],
        (student.requires_grad_(), mine.requires_grad_()),
    )


def test_the_loss_is_float32_and_the_teacher_gets_no_gradient():
    student, teacher, mine, theirs = (
        tensor.bfloat16().requires_grad_() for tensor in (*batch(12), *batch(13))
    )
    result = latent_loss(student, teacher, mine, theirs, **WEIGHTS)
    assert all(value.shape == () and value.dtype == torch.float32 for value in result.values())
    assert [name for name, value in result.items() if value.requires_grad] == ["loss"]
    result["loss"].backward()
    assert student.grad is not None
    assert mine.grad is not None
    assert teacher.grad is None
    assert theirs.grad is None


def test_the_host_never_reads_a_tensor():
    tensors = (tensor.to("meta") for tensor in (*batch(14), *batch(15)))
    assert latent_loss(*tensors, **WEIGHTS)["loss"].shape == ()


def test_what_does_not_fit_is_refused():
    (student, teacher), (mine, theirs) = batch(16), batch(17)
    with pytest.raises(
        ValueError, match=r"teacher logits must have one shape, got \(7, 4\) and \(7, 5\)"
    ):
        centered_logits_loss(student[:, :4], teacher)
    with pytest.raises(
        ValueError, match=r"teacher features must have one shape, got \(7, 4\) and \(7, 5\)"
    ):
        penultimate_loss(mine[:, :4], theirs)
    for wrong in (
        {"logits_weight": -1.0},
        {"logits_weight": 0.0, "penultimate_weight": 0.0, "kl_weight": 0.0},
    ):
        with pytest.raises(
            ValueError, match="at least 0 and one of them positive, got {'logits_weight'"
        ):
            latent_loss(student, teacher, mine, theirs, **{**WEIGHTS, **wrong})
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        latent_loss(student, teacher, mine, theirs, **{**WEIGHTS, "temperature": 0.0})


# --- the last linear layer and what enters it

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
def test_the_tap_records_what_the_logits_are_made_of(name):
    layer, shape = CLASSIFIERS[name]
    network = build_network(name, 7, shape[0]).eval()
    assert last_linear(network) == last_linear(network, 7) == (layer, network.get_submodule(layer))
    images = torch.randn(3, *shape)
    with PenultimateTap(network, 7) as tap, torch.no_grad():
        for view in (images, 2 * images):
            logits = network(view)
            torch.testing.assert_close(network.get_submodule(layer)(tap.features), logits)
    assert not network.get_submodule(layer)._forward_pre_hooks


@pytest.mark.parametrize(("name", "layer"), [("vgg11", "classifier.6"), ("vit_b_16", "heads.head")])
def test_the_last_linear_layer_of_large_networks_is_found(name, layer):
    with torch.device("meta"):
        assert last_linear(build_network(name, 7, 3), 7)[0] == layer


def test_gradients_go_through_the_tap():
    student, _, images = pair("lenet5_half")
    with PenultimateTap(student, 10) as tap:
        student(images)
        tap.features.square().sum().backward()
    assert student.conv1.weight.grad.abs().sum() > 0
    assert student.fc2.weight.grad is None


def test_layers_of_another_number_of_outputs_are_passed_over():
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 9))
    assert last_linear(network)[0] == "1"
    assert last_linear(network, 6)[0] == "0"
    with pytest.raises(
        ValueError, match="Sequential has no linear layer that gives 10 logits.*'0' of 6, '1' of 9"
    ):
        last_linear(network, 10)


def test_a_network_that_ends_in_a_convolution_is_refused():
    with torch.device("meta"):
        network = build_network("squeezenet1_1", 10, 3)
    with pytest.raises(
        ValueError, match="SqueezeNet has no linear layer that gives the logits.*are: none"
    ):
        last_linear(network)


def test_a_tap_without_features_is_refused():
    network = nn.Sequential(nn.Linear(4, 5))
    with PenultimateTap(network, 5) as tap:
        with pytest.raises(ValueError, match="no images went through the layer '0'"):
            _ = tap.features
        network(torch.zeros(2, 3, 4))
        with pytest.raises(ValueError, match=r"'0' reads \(2, 3, 4\); expected \(N, D\)"):
            _ = tap.features
    with pytest.raises(ValueError, match="no images went"):
        _ = tap.features


def test_the_adapter_maps_between_the_widths_and_is_empty_where_they_agree():
    student, teacher, _ = pair("lenet5_half")
    adapter = penultimate_adapter(student, teacher, 10)
    assert adapter(torch.zeros(3, 42)).shape == (3, 84)
    assert [tuple(parameter.shape) for parameter in adapter.parameters()] == [(84, 42)]
    assert not list(penultimate_adapter(teacher, teacher, 10).parameters())


# --- the shared head


@pytest.mark.parametrize("name", PAIRS)
def test_folding_changes_no_logit_and_gives_the_architecture_back(name):
    student, teacher, images = pair(name)
    plain = copy.deepcopy(student)
    share_head(student, teacher, 10)
    optimizer = make_optimizer(
        student, algorithm="sgd", learning_rate=0.05, momentum=0.9, weight_decay=0.0
    )
    with PenultimateTap(student, 10) as mine, PenultimateTap(teacher, 10) as theirs:
        for _ in range(3):
            with torch.no_grad():
                goal = teacher(images)
            latent_loss(student(images), goal, mine.features, theirs.features, **WEIGHTS)[
                "loss"
            ].backward()
            optimizer.step()
            optimizer.zero_grad()
    student.eval()
    with torch.no_grad():
        expected = student(images)
        fold_shared_head(student)
        torch.testing.assert_close(student(images), expected, atol=1e-5, rtol=1e-5)
        plain.load_state_dict(
            student.state_dict()
        )  # the weights of the network with its architecture
        torch.testing.assert_close(plain.eval()(images), expected, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, SharedHead) for module in student.modules())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_only_the_teachers_part_of_the_head_is_frozen():
    student, teacher, images = pair("lenet5_half")
    before = {name: values.clone() for name, values in teacher.state_dict().items()}
    share_head(student, teacher, 10)
    frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert frozen == ["fc2.head.weight", "fc2.head.bias"]
    student(images).square().sum().backward()
    assert student.fc2.adapter.weight.grad.abs().sum() > 0
    student.fc2.head.weight.data.zero_()  # a copy: the teacher does not notice
    for name, values in teacher.state_dict().items():
        torch.testing.assert_close(values, before[name])


def test_with_the_teachers_features_the_shared_head_gives_the_teachers_logits():
    student, teacher, images = pair("equal_widths")
    share_head(student, teacher, 10)
    rest = {
        name: values for name, values in teacher.state_dict().items() if not name.startswith("fc2")
    }
    student.load_state_dict(rest, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(images), teacher(images))


def test_a_head_without_bias_folds_into_one_that_has_it_but_not_the_other_way_round():
    def network(width: int, bias: bool) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 5, bias=bias)
        )

    images = torch.randn(4, 3, 2, 2)
    student = network(6, True)
    share_head(student, network(8, False), 5)
    expected = student(images)
    fold_shared_head(student)
    torch.testing.assert_close(student(images), expected)
    assert (student[3].bias == 0).all()
    with pytest.raises(ValueError, match="last layer '3' has no bias and the teacher's has one"):
        share_head(network(6, False), network(8, True), 5)
    student = network(6, False)
    share_head(student, network(8, False), 5)
    fold_shared_head(student)
    assert student[3].bias is None


def test_heads_that_cannot_be_shared_or_folded_are_refused():
    student, teacher, _ = pair("lenet5_half")
    with pytest.raises(ValueError, match="no shared head to fold"):
        fold_shared_head(student)
    with pytest.raises(ValueError, match="LeNet5 has no linear layer that gives 9 logits"):
        share_head(student, lenet5(9), 9)
    share_head(student, teacher, 10)
    with pytest.raises(ValueError, match="has a shared head already"):
        share_head(student, teacher, 10)
    with pytest.raises(ValueError, match="the student is a single linear layer"):
        share_head(nn.Linear(4, 10), teacher, 10)
