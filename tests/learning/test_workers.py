"""Several workers compute what one process computes, in values and gradients.

Workers are threads here; `tests/training/test_data_parallel.py` starts processes.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pu_kd_pipeline.learning import workers as workers_module
from pu_kd_pipeline.learning.critic import CriticTraining, FeatureCritic
from pu_kd_pipeline.learning.loop import TrainingState, fit, make_optimizer
from pu_kd_pipeline.learning.losses.distillation import kd, robust_kd, robust_kl, standardized_kd
from pu_kd_pipeline.learning.losses.latent import latent_loss
from pu_kd_pipeline.learning.losses.risk import pu_risk
from pu_kd_pipeline.learning.pu_training import cvir_step, positive_unlabeled_step, pu_step
from pu_kd_pipeline.learning.synchronized import NotShareableError, check_shareable, synchronized
from pu_kd_pipeline.learning.workers import ALONE, Workers, WorkersDifferError
from tests.learning.simulated_workers import run_workers

N_CLASSES = 5
N_IMAGES = 12  # divides among 2 and among 3 workers
Losses = dict[str, Tensor]


def weight_vectors() -> Tensor:
    return torch.rand(7, N_CLASSES, generator=torch.Generator().manual_seed(4)) + 0.2


IS_LABELED = torch.arange(N_IMAGES) % 5 == 0  # unevenly over the parts
LOSSES: dict[str, Callable[[Tensor, Tensor, Workers], Losses]] = {
    "kd": lambda s, t, w: kd(w.gather(s), w.gather(t), weight_vectors(), 4.0),
    "standardized_kd": lambda s, t, w: standardized_kd(
        w.gather(s), w.gather(t), weight_vectors(), 2.0
    ),
    "robust_kd": lambda s, t, w: robust_kd(w.gather(s), w.gather(t), weight_vectors(), 4.0),
    "robust_kl": lambda s, t, w: robust_kl(
        w.gather(s), w.gather(t), weight_vectors(), 4.0, w.gather(w.own(IS_LABELED))
    ),
    "latent": lambda s, t, w: latent_loss(
        w.gather(s),
        w.gather(t),
        w.gather(s[:, :3]),
        w.gather(t[:, :3]),
        logits_weight=1.0,
        penultimate_weight=1.0,
        kl_weight=0.5,
        temperature=2.0,
    ),
}


def network_of(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, N_CLASSES)).double()


def values_and_gradients(
    n: int, loss: Callable[[Tensor, Tensor, Workers], Losses], seed: int
) -> list[tuple[Losses, list[Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N_IMAGES, 6, generator=generator, dtype=torch.float64)
    teacher_logits = 3 * torch.randn(N_IMAGES, N_CLASSES, generator=generator, dtype=torch.float64)
    networks = [network_of(seed) for _ in range(n)]

    def work(workers: Workers) -> tuple[Losses, list[Tensor]]:
        network = networks[workers.rank]
        values = loss(network(workers.own(inputs)), workers.own(teacher_logits), workers)
        values["loss"].backward()
        workers.average_gradients(network.parameters())
        detached = {name: value.detach() for name, value in values.items()}
        return detached, [_gradient(parameter) for parameter in network.parameters()]

    return run_workers(n, work)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_workers_have_the_losses_and_gradients_of_one_process(name: str, n: int, seed: int) -> None:
    [(expected, expected_gradients)] = values_and_gradients(1, LOSSES[name], seed)
    for values, gradients in values_and_gradients(n, LOSSES[name], seed):
        assert values.keys() == expected.keys()
        for key, value in values.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-12)
        for gradient, of_one in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, of_one, rtol=1e-9, atol=1e-12)


PU_STEPS: dict[str, Callable[[Any, Workers], Any]] = {
    "nnpu": lambda score, w: pu_step(
        score, class_prior=0.6, estimator="nnpu", beta=0.0, gamma=0.7, workers=w
    ),
    "upu": lambda score, w: pu_step(
        score, class_prior=0.6, estimator="upu", beta=0.0, gamma=1.0, workers=w
    ),
    "cvir": lambda score, w: cvir_step(score, class_prior=0.6, workers=w),
}


def pu_values_and_gradients(n: int, name: str, seed: int) -> list[tuple[Losses, list[Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    positive = torch.randn(6, 6, generator=generator)
    unlabeled = torch.randn(N_IMAGES, 6, generator=generator) - 0.3
    networks = [network_of(seed).float() for _ in range(n)]

    def work(workers: Workers) -> tuple[Losses, list[Tensor]]:
        network = networks[workers.rank]
        step = PU_STEPS[name](lambda x: network(x).sum(dim=1), workers)
        values = step((workers.own(positive), workers.own(unlabeled)))
        values["loss"].backward()
        workers.average_gradients(network.parameters())
        detached = {key: value.detach() for key, value in values.items()}
        return detached, [_gradient(parameter) for parameter in network.parameters()]

    return run_workers(n, work)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", PU_STEPS)
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_workers_have_the_pu_risks_and_gradients_of_one_process(
    name: str, n: int, seed: int
) -> None:
    [(expected, expected_gradients)] = pu_values_and_gradients(1, name, seed)
    for values, gradients in pu_values_and_gradients(n, name, seed):
        for key, value in values.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)
        for gradient, of_one in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, of_one, rtol=1e-4, atol=1e-6)


def test_without_the_whole_batch_a_worker_takes_another_branch_of_nnpu() -> None:
    # The unlabeled of the first part look negative, and those of the second positive.
    positive = torch.tensor([2.0, 2.0, 2.0, 2.0])
    unlabeled = torch.tensor([-6.0, -6.0, 6.0, 6.0])
    whole = pu_risk(positive, unlabeled, 0.5, estimator="nnpu")
    parts = [slice(0, 2), slice(2, 4)]
    alone = [pu_risk(positive[p], unlabeled[p], 0.5, estimator="nnpu") for p in parts]
    assert not whole.is_ascent
    assert [bool(risk.is_ascent) for risk in alone] == [True, False]
    # What the workers would minimize together is not the risk of the batch.
    mean_of_parts = torch.stack([risk.objective for risk in alone]).mean()
    assert abs(mean_of_parts - whole.objective) > 0.1

    def is_ascent(workers: Workers) -> bool:
        step = pu_step(
            lambda scores: scores,
            class_prior=0.5,
            estimator="nnpu",
            beta=0.0,
            gamma=1.0,
            workers=workers,
        )
        values = step((workers.own(positive), workers.own(unlabeled)))
        torch.testing.assert_close(values["loss"], whole.objective)
        return bool(values["ascent_share"])

    assert run_workers(2, is_ascent) == [False, False]


def test_without_the_whole_batch_workers_minimize_under_other_worst_weights() -> None:
    # The student is wrong on class 0 in one part, and on class 1 in the other.
    teacher = torch.eye(2).repeat(2, 1) * 8
    student = teacher.clone()
    student[0] = torch.tensor([0.0, 8.0])
    student[3] = torch.tensor([9.0, 0.0])
    vectors = torch.tensor([[1.0, 1.0], [1.9, 0.1], [0.1, 1.9]])

    def worst(student_logits: Tensor, teacher_logits: Tensor) -> float:
        return float(robust_kd(student_logits, teacher_logits, vectors, 1.0)["loss"])

    whole = worst(student, teacher)
    means = (worst(student[:2], teacher[:2]) + worst(student[2:], teacher[2:])) / 2
    # Each part has a worst vector of its own: their mean is above the maximum of the mean.
    assert means > 1.5 * whole

    def shared(workers: Workers) -> float:
        own = workers.gather(workers.own(student)), workers.gather(workers.own(teacher))
        return worst(*own)

    assert run_workers(2, shared) == [whole, whole]


@pytest.mark.parametrize("n", [2, 3])
def test_a_parameter_after_the_gathering_gets_the_gradient_of_one_process(n: int) -> None:
    inputs = torch.randn(N_IMAGES, 3, generator=torch.Generator().manual_seed(1)).double()

    def gradients(workers: Workers) -> Tensor:
        before = nn.Parameter(torch.full((3,), 0.5, dtype=torch.float64))
        after = nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))
        outputs = workers.gather(workers.own(inputs) * before)
        (outputs * after).square().mean().backward()
        workers.average_gradients([before, after])
        return torch.stack([_gradient(before), _gradient(after)])

    [expected] = run_workers(1, gradients)
    for found in run_workers(n, gradients):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_gradients_are_averaged_in_messages_of_limited_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "_VALUES_PER_MESSAGE", 10)
    sizes: list[int] = []

    class Exchange:
        def all_gather(self, tensor: Tensor) -> list[Tensor]:
            # Nothing is gathered here: a call fails the test.
            raise NotImplementedError

        def all_sum(self, tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return 3 * tensor

    parameters = [nn.Parameter(torch.zeros(n)) for n in (4, 5, 25, 2, 3, 6)]
    for parameter in parameters:
        parameter.grad = torch.arange(len(parameter)).float()
    Workers(0, 2, Exchange()).average_gradients(parameters)
    assert sizes == [9, 25, 5, 6]
    for parameter in parameters:
        assert torch.equal(_gradient(parameter), 1.5 * torch.arange(len(parameter)))


@given(n_items=st.integers(3, 40), n=st.integers(1, 3))
@settings(max_examples=20)
def test_uneven_parts_are_gathered_in_order(n_items: int, n: int) -> None:
    items = torch.arange(n_items)
    for found in run_workers(n, lambda w: w.gather_uneven(w.own(items), n_items)):
        assert found.tolist() == items.tolist()


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout2d(0.3),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
        nn.BatchNorm1d(5, momentum=None),
        nn.Dropout(0.5),
    )


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("is_channels_last", [False, True])
def test_batch_norm_and_dropout_are_those_of_the_whole_batch(
    n: int, is_channels_last: bool
) -> None:
    images = torch.randn(N_IMAGES, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    # A mean that is large against the spread, and parts that differ.
    images = 5 + images * torch.linspace(0.5, 2, N_IMAGES).view(-1, 1, 1, 1)
    if is_channels_last:
        images = images.contiguous(memory_format=torch.channels_last)

    # Threads share torch's generator, so that each worker takes its turn in drawing.
    def trained(workers: Workers) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        network = networks[workers.rank].train()
        own = workers.own(images).requires_grad_()
        with synchronized(network, workers):
            for _ in range(2):
                outputs = workers.gather(network(own))
                network.zero_grad()
                outputs.square().mean().backward()
                workers.average_gradients(network.parameters())
        assert all(type(layer) in ORDINARY for layer in network)
        gradients = [_gradient(parameter) for parameter in network.parameters()]
        return outputs.detach(), network.state_dict(), gradients

    ORDINARY = {type(layer) for layer in convolutional()}
    networks = [without_dropout(convolutional()) for _ in range(n)]
    [expected] = run_workers(1, trained)
    networks = [without_dropout(convolutional()) for _ in range(n)]
    for outputs, state, gradients in run_workers(n, trained):
        torch.testing.assert_close(outputs, expected[0], rtol=1e-4, atol=1e-5)
        assert state.keys() == expected[1].keys()
        for name, value in state.items():
            torch.testing.assert_close(value, expected[1][name], rtol=1e-5, atol=1e-6)
        for gradient, of_one in zip(gradients, expected[2], strict=True):
            torch.testing.assert_close(gradient, of_one, rtol=1e-3, atol=1e-5)


def without_dropout(network: nn.Sequential) -> nn.Sequential:
    for layer in network:
        if isinstance(layer, nn.Dropout | nn.Dropout2d):
            layer.p = 0.0
    return network


@pytest.mark.parametrize("is_channels_last", [False, True])
def test_dropout_draws_the_numbers_of_one_process(is_channels_last: bool) -> None:
    images = torch.rand(N_IMAGES, 4, 3, 3, generator=torch.Generator().manual_seed(2)) + 1
    if is_channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    network = nn.Sequential(nn.Dropout2d(0.3), nn.Dropout(0.5)).train()
    torch.manual_seed(7)
    expected = network(images)
    parts = []
    for rank in range(3):
        # No exchange is needed: one worker after the other, each from the same state.
        workers = Workers(rank, 3)
        torch.manual_seed(7)
        with synchronized(network, workers):
            parts.append(network(workers.own(images)))
    torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=0)


# Name -> a view of images, as networks have them.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "images": lambda x: x,
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "features": lambda x: x.mean(dim=(2, 3)),
    "batch in the middle": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("is_channels_last", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_draws_in_the_order_of_the_memory(layout: str, is_channels_last: bool) -> None:
    images = torch.rand(N_IMAGES, 4, 3, 3, generator=torch.Generator().manual_seed(2)) + 1
    if is_channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    torchvision = pytest.importorskip("torchvision")
    layers = [nn.Dropout(0.5)]
    for mode in ("row", "batch"):
        layers.append(torchvision.ops.StochasticDepth(0.5, mode))
    network = nn.Sequential(*layers).train()

    def drawn(workers: Workers) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        with synchronized(network, workers):
            outputs = network(LAYOUTS[layout](workers.own(images)))
        return outputs, torch.rand(1)

    expected, expected_next = drawn(ALONE)
    parts = [drawn(Workers(rank, 3)) for rank in range(3)]
    torch.testing.assert_close(torch.cat([part for part, _ in parts]), expected, rtol=0, atol=0)
    for _, next_number in parts:
        assert torch.equal(next_number, expected_next)


def test_a_mask_of_the_whole_batch_is_not_kept_for_the_backward_pass() -> None:
    torchvision = pytest.importorskip("torchvision")
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    for layer, n_numbers in (
        (nn.Dropout(0.5), 4 * 6 * 25),
        (nn.Dropout2d(0.5), 4 * 6),
        (torchvision.ops.StochasticDepth(0.5, "row"), 4),
    ):
        network = nn.Sequential(layer).train()
        own = torch.rand(4, 6, 5, 5, requires_grad=True)
        kept.clear()
        saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with synchronized(network, Workers(1, 8)), saved:
            network(own)
        assert max(kept) == n_numbers


@pytest.mark.parametrize("n", [2, 3])
def test_dropout_of_positives_and_unlabeled_is_that_of_one_process(n: int) -> None:
    positive = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    unlabeled = torch.randn(N_IMAGES, 6, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1)).train()
    seen: list[list[Tensor]] = []

    def scores(images: Tensor) -> Tensor:
        found: Tensor = network(images).squeeze(1)
        seen[-1].append(found.detach())
        return found

    step = positive_unlabeled_step(scores)
    for workers in [ALONE, *(Workers(rank, n) for rank in range(n))]:
        seen.append([])
        torch.manual_seed(5)
        with synchronized(network, workers, (len(positive), len(unlabeled))):
            step((workers.own(positive), workers.own(unlabeled)))
    [[expected], *found] = seen
    n_positive = len(positive) // n
    joined = [scores[:n_positive] for [scores] in found]
    joined += [scores[n_positive:] for [scores] in found]
    torch.testing.assert_close(torch.cat(joined), expected)


def test_items_that_do_not_belong_to_images_are_refused() -> None:
    network = nn.Sequential(nn.Dropout(0.5)).train()
    with synchronized(network, Workers(0, 2), (4, 2)):
        assert network(torch.ones(3 * 5, 2)).shape == (15, 2)
        with pytest.raises(ValueError, match="8 items of 6 images, which cannot be divided"):
            network(torch.ones(4, 2))


class ByFunction(nn.Module):
    """A network of one linear layer, after a function of its inputs."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.function(images.flatten(1)))  # type: ignore[no-any-return]


