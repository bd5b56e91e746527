"""The student as a graph from uint8 pixels to logits and probabilities, by torch.export."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pu_kd_pipeline.errors import InputError, first_line
from pu_kd_pipeline.images.batches import input_normalization
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.models.model import Model

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

PIXELS = "pixels"
LOGITS = "logits"
PROBABILITIES = "probabilities"
# With a batch of one, the export would fix the batch size to one.
_N_EXAMPLES = 2
_HINT = (
    "set export.opset to another version (18 to 23), or leave onnx and int8 out of export.formats"
)
# Where the exporters write down the Python code that made a node, with paths of this machine.
_STACK_TRACE = "stack_trace"


class PixelClassifier(nn.Module):
    """A network that takes pixels as Pillow has them, and normalizes them itself.

    Args:
        network: maps normalized (N, C, H, W) float32 images to (N, K) logits.
        normalize: the normalization of its input.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, normalize: Normalize) -> None:
        super().__init__()
        self.network = network
        self.is_reversed = normalize.is_reversed
        # Copies: the graph must not share memory with the model of the run.
        self.register_buffer("scale", normalize.scale.clone())
        self.register_buffer("shift", normalize.shift.clone())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, H, W, C) uint8 RGB or gray to (N, K) float32 logits and probabilities."""
        images = pixels.permute(0, 3, 1, 2)
        if self.is_reversed:
            images = images.flip(1)
        images = images.to(torch.float32) * self.scale + self.shift
        logits: Tensor = self.network(images)
        return logits, torch.softmax(logits, dim=1)


def pixel_classifier(model: Model) -> PixelClassifier:
    """Return a copy of a model that takes pixels, on the CPU."""
    network = copy.deepcopy(model.network).cpu().float().eval()
    normalize = input_normalization(model.card.input, torch.device("cpu"))
    return PixelClassifier(network, normalize).eval()


def trace(model: Model) -> ExportedProgram:
    """Return the graph of a copy of a model, for batches of any size.

    Raises:
        InputError: torch.export cannot follow the network's code.
    """
    classifier = pixel_classifier(model)
    channels, height, width = model.image_shape
    pixels = torch.zeros(_N_EXAMPLES, height, width, channels, dtype=torch.uint8)
    shapes = {PIXELS: {0: torch.export.Dim("batch", min=1)}}
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(classifier, (pixels,), dynamic_shapes=shapes)
    # Of any kind: the code of the network may be a user's.
    except Exception as exc:
        raise InputError(
            f"export: torch.export cannot follow the code of {model.card.architecture} for "
            f"batches of any size ({first_line(exc)}): write its forward pass without Python "
            "branches on the content or the number of images, or export the weights alone, "
            "--params=export.formats=[safetensors]"
        ) from exc
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop(_STACK_TRACE, None)
    return program


def program_bytes(program: ExportedProgram, facts: Mapping[str, Any]) -> bytes:
    """Return the file that `torch.export.load` reads; `facts` are in it as `preprocessing.json`."""
    file = BytesIO()
    with _quiet():
        torch.export.save(
            program, file, extra_files={"preprocessing.json": json.dumps(facts, indent=2)}
        )
    return file.getvalue()


def load_program(content: bytes) -> nn.Module:
    """Return the network in a file of `program_bytes`."""
    with _quiet():
        network: nn.Module = torch.export.load(BytesIO(content)).module()
    return network


def onnx_model(program: ExportedProgram, opset: int) -> ModelProto:
    """Return a graph in ONNX.

    Raises:
        InputError: an operator of the network has no counterpart in ONNX, or not in this opset.
    """
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[PIXELS],
                output_names=[LOGITS, PROBABILITIES],
                verbose=False,
            )
    except Exception as exc:  # of any kind, by torch or onnxscript
        raise InputError(
            f"export: the student cannot be written as ONNX ({first_line(exc)}): {_HINT}"
        ) from exc
    assert exported is not None
    model = exported.model_proto
    versions = {each.domain: each.version for each in model.opset_import}
    if versions.get("") != opset:
        raise InputError(
            f"export.opset: the exporter wrote version {versions.get('')} in place of {opset}: "
            f"{_HINT}"
        )
    _remove_notes(model)
    return model


def with_facts(model: ModelProto, facts: Mapping[str, str]) -> bytes:
    """Return a model as the content of a file, with facts in its metadata.

    Raises:
        InputError: it is no valid model of ONNX, or has more than the 2 GB of one file.
    """
    import onnx
    from onnx.helper import set_model_props

    model.producer_name = "pu_kd_pipeline"
    set_model_props(model, dict(facts))
    try:
        onnx.checker.check_model(model)
        content: bytes = model.SerializeToString()
    except Exception as exc:  # onnx and protobuf have classes of errors of their own
        raise InputError(
            f"export: the student cannot be written as one file of ONNX ({first_line(exc)}), which "
            f"holds at most 2 GB: {_HINT}"
        ) from exc
    return content


def _remove_notes(model: ModelProto) -> None:
    """Remove what the exporter notes about Python code, with paths of this machine."""
    graph = model.graph
    for each in (*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node):
        del each.metadata_props[:]
        each.doc_string = ""
    for function in model.functions:
        del function.metadata_props[:]
        for each in (*function.node, *function.value_info):
            del each.metadata_props[:]
            each.doc_string = ""
    del graph.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore warnings of the exporters about their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
