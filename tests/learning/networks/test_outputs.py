"""What networks return: converted to logits where that is stated, else refused."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pu_kd_pipeline.learning.features import FeatureExtractor
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.learning.networks.checks import check_network
from pu_kd_pipeline.learning.networks.outputs import (
    as_logits,
    check_output_kind,
    convert_output,
    kind_of_rows,
)

N_CLASSES = 5


class Net(nn.Module):
    """A small network; subclasses wrap its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.layer2 = nn.Conv2d(8, 8, 3, stride=2)
        self.fc = nn.Linear(8, N_CLASSES)

    def logits(self, images: Tensor) -> Tensor:
        maps = self.layer2(self.conv1(images).relu()).relu()
        return self.fc(maps.mean((2, 3)))

    def forward(self, images: Tensor) -> Any:
        return self.logits(images)


def returning(wrap: Callable[[Tensor], Any]) -> Net:
    """Return a network that returns its logits wrapped."""
    members = {"forward": lambda self, images: wrap(self.logits(images))}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return type("Wrapped", (Net,), members)().eval()


LossAndLogits = namedtuple("LossAndLogits", ["loss", "logits"])


@dataclasses.dataclass
class Output:
    """An object with attributes."""

    logits: Tensor
    hidden: Tensor


class ModelOutput(OrderedDict[str, Any]):
    """A dict that also takes an index, as those of Hugging Face's models."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int):
            return list(self.values())[key]
        return super().__getitem__(key)


Conversion = tuple[Callable[[Tensor], Any], str | int | None, str]
CONVERSIONS: dict[str, Conversion] = {
    "dict": (lambda z: {"logits": z, "aux": z * 2}, "logits", "logits"),
    "last of a tuple": (lambda z: (z.sum(), z), -1, "logits"),
    "list": (lambda z: [z], 0, "logits"),
    "named tuple": (lambda z: LossAndLogits(None, z), "logits", "logits"),
    "object": (lambda z: Output(z, z), "logits", "logits"),
    "model output": (lambda z: ModelOutput(logits=z, hidden=z), "logits", "logits"),
    "model output by index": (lambda z: ModelOutput(loss=z.sum(), logits=z), 1, "logits"),
    "probabilities": (lambda z: z.softmax(1), None, "probabilities"),
    "logarithms": (lambda z: z.log_softmax(1), None, "log_probabilities"),
    "probabilities in a dict": (lambda z: {"p": z.softmax(1)}, "p", "probabilities"),
}


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_converted_networks_return_logits_everywhere(kind):
    wrap, key, output_kind = CONVERSIONS[kind]
    network = returning(wrap)
    names = list(network.state_dict())
    images = torch.randn(3, 1, 8, 8)
    expected = network.logits(images).log_softmax(1)
    check_output_kind(network, key, output_kind, 1, 8)
    convert_output(network, key, output_kind)
    check_network(network, N_CLASSES, 1, 8)
    assert list(network.state_dict()) == names
    assert isinstance(network, Net)

    logits = network(images)
    torch.testing.assert_close(logits.log_softmax(1), expected)
    # A copy, as for MLflow and for PU training, and the features' graph return the same.
    assert torch.equal(copy.deepcopy(network)(images), logits)
    _, of_extractor = FeatureExtractor(network, None, (1, 8, 8))(images)
    torch.testing.assert_close(of_extractor, logits)
    batches = {0: torch.export.Dim("n", min=2)}
    exported = torch.export.export(network, (images,), dynamic_shapes=(batches,))
    loaded = exported.module()
    torch.testing.assert_close(loaded(images), logits)


def test_the_logits_need_not_be_the_last_step_of_the_network():
    # A traced graph ends in its last step, which here is another head.
    network = returning(lambda z: {"logits": z, "later": z * 2 + 1})
    convert_output(network, "logits", "logits")
    images = torch.randn(2, 1, 8, 8)
    _, logits = FeatureExtractor(network, ["conv1"], (1, 8, 8))(images)
    assert torch.equal(logits, network.logits(images))


UNCONVERTED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "softmax": (lambda z: z.softmax(1), "returns probabilities .* teacher.output.kind to prob"),
    "softmax with a temperature": (lambda z: (z / 4).softmax(1), "returns probabilities"),
    "softmax by hand": (lambda z: z.exp() / z.exp().sum(1, True), "returns probabilities"),
    "softmax in half": (lambda z: z.softmax(1).bfloat16(), "returns probabilities"),
    "log-softmax": (lambda z: z.log_softmax(1), "returns logarithms of probabilities"),
    "percent": (lambda z: 100 * z.softmax(1), "one sign and the same sum for all images"),
    "percent in half": (lambda z: (100 * z.softmax(1)).bfloat16(), "one sign and the same sum"),
    "a share of softmax": (lambda z: 0.2 * z.softmax(1), "one sign and the same sum"),
    "minus softmax": (lambda z: -z.softmax(1), "one sign and the same sum"),
    "one minus softmax": (lambda z: 1 - z.softmax(1), "one sign and the same sum"),
    "sigmoid": (lambda z: z.sigmoid(), "seems to end in a sigmoid"),
    "sigmoid by hand": (lambda z: 1 / (1 + torch.exp(-z)), "seems to end in a sigmoid"),
    "sigmoid without a graph": (lambda z: z.detach().sigmoid(), "seems to end in a sigmoid"),
    "sigmoid of tanh": (lambda z: (z / 2).tanh() / 2 + 0.5, "seems to end in a sigmoid"),
    "softmax over the batch": (lambda z: z.softmax(0), "values are between 0 and 1"),
}


@pytest.mark.parametrize("kind", UNCONVERTED)
def test_normalized_outputs_are_refused(kind):
    wrap, message = UNCONVERTED[kind]
    with pytest.raises(ValueError, match=message):
        check_output_kind(returning(wrap), None, "logits", 1, 8)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", ["digits_cnn", "squeezenet1_1", "convnext_tiny", "resnet18"])
def test_untrained_networks_are_not_taken_for_normalized_ones(name, n_classes):
    # Their logits are small and of any sign; SqueezeNet ends in a ReLU.
    n_channels = 3
    if name == "digits_cnn":
        n_channels = 1
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = build_network(name, n_classes, n_channels)
        check_output_kind(network, None, "logits", n_channels, 32)


def test_rows_whose_sums_are_near_one_by_chance_are_logits():
    class MeanSize(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            # Nearly the same for all images of random pixels, whose mean size is 0.798.
            size = images.abs().mean(dim=(1, 2, 3)) / 0.798
            return torch.stack([0.3 * size, 0.7 * size], dim=1)

    check_output_kind(MeanSize(), None, "logits", 3, 128)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: z.relu(),
        lambda z: -z.relu(),
        lambda z: z * 0,
        lambda z: z * 0 + 3,
        lambda z: z.abs() * 0.01,
        # Of which hardly anything depends on the image
        lambda z: z * 1e-6 + 3,
        lambda z: (z.softmax(1) + 1e-9).log() * 2,
    ],
)
def test_small_positive_logits_are_logits(wrap):
    check_output_kind(returning(wrap), None, "logits", 1, 8)


@pytest.mark.parametrize(
    ("wrap", "kind", "message"),
    [
        (lambda z: z, "probabilities", r"returns logits \(its rows sum to "),
        (lambda z: z, "log_probabilities", "returns logits"),
        (lambda z: z.softmax(1), "log_probabilities", "returns probabilities"),
        (lambda z: z.log_softmax(1), "probabilities", "returns log_probabilities"),
        (lambda z: z.sigmoid(), "probabilities", "values between 0 and 1 whose rows do not sum"),
    ],
)
def test_a_statement_that_is_not_true_is_refused(wrap, kind, message):
    with pytest.raises(ValueError, match=f"teacher.output.kind is {kind}, .*{message}"):
        check_output_kind(returning(wrap), None, kind, 1, 8)


@pytest.mark.parametrize(
    ("wrap", "key", "message"),
    [
        (lambda z: {"logits": z}, "logit", r"dict with 'logits': \(1, 5\), which has no entry"),
        (lambda z: {"logits": z}, 0, "no entry 0"),
        (lambda z: (z,), 3, r"tuple with 0: \(1, 5\), which has no entry 3"),
        (lambda z: (z,), "logits", "no entry 'logits'"),
        (lambda z: z, 0, "returns a tensor, which has no entry 0: remove teacher.output.key"),
        (lambda z: {"out": {"logits": z}}, "out", r"dict with 'logits': \(1, 5\) in the place of"),
        (lambda z: {"logits": None}, "logits", "returns NoneType in the place of logits"),
    ],
)
def test_a_key_that_does_not_fit_is_refused_with_what_is_there(wrap, key, message):
    network = convert_output(returning(wrap), key, "logits")
    with pytest.raises(ValueError, match=message):
        check_network(network, N_CLASSES, 1, 8)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda z: {"logits": z, "loss": z.sum()}, r"teacher.output.key to .* \(logits\)"),
        (lambda z: (z.sum(), z), r"teacher.output.key to the entry that holds them \(1\)"),
        (lambda z: Output(z, z), r"\(logits or hidden\)"),
        (lambda z: z[:, :, None, None], r"\(1, 5, 1, 1\) .* whose network flattens its output"),
        (lambda z: None, "returns NoneType for one image"),
    ],
)
def test_a_network_that_returns_no_tensor_of_logits_is_refused_with_the_way_out(wrap, message):
    with pytest.raises(ValueError, match=message):
        check_network(returning(wrap), N_CLASSES, 1, 8)


def test_networks_that_would_bypass_the_conversion_are_refused():
    traced = torch.fx.symbolic_trace(returning(lambda z: z.softmax(1)))
    replaced = returning(lambda z: z.softmax(1))
    replaced.forward = lambda images: replaced.logits(images).softmax(1)
    for network in (traced, replaced):
        with pytest.raises(ValueError, match="cannot be converted: use a factory"):
            convert_output(network, None, "probabilities")


def test_a_torchscript_program_is_refused_as_a_network(monkeypatch):
    program = torch.jit.trace(returning(lambda z: z), torch.zeros(1, 1, 8, 8))
    monkeypatch.setattr(torch, "a_factory_of_a_user", lambda n_classes: program, raising=False)
    with pytest.raises(ValueError, match="returned a TorchScript program, whose layers"):
        build_network("torch:a_factory_of_a_user", N_CLASSES, 1)


def test_the_check_changes_neither_the_network_nor_the_random_state():
    layers = [nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Dropout()]
    network = nn.Sequential(*layers)
    network.train()
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    check_output_kind(network, None, "logits", 1, 8)
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in network.parameters())


numbers = st.floats(-30, 30, width=32)
rows_of_numbers = st.lists(numbers, min_size=4, max_size=4)
rows_of_logits = st.lists(rows_of_numbers, min_size=1, max_size=4)


@given(rows=rows_of_logits)
def test_the_logarithm_of_probabilities_is_the_logits_up_to_a_constant(rows):
    logits = torch.tensor(rows)
    probabilities = logits.softmax(1)
    assert kind_of_rows(probabilities) == "probabilities"
    assert kind_of_rows(logits.log_softmax(1)) == "log_probabilities"

    again = as_logits(probabilities, None, "probabilities")
    torch.testing.assert_close(again, logits.log_softmax(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again.softmax(1), probabilities)


def test_a_probability_of_zero_has_finite_logits():
    probabilities = torch.tensor([[1.0, 0.0]])
    logits = as_logits(probabilities, None, "probabilities")
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.softmax(1), probabilities)