def batch_spread(inputs: Tensor) -> Tensor:
    # As the minibatch standard deviation of GANs; of one image, it would be zero.
    return inputs + inputs.std(dim=0, correction=0).mean()


def normalized_by_function(inputs: Tensor) -> Tensor:
    return nn.functional.batch_norm(inputs, None, None, training=True)


DRAWING: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": lambda x: nn.functional.dropout(x, training=True),
    "NumPy": lambda x: x * np.random.random(),  # noqa: NPY002
    "Python": lambda x: x * random.random(),
}


@pytest.mark.parametrize("name", DRAWING)
def test_a_network_that_draws_numbers_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(NotShareableError, match="random numbers in training outside of torch's"):
        check_shareable(ByFunction(DRAWING[name]), (1, 2, 2))


BATCH_DEPENDENT: dict[str, Callable[[], nn.Module]] = {
    "batch_norm as a function": lambda: ByFunction(normalized_by_function),
    "spread of the batch": lambda: ByFunction(batch_spread),
    "BatchNorm without statistics": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
    ),
}


@pytest.mark.parametrize("name", BATCH_DEPENDENT)
def test_a_network_that_computes_with_the_whole_batch_is_refused(name: str) -> None:
    with pytest.raises(NotShareableError, match="depends on the other images of the batch"):
        check_shareable(BATCH_DEPENDENT[name](), (1, 2, 2))


