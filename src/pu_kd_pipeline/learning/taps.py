"""Taps: outputs of inner layers of a network."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_MAX_DEFAULT_TAPS = 4


def last_layer_of_each_resolution(
    network: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[str, ...]:
    """Return what ends last at each spatial size without pooling, for the last four sizes (VGG: the last ReLUs).

    A block counts as a layer: of a residual or inception block its sum or concatenation is tapped, no single branch.
    Token sequences count where there are no two sizes of maps (ViT).
    """
    last_map: dict[tuple[int, ...], str] = {}
    last_tokens: dict[tuple[int, ...], str] = {}
    pooled: list[Tensor] = []
    hooks = []
    for name, module in network.named_modules():

        def remember(module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            if not isinstance(output, Tensor) or output.ndim not in (3, 4) or len(output) != 1:
                return
            if "Pool" in type(module).__name__:
                pooled.append(output)
            size = tuple(output.shape[dim] for dim in spatial_axes(output))
            if math.prod(size) > 1 and not any(output is each for each in pooled):
                last = last_map if output.ndim == 4 else last_tokens
                last.pop(size, None)  # in the order in which they end
                last[size] = name

        if name:
            hooks.append(module.register_forward_hook(remember))
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *image_shape, device=next(network.parameters()).device))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    names = [*last_map.values(), *(last_tokens.values() if len(last_map) < 2 else ())]
    if not names:
        raise ValueError(
            "the network has no feature maps to tap by default: name its layers in `taps`"
        )
    return tuple(names[-_MAX_DEFAULT_TAPS:])


def tapped_network(network: nn.Module, taps: Sequence[str]) -> nn.Module:
    """Return a module that maps images to (list of tap outputs, logits).

    Through torchvision's feature extraction where that sees the taps; it does not look into the building blocks of
    `torchvision.ops`, of which MobileNets and EfficientNets are made, nor into what torch.fx cannot trace.
    """
    from pu_kd_pipeline.learning.networks.vision import feature_extraction

    was_training = network.training
    network.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torchvision's word on train and eval graphs that differ, as with dropout
            nodes = _graph_nodes(network)
            in_graph = {part for node in nodes for part in _path_and_parents(node)}
            layers = {name for name, _ in network.named_modules() if name}
            _check_taps(taps, in_graph | layers, network)
            if not in_graph.issuperset(taps):
                if hidden := [tap for tap in taps if tap not in layers]:
                    raise ValueError(
                        f"{hidden} are no layers but steps of the graph: name the others so too"
                    )
                return _HookedTaps(network, taps)
            if nodes[-1] in taps:
                raise ValueError(
                    f"the tap {nodes[-1]!r} is the network's output: name layers before it"
                )
            wanted = {**{tap: f"tap{i}" for i, tap in enumerate(taps)}, nodes[-1]: "logits"}
            return _TracedTaps(
                feature_extraction.create_feature_extractor(network, return_nodes=wanted), len(taps)
            )
    finally:
        network.train(was_training)


def _graph_nodes(network: nn.Module) -> list[str]:
    """Return the nodes of the network's graph in order, or none where torch.fx cannot trace it."""
    from pu_kd_pipeline.learning.networks.vision import feature_extraction

    try:
        nodes: list[str] = feature_extraction.get_graph_node_names(network)[1]
    except Exception:  # tracing runs the network's own code, which may fail on symbols in any way
        return []
    return nodes


def _path_and_parents(node: str) -> list[str]:
    """Return `a`, `a.b` and `a.b.c` of `a.b.c`."""
    parts = node.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _check_taps(taps: Sequence[str], known: set[str], network: nn.Module) -> None:
    unknown = [tap for tap in taps if tap not in known]
    if not unknown:
        return
    lines = []
    for tap in unknown:
        near = difflib.get_close_matches(tap, sorted(known), n=3)
        lines.append(
            f"{tap!r}" + (f" (did you mean {' or '.join(map(repr, near))}?)" if near else "")
        )
    top = [name for name, _ in network.named_children()]
    raise ValueError(
        f"not a layer of the network: {', '.join(lines)}. Its top layers are {', '.join(top)}"
    )


class _TracedTaps(nn.Module):
    def __init__(self, graph: nn.Module, n_taps: int) -> None:
        super().__init__()
        self.graph, self.n_taps = graph, n_taps

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        outputs = self.graph(images)
        return [outputs[f"tap{i}"] for i in range(self.n_taps)], outputs["logits"]


class _HookedTaps(nn.Module):
    def __init__(self, network: nn.Module, taps: Sequence[str]) -> None:
        super().__init__()
        self.network, self.taps = network, tuple(taps)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        outputs: dict[str, Tensor] = {}
        modules = dict(self.network.named_modules())
        hooks = [
            modules[tap].register_forward_hook(
                lambda _m, _i, output, tap=tap: outputs.__setitem__(tap, output)
            )
            for tap in self.taps
        ]
        try:
            logits = self.network(images)
        finally:
            for hook in hooks:
                hook.remove()
        if unused := [tap for tap in self.taps if tap not in outputs]:
            raise ValueError(f"the network does not call these layers: {', '.join(unused)}")
        return [outputs[tap] for tap in self.taps], logits


def spatial_axes(feature_map: Tensor) -> tuple[int, ...]:
    """Return the dimensions to average: tokens, or the two of a map. Images are square, and so is the map of them.

    Swin and ConvNeXt keep the channels last.
    """
    if feature_map.ndim == 4:
        _, second, third, fourth = feature_map.shape
        return (1, 2) if third != fourth and second == third else (2, 3)
    return (1,) if feature_map.ndim == 3 else ()
