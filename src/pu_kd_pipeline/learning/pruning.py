"""A teacher without its weakest filters, as the student that FSKD starts from.

Li et al. 2018 (arXiv:1812.01839): the student's channels are channels of the teacher, and pairs of
layers say which. `few_samples` aligns the layers of such a student.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

AlignedLayer = nn.Conv2d | nn.Linear
Layer = AlignedLayer | nn.BatchNorm2d
_SAME_OUTPUT = 1e-3  # of a reordered network, relative to its largest logit
_NARROWER_COPY = "FSKD needs a student that is a narrower copy of its teacher"


class LayerPair(NamedTuple):
    """A layer of the student, the teacher's layer, and the channels that the student keeps of it.

    The layers are convolutions or linear.
    """

    student: AlignedLayer
    teacher: AlignedLayer
    kept: Tensor
    """(width,) int64 output channels of the teacher's layer."""


def prune_teacher_into(
    student: nn.Module, teacher: nn.Module, image_shape: tuple[int, int, int]
) -> list[LayerPair]:
    """Copy the teacher without its weakest filters into the student, and return the layer pairs.

    A layer keeps the filters with the largest sum of absolute weights, as many as the student has,
    and of each filter the channels that the layer before it kept; the last layer keeps all. This is
    the student of FSKD's experiments on pruning: its channels are channels of the teacher, which is
    what the alignment needs.

    Args:
        student: a narrower copy of the teacher's architecture; its weights are overwritten.
        teacher: a plain chain of convolutions, BatchNorms and linear layers.
        image_shape: (C, H, W).

    Raises:
        ValueError: the layers do not pair up, or the teacher is not a plain chain (it has
            branches).
    """
    _check_chain(teacher, image_shape)
    return _copy_filters(student, teacher, by_index=True)


def _copy_filters(student: nn.Module, teacher: nn.Module, *, by_index: bool) -> list[LayerPair]:
    """Copy the kept filters layer by layer, in the order of the teacher's channels or by strength.

    Args:
        student: its weights are overwritten.
        teacher: gives the weights.
        by_index: whether the student's channels are in the teacher's order, or strongest first.
    """
    student_layers = _layers(student)
    teacher_layers = _layers(teacher)
    _check_pairs(student_layers, teacher_layers)

    aligned_layers = [layer for _, layer in teacher_layers if isinstance(layer, AlignedLayer)]
    last = aligned_layers[-1]

    # Before the first layer are the channels of the image, which are all kept.
    n_before = aligned_layers[0].weight.shape[1]
    kept = torch.arange(n_before)
    pairs = []
    for (_, mine), (name, theirs) in zip(student_layers, teacher_layers, strict=True):
        columns: Tensor | slice = slice(None)
        if isinstance(mine, AlignedLayer) and isinstance(theirs, AlignedLayer):
            columns = _columns_of(kept, n_before, theirs, name)
            n_before = len(theirs.weight)
            # The channels of the last layer are the classes.
            if theirs is last:
                kept = torch.arange(n_before)
            else:
                width = len(mine.weight)
                kept = _strongest(theirs, width, by_index=by_index)
            pair = LayerPair(mine, theirs, kept)
            pairs.append(pair)
        # A BatchNorm keeps the channels of the layer before it.
        _copy_parameters(mine, theirs, kept, columns)
    return pairs


def _copy_parameters(mine: Layer, theirs: Layer, kept: Tensor, columns: Tensor | slice) -> None:
    state = theirs.state_dict()
    with torch.no_grad():
        for part, values in state.items():
            if values.ndim == 0:  # BatchNorm's counter
                continue
            pruned = values[kept]
            # Weights have an axis for the inputs, biases and statistics have none.
            if values.ndim > 1:
                pruned = pruned[:, columns]
            target = getattr(mine, part)
            target.copy_(pruned)