def test_a_state_of_the_batch_is_refused_by_name() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.InstanceNorm2d(4, track_running_stats=True))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(NotShareableError, match="its state 1.running_mean changes in training"):
        check_shareable(network, (1, 2, 2))
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


class CountsBatches(nn.Module):
    """Changes its state with every batch, in the same way for all workers."""

    n_batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        self.n_batches += 1
        return images


def test_the_check_of_a_network_leaves_it_and_the_generators_as_they_are() -> None:
    network = convolutional()
    network.append(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3)))
    network.append(CountsBatches())
    network.train()[3].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random_before = torch.get_rng_state()
    check_shareable(network, (2, 8, 8))
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_before)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    network(torch.zeros(2, 2, 8, 8))
    assert int(network[-1].n_batches) == 1


class OwnDropout(nn.Dropout):
    """As some libraries have one, for an export."""


def test_dropout_of_its_own_kind_is_refused_by_name() -> None:
    torchvision = pytest.importorskip("torchvision")

    class OwnDepth(torchvision.ops.StochasticDepth):  # type: ignore[misc,name-defined]
        pass

    for layer in (OwnDropout(0.5), OwnDepth(0.5, "row")):
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), layer)
        message = rf"its layer 2 \({type(layer).__name__}\) drops values in a way of its own"
        with pytest.raises(NotShareableError, match=message):
            check_shareable(network, (1, 2, 2))
        with (
            pytest.raises(NotShareableError, match=message),
            synchronized(network, Workers(0, 2)),
        ):
            pass


