"""Taps: outputs of inner layers of a network."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_MAX_DEFAULT_TAPS = 4

_LastLayers = dict[tuple[int, ...], str]  # spatial size -> name of the last layer of that size


def last_layer_of_each_resolution(
    network: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[str, ...]:
    """Return the last layer at each of the last four spatial sizes (VGG: the last ReLUs).

    Pooling layers do not count, and a block counts as a layer: of a residual or inception block the
    sum or concatenation is tapped, not a single branch. Token sequences count where there are fewer
    than two sizes of maps (ViT).
    """
    parameter = next(network.parameters())
    image = torch.zeros(1, *image_shape, device=parameter.device)
    recorder = _ResolutionRecorder()
    hooks = []
    for name, module in network.named_modules():
        if name:  # the network itself has an empty name
            record = partial(recorder.record, name)
            hooks.append(module.register_forward_hook(record))

    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(image)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()

    names = list(recorder.last_map.values())
    if len(names) < 2:
        names += recorder.last_tokens.values()
    if not names:
        raise ValueError(
            "the network has no feature maps to tap by default: name its layers in `taps`"
        )
    return tuple(names[-_MAX_DEFAULT_TAPS:])


class _ResolutionRecorder:
    """Notes, during a forward pass, which layer comes last at each spatial size."""

    def __init__(self) -> None:
        self.last_map: _LastLayers = {}
        self.last_tokens: _LastLayers = {}
        self._pooled: list[Tensor] = []

    def record(self, name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        """Record the output of a layer; a forward hook once `name` is given."""
        if not isinstance(output, Tensor):
            return
        if output.ndim not in (3, 4) or len(output) != 1:
            return
        if "Pool" in type(module).__name__:
            self._pooled.append(output)

        # A block that ends with a pooling layer returns the same tensor as that layer.
        if any(output is pooled for pooled in self._pooled):
            return
        size = tuple(output.shape[dim] for dim in spatial_axes(output))
        if math.prod(size) <= 1:
            return
        last = self.last_tokens
        if output.ndim == 4:
            last = self.last_map
        # Removed first, so that the dict stays in the order in which the sizes end.
        last.pop(size, None)
        last[size] = name


def tapped_network(network: nn.Module, taps: Sequence[str]) -> nn.Module:
    """Return a module that maps images to (list of tap outputs, logits).

    Uses torchvision's feature extraction where that knows the taps, else forward hooks: feature
    extraction does not look into the building blocks of `torchvision.ops`, which MobileNets and
    EfficientNets consist of, nor into networks that torch.fx cannot trace.
    """
    was_training = network.training
    network.eval()
    try:
        with warnings.catch_warnings():
            # torchvision warns where train and eval graphs differ, as they do with dropout.
            warnings.simplefilter("ignore")
            return _tapped_in_eval_mode(network, taps)
    finally:
        network.train(was_training)


def _tapped_in_eval_mode(network: nn.Module, taps: Sequence[str]) -> nn.Module:
    from pu_kd_pipeline.learning.networks.vision import feature_extraction

    nodes = _graph_nodes(network)
    in_graph: set[str] = set()
    for node in nodes:
        in_graph.update(_path_and_parents(node))
    layers = {name for name, _ in network.named_modules() if name}
    _check_taps(taps, in_graph | layers, network)

    if not in_graph.issuperset(taps):
        # Hooks can only tap layers, so a step of the graph cannot be mixed with hidden layers.
        graph_steps = [tap for tap in taps if tap not in layers]
        if graph_steps:
            raise ValueError(
                f"{graph_steps} are not layers but steps of the graph: name the others so too"
            )
        return _HookedTaps(network, taps)

    output = nodes[-1]
    if output in taps:
        raise ValueError(f"the tap {output!r} is the network's output: name layers before it")
    return_nodes = {tap: f"tap{number}" for number, tap in enumerate(taps)}
    return_nodes[output] = "logits"
    graph = feature_extraction.create_feature_extractor(network, return_nodes=return_nodes)
    return _TracedTaps(graph, len(taps))


def _graph_nodes(network: nn.Module) -> list[str]:
    """Return the nodes of the network's graph in order, or none where torch.fx cannot trace it."""
    from pu_kd_pipeline.learning.networks.vision import feature_extraction

    try:
        nodes: list[str] = feature_extraction.get_graph_node_names(network)[1]
    except Exception:  # tracing runs the network's code, which may fail on symbols in any way
        return []
    return nodes


def _path_and_parents(node: str) -> list[str]:
    """Return `a`, `a.b` and `a.b.c` of `a.b.c`."""
    parts = node.split(".")
    paths = []
    for length in range(1, len(parts) + 1):
        first_parts = parts[:length]
        paths.append(".".join(first_parts))
    return paths


def _check_taps(taps: Sequence[str], known: set[str], network: nn.Module) -> None:
    """Raise a ValueError that names every unknown tap and the nearest known ones."""
    unknown = []
    for tap in taps:
        if tap in known:
            continue
        description = repr(tap)
        near = difflib.get_close_matches(tap, sorted(known), n=3)
        if near:
            description += f" (did you mean {' or '.join(map(repr, near))}?)"
        unknown.append(description)
    if not unknown:
        return
    top_layers = ", ".join(name for name, _ in network.named_children())
    raise ValueError(
        f"not a layer of the network: {', '.join(unknown)}. Its top layers are {top_layers}"
    )


class _TracedTaps(nn.Module):
    """Taps of a graph that returns `tap0`, `tap1`, ... and `logits`."""

    def __init__(self, graph: nn.Module, n_taps: int) -> None:
        super().__init__()
        self.graph = graph
        self.n_taps = n_taps

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        outputs = self.graph(images)
        names = [f"tap{number}" for number in range(self.n_taps)]
        taps = [outputs[name] for name in names]
        return taps, outputs["logits"]


class _HookedTaps(nn.Module):
    """Taps that forward hooks read."""

    def __init__(self, network: nn.Module, taps: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.taps = tuple(taps)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        outputs: dict[str, Tensor] = {}

        def store(tap: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs[tap] = output

        # Registered for each call, so that other users of the shared modules see no hooks.
        modules = dict(self.network.named_modules())
        hooks = []
        for tap in self.taps:
            store_tap = partial(store, tap)
            hooks.append(modules[tap].register_forward_hook(store_tap))
        try:
            logits = self.network(images)
        finally:
            for hook in hooks:
                hook.remove()

        unused = [tap for tap in self.taps if tap not in outputs]
        if unused:
            raise ValueError(f"the network does not call these layers: {', '.join(unused)}")
        return [outputs[tap] for tap in self.taps], logits


def spatial_axes(feature_map: Tensor) -> tuple[int, ...]:
    """Return the dimensions to average: those of the places of a map, or of tokens.

    Images are square and their maps too, so two equal sizes show where the channels are: Swin and
    ConvNeXt have them last.
    """
    if feature_map.ndim == 4:
        _, second, third, fourth = feature_map.shape
        has_channels_last = second == third and third != fourth
        if has_channels_last:
            return (1, 2)
        return (2, 3)
    if feature_map.ndim == 3:
        return (1,)
    return ()