def _columns_of(kept: Tensor, n_before: int, layer: AlignedLayer, name: str) -> Tensor:
    """Return which inputs of a layer come from the kept channels of the previous layer.

    Args:
        kept: channels of the previous layer.
        n_before: number of channels of the previous layer, kept or not.
        layer: the layer that reads them.
        name: the layer's name.
    """
    n_columns = layer.weight.shape[1]
    # After a flattened map, a linear layer has one column per pixel and channel.
    n_pixels, rest = divmod(n_columns, n_before)
    is_flattened = n_pixels > 1
    if rest or (is_flattened and not isinstance(layer, nn.Linear)):
        raise ValueError(
            f"FSKD needs a plain chain of layers: the layer {name!r} reads {n_columns} channels "
            f"after {n_before}"
        )
    first_columns = kept[:, None] * n_pixels
    pixels = torch.arange(n_pixels)
    columns = first_columns + pixels  # (kept channels, pixels)
    return columns.flatten()


def _strongest(layer: AlignedLayer, width: int, *, by_index: bool) -> Tensor:
    sizes = layer.weight.abs()
    strengths = sizes.flatten(1).sum(dim=1)
    # Stable, so that filters of equal strength are kept in the same order on every device.
    order = strengths.argsort(descending=True, stable=True)
    strongest = order[:width].cpu()
    if by_index:
        return strongest.sort().values
    return strongest


def _layers(network: nn.Module) -> list[tuple[str, Layer]]:
    """Return the layers that have weights, in order of definition."""
    layers: list[tuple[str, Layer]] = []
    for name, module in network.named_modules():
        own_parameters = list(module.parameters(recurse=False))
        if not own_parameters:
            continue
        # A grouped convolution reads only some of the channels before it.
        if not isinstance(module, Layer) or getattr(module, "groups", 1) != 1:
            raise ValueError(
                "FSKD supports convolutions without groups, BatchNorm2d and linear layers, and "
                f"{name!r} is {type(module).__name__}"
            )
        layers.append((name, module))
    return layers


def _check_pairs(
    student_layers: list[tuple[str, Layer]], teacher_layers: list[tuple[str, Layer]]
) -> None:
    n_student = len(student_layers)
    n_teacher = len(teacher_layers)
    if n_student != n_teacher:
        raise ValueError(
            f"{_NARROWER_COPY}: it has {n_student} layers with weights, the teacher {n_teacher}"
        )

    for (mine, student), (theirs, teacher) in zip(student_layers, teacher_layers, strict=True):
        student_width = len(student.weight)
        teacher_width = len(teacher.weight)
        is_wider = student_width > teacher_width
        differs = _plan(student) != _plan(teacher)
        if differs or is_wider:
            raise ValueError(f"{_NARROWER_COPY}: {mine!r} is {student}, {theirs!r} is {teacher}")


def _plan(layer: Layer) -> tuple[object, ...]:
    """Return all that must agree between two layers: everything but the width."""
    return (
        type(layer),
        layer.bias is None,
        getattr(layer, "kernel_size", None),
        getattr(layer, "stride", None),
        getattr(layer, "padding", None),
        getattr(layer, "dilation", None),
    )


def _check_chain(teacher: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Raise for a network whose channels cannot be reordered layer by layer.

    For example, where a shortcut adds the outputs of two layers.
    """
    reordered = copy.deepcopy(teacher)
    reordered.eval()
    _copy_filters(reordered, teacher, by_index=False)

    # In a plain chain, reordered channels give the same logits for any images.
    parameter = next(teacher.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *image_shape, generator=generator)
    images = images.to(parameter.device)
    teacher.eval()
    with torch.no_grad():
        expected = teacher(images)
        found = reordered(images)

    largest_logit = float(expected.abs().max())
    tolerance = _SAME_OUTPUT * largest_logit
    if not torch.allclose(found, expected, rtol=0, atol=tolerance):
        raise ValueError(
            "FSKD needs a teacher that is a plain chain of layers, and this one has branches"
        )