class OwnBatchNorm(nn.BatchNorm2d):
    """As some libraries have one, with its own forward pass."""


def test_a_batch_norm_of_its_own_kind_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), OwnBatchNorm(2))
    message = r"layer 1 \(OwnBatchNorm\) normalizes batches in a way of its own"
    with pytest.raises(ValueError, match=message), synchronized(network, Workers(0, 2)):
        pass
    with synchronized(network, ALONE):
        assert type(network[1]) is OwnBatchNorm


def trained_network(workers: Workers, network: nn.Module) -> list[dict[str, float]]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(10, N_IMAGES, 6, generator=generator)

    def step(batch: Tensor) -> Losses:
        outputs = workers.gather(network(workers.own(batch)))
        return {"loss": (outputs - 1).square().mean()}

    optimizer = make_optimizer(
        network, algorithm="adam", learning_rate=0.01, momentum=0.9, weight_decay=0.1
    )
    state = TrainingState(network=network, optimizer=optimizer)
    records = fit(
        step,
        iter(inputs),
        optimizer,
        n_updates=10,
        record_every=5,
        schedule="cosine",
        state=state,
        workers=workers,
    )
    return list(records)


@pytest.mark.parametrize("n", [2, 3])
def test_a_training_of_workers_has_the_records_of_one_process(n: int) -> None:
    [expected] = run_workers(1, lambda w: trained_network(w, network_of(0).float()))
    networks = [network_of(0).float() for _ in range(n)]
    for records in run_workers(n, lambda w: trained_network(w, networks[w.rank])):
        for record, of_one in zip(records, expected, strict=True):
            assert record == pytest.approx(of_one, rel=1e-5)
    for network in networks[1:]:
        for value, other in zip(network.parameters(), networks[0].parameters(), strict=True):
            assert torch.equal(value, other)


