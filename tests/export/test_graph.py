"""The exported graph: from pixels to what the student computes, for batches of any size."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.export import graph, packages
from pu_kd_pipeline.export.sessions import open_session, session_logits
from pu_kd_pipeline.images.batches import input_normalization
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.teacher import InputSpec

BGR = InputSpec(
    size_px=8,
    channels=3,
    mean=(104.0, 117.0, 123.0),
    std=(1.0, 2.0, 3.0),
    channel_order="bgr",
    value_range=(0.0, 255.0),
)
GRAY = InputSpec(size_px=8, channels=1, mean=(0.3,), std=(0.4,))


class BranchingNetwork(nn.Module):
    """A network whose code depends on the pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean(dim=(2, 3))
        if float(means.sum()) > 0:
            return means
        return -means


def model_of(spec: InputSpec, network: nn.Module | None = None) -> Model:
    torch.manual_seed(0)
    card = ModelCard(architecture="digits_cnn", classes=("a", "b", "ü"), input=spec)
    if network is None:
        network = build_network("digits_cnn", 3, spec.channels, {"width": 2})
    return Model(network.eval(), card)


def pixels_of(spec: InputSpec, n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (n, spec.size_px, spec.size_px, spec.channels)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def logits_of(model: Model, pixels: np.ndarray) -> np.ndarray:
    """Return what the run itself computes."""
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    normalize = input_normalization(model.card.input, torch.device("cpu"))
    with torch.inference_mode():
        return model.network(normalize(images)).numpy()


@pytest.mark.parametrize("spec", [GRAY, BGR], ids=["gray", "bgr"])
def test_order_range_and_normalization_are_inside_of_the_graph(spec):
    model = model_of(spec)
    pixels = pixels_of(spec, 5)
    with torch.inference_mode():
        logits, probabilities = graph.pixel_classifier(model)(torch.from_numpy(pixels))
    np.testing.assert_allclose(logits, logits_of(model, pixels), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(dim=1), 1, rtol=1e-5)


def test_reloaded_graphs_take_batches_of_any_size_and_carry_their_facts():
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    import onnx

    model = model_of(BGR)
    program = graph.trace(model)
    facts = {"classes": ["a", "b", "ü"]}
    saved = graph.program_bytes(program, facts)
    reloaded = graph.load_program(saved)
    texts = {"classes": json.dumps(["a", "b", "ü"]), "student_fingerprint": model.fingerprint()}
    content = graph.with_facts(graph.onnx_model(program, 18), texts)
    compute = session_logits(open_session(content))
    for n in (1, 2, 7):
        pixels = pixels_of(BGR, n)
        expected = logits_of(model, pixels)
        scale = np.abs(expected).max()
        with torch.inference_mode():
            logits, _ = reloaded(torch.from_numpy(pixels))
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * scale)
        np.testing.assert_allclose(compute(pixels), expected, rtol=0, atol=1e-5 * scale)

    loaded = onnx.load_from_string(content)
    assert {each.key: each.value for each in loaded.metadata_props} == texts
    assert [each.version for each in loaded.opset_import if not each.domain] == [18]
    # Traces of the Python code would hold paths of this machine.
    for file in (content, saved):
        assert b"site-packages" not in file
        assert __file__.encode() not in file
        assert b"pu_kd_pipeline/" not in file


def test_a_network_that_cannot_be_traced_is_refused_with_the_way_out():
    model = model_of(BGR, BranchingNetwork())
    with pytest.raises(InputError, match=r"cannot follow the code .*formats=\[safetensors\]"):
        graph.trace(model)


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        packages.check_packages(("onnx", "safetensors"), "export.formats")
    message = str(error.value)
    assert "onnx, onnxscript, onnxruntime are not installed" in message
    assert "pip install -e '.[export]'" in message
    assert "export.formats=[safetensors]" in message
    packages.check_packages(("torch_export", "safetensors"), "export.formats")


def test_a_graph_that_onnx_refuses_is_an_error_with_the_way_out():
    onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
    with pytest.raises(
        InputError, match=r"cannot be written as one file .*2 GB: set export\.opset"
    ):
        graph.with_facts(onnx.ModelProto(), {})