def test_networks_that_differ_between_workers_end_the_training() -> None:
    networks = [network_of(0).float(), network_of(0).float()]
    with torch.no_grad():
        networks[1][2].bias[0] += 1e-6
    with pytest.raises(WorkersDifferError, match="network.2.bias differs between the 2 workers"):
        run_workers(2, lambda w: trained_network(w, networks[w.rank]))


def test_critics_that_differ_between_workers_end_the_training() -> None:
    torch.manual_seed(0)
    critics = [FeatureCritic(6), FeatureCritic(6)]
    # Outside of the threads, which share torch's generator.
    networks = [network_of(0), network_of(0)]

    def start(workers: Workers) -> None:
        training = CriticTraining(critics[workers.rank], "clamp", workers=workers)
        network = networks[workers.rank]
        optimizer = make_optimizer(
            network, algorithm="sgd", learning_rate=0.1, momentum=0.0, weight_decay=0.0
        )
        state = TrainingState(network=network, critic=training)
        options = {"n_updates": 1, "record_every": 1, "schedule": "constant"}
        next(fit(lambda _: {}, iter([]), optimizer, state=state, workers=workers, **options))

    with pytest.raises(WorkersDifferError, match=r"critic\.critic\.layers\.\S+ differs"):
        run_workers(2, start)


def test_workers_that_would_draw_other_numbers_end_the_training() -> None:
    # Outside of the threads, which share torch's generator.
    tensors = TrainingState(network=network_of(0)).tensors()
    [name] = [name for name in tensors if "generator" in name]

    def start(workers: Workers) -> None:
        found = dict(tensors)
        # The second one is as if it had drawn once more.
        if not workers.is_first:
            generator = torch.Generator()
            generator.set_state(found[name])
            torch.rand(1, generator=generator)
            found[name] = generator.get_state()
        workers.check_same(found, 0)

    with pytest.raises(WorkersDifferError, match=r"random generator \(cpu\) differs"):
        run_workers(2, start)


@pytest.mark.parametrize("n", [1, 2])
def test_a_critic_takes_the_same_step_where_gradients_differ_between_workers(n: int) -> None:
    torch.manual_seed(0)
    critic = FeatureCritic(6)
    teacher = torch.randn(8, 6)
    student = torch.randn(8, 6)

    def stepped(workers: Workers) -> dict[str, Tensor]:
        own = copy.deepcopy(critic)
        training = CriticTraining(own, "clamp", learning_rate=0.1, workers=workers)
        for parameter in own.parameters():
            parameter.requires_grad_(True).register_hook(lambda g: g * (1 - 3 * workers.rank))
        training.step(teacher, student, 0.5)
        return dict(own.state_dict())

    states = run_workers(n, stepped)
    for state in states:
        for name, value in state.items():
            assert torch.equal(value, states[0][name])
    weight = states[0]["layers.0.parametrizations.weight.original"]
    assert not torch.equal(weight, critic.state_dict()["layers.0.parametrizations.weight.original"])


def test_batches_that_cannot_be_divided_are_refused_before_training() -> None:
    from pu_kd_pipeline.learning.pu_training import ScoreTraining, fit_scores

    module = nn.Linear(2, 1)
    training = ScoreTraining(
        epochs=1,
        positive_batch_size=4,
        unlabeled_batch_size=9,
        algorithm="sgd",
        learning_rate=0.1,
        momentum=0.0,
        weight_decay=0.0,
        schedule="constant",
    )
    records = fit_scores(
        module,
        positive_unlabeled_step(lambda x: x),
        lambda rows: rows,
        lambda rows: rows,
        n_positive=5,
        n_unlabeled=20,
        training=training,
        generator=torch.Generator(),
        workers=Workers(0, 2),
    )
    with pytest.raises(ValueError, match="9 unlabeled samples per update cannot be divided"):
        next(records)
