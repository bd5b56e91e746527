"""Distillation from a few images alone: FitNet's hints and FSKD's pruned and aligned teacher, the papers' baselines.

FitNet: Romero et al. 2015 (arXiv:1412.6550). FSKD: Li et al. 2018 (arXiv:1812.01839) and the code they released. Holds
what is particular to them; the training loop and the distillation that follows are elsewhere.

Both are compared here at a given number of updates, which their papers do not say how to spend, so this is ours: FitNet
gives a share of them to the hints and the rest to distillation; FSKD prunes and aligns without any and then distills
with all of them. Distillation has soft targets alone, as for every other student. FSKD further differs from the paper
in that linear layers are aligned like convolutions, and in the ridge of `pointwise_fit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

# LeNet-5 to its half on five MNIST digits of each class, accuracy before any update: 12 % without it, 74 % with it.
ALIGNMENT_RIDGE = 0.01
Aligned = nn.Conv2d | nn.Linear
Layer = Aligned | nn.BatchNorm2d
_SAME_OUTPUT = 1e-3  # of a reordered network, relative to its largest logit


@contextmanager
def outputs_of(network: nn.Module, layer: str | nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that every forward pass of the network adds the layer's output to.

    Raises:
        ValueError: the network has no layer of that name.
    """
    modules = dict(network.named_modules())
    if isinstance(layer, str) and layer not in modules:
        raise ValueError(
            f"the network has no layer {layer!r}; its layers are {', '.join(filter(None, modules))}"
        )
    outputs: list[Tensor] = []
    module = modules[layer] if isinstance(layer, str) else layer
    hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


# --- FitNet -----------------------------------------------------------------------------------------------------------


def hint_adapter(student_map: Tensor, teacher_map: Tensor) -> nn.Conv2d:
    """Return the 1x1 convolution from the student's guided layer to the teacher's hint layer.

    Romero et al. use a larger kernel without padding where the student's map is larger; here the sizes must agree.

    Args:
        student_map: (N, C, H, W), or (N, C), which is a map of one pixel.
        teacher_map: (N, D, H, W) or (N, D).

    Raises:
        ValueError: the maps differ in height or width, or are no maps.
    """
    for name, feature_map in (("student's guided", student_map), ("teacher's hint", teacher_map)):
        if feature_map.ndim not in (2, 4):
            raise ValueError(
                f"the {name} layer gives {tuple(feature_map.shape)}; expected (N, C, H, W) or (N, C)"
            )
    if student_map.shape[2:] != teacher_map.shape[2:]:
        raise ValueError(
            f"the guided layer gives {tuple(student_map.shape[1:])} and the hint layer {tuple(teacher_map.shape[1:])}: "
            "choose layers of equal height and width"
        )
    return nn.Conv2d(student_map.shape[1], teacher_map.shape[1], 1)


def hint_loss(student_map: Tensor, teacher_map: Tensor, adapter: nn.Module) -> Tensor:
    """Return 1/2 mean (r(student) - teacher)^2 over all entries, () float32 (Romero et al. 2015, Eq. 3).

    The paper sums over the map; the mean keeps one learning rate for every size.

    Args:
        student_map: (N, C, H, W) or (N, C).
        teacher_map: (N, D, H, W) or (N, D); no gradient flows to it.
        adapter: r, from `hint_adapter`.
    """
    if student_map.ndim == 2:
        student_map, teacher_map = student_map[..., None, None], teacher_map[..., None, None]
    return 0.5 * (adapter(student_map).float() - teacher_map.detach().float()).square().mean()


# --- FSKD -------------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A convolution or linear layer of the student, the teacher's, and the channels that the student has of it."""

    student: Aligned
    teacher: Aligned
    kept: Tensor
    """(width,) int64 output channels of the teacher's layer."""


def prune_into(
    student: nn.Module, teacher: nn.Module, image_shape: tuple[int, int, int]
) -> list[Pair]:
    """Make the student the teacher without its weakest filters, and return the layers that belong together.

    A layer keeps the filters with the largest sum of absolute weights, as many as the student has, and of each filter
    the channels that the layer before it kept; the last layer keeps all. This is the student of FSKD's experiments on
    pruning: its channels are channels of the teacher, which is what the alignment needs.

    Args:
        student: a narrower copy of the teacher's architecture; its weights are overwritten.
        teacher: a plain chain of convolutions, BatchNorms and linear layers.
        image_shape: (C, H, W).

    Raises:
        ValueError: the layers do not pair up, or the teacher is not a plain chain (it has branches).
    """
    _check_chain(teacher, image_shape)
    return _copy_filters(student, teacher, by_index=True)


def _copy_filters(student: nn.Module, teacher: nn.Module, *, by_index: bool) -> list[Pair]:
    """Copy layer by layer what is kept, in the order of the teacher's channels or strongest first."""
    students, teachers = _layers(student), _layers(teacher)
    _check_pairs(students, teachers)
    last = [layer for _, layer in teachers if isinstance(layer, Aligned)][-1]
    n_before = next(layer.weight.shape[1] for _, layer in teachers if isinstance(layer, Aligned))
    kept = torch.arange(n_before)
    pairs = []
    with torch.no_grad():
        for (_, mine), (name, theirs) in zip(students, teachers, strict=True):
            columns: Tensor | slice = slice(None)
            if isinstance(mine, Aligned) and isinstance(theirs, Aligned):
                columns = _columns_of(kept, n_before, theirs, name)
                n_before = theirs.weight.shape[0]
                kept = _strongest(theirs, n_before if theirs is last else mine.weight.shape[0])
                kept = kept.sort().values if by_index or theirs is last else kept
                pairs.append(Pair(mine, theirs, kept))
            for part, values in theirs.state_dict().items():
                if values.ndim:  # all but BatchNorm's counter
                    getattr(mine, part).copy_(
                        values[kept][:, columns] if values.ndim > 1 else values[kept]
                    )
    return pairs


def _columns_of(kept: Tensor, n_before: int, layer: Aligned, name: str) -> Tensor:
    """Return which inputs of a layer come from the kept channels of the one before, of `n_before` channels."""
    n_pixels, rest = divmod(
        layer.weight.shape[1], n_before
    )  # a flattened map has so many columns for each channel
    if rest or (n_pixels > 1 and not isinstance(layer, nn.Linear)):
        raise ValueError(
            f"FSKD: the layer {name!r} reads {layer.weight.shape[1]} channels after {n_before}: no chain"
        )
    return (kept[:, None] * n_pixels + torch.arange(n_pixels)).flatten()


def _strongest(layer: Aligned, width: int) -> Tensor:
    return (
        layer.weight.abs().flatten(1).sum(dim=1).argsort(descending=True, stable=True)[:width].cpu()
    )


def _layers(network: nn.Module) -> list[tuple[str, Layer]]:
    """Return the layers that have weights, in the order in which they were defined."""
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if list(module.parameters(recurse=False))
    ]
    for name, module in layers:
        is_plain = isinstance(module, Layer) and getattr(module, "groups", 1) == 1
        if not is_plain:
            raise ValueError(
                f"FSKD knows convolutions, BatchNorm2d and linear layers, and {name!r} is {type(module).__name__}"
            )
    return layers


def _check_pairs(students: list[tuple[str, Layer]], teachers: list[tuple[str, Layer]]) -> None:
    def plan(layer: Layer) -> tuple[object, ...]:
        details = ("kernel_size", "stride", "padding", "dilation")
        return (type(layer), layer.bias is None, *(getattr(layer, name, None) for name in details))

    if len(students) != len(teachers):
        raise ValueError(
            f"FSKD needs a student that is a narrower copy of its teacher: it has {len(students)} layers with weights, "
            f"the teacher {len(teachers)}"
        )
    for (mine, student), (theirs, teacher) in zip(students, teachers, strict=True):
        if plan(student) != plan(teacher) or student.weight.shape[0] > teacher.weight.shape[0]:
            raise ValueError(
                f"FSKD needs a student that is a narrower copy of its teacher: {mine!r} is {student}, {theirs!r} is "
                f"{teacher}"
            )


def _check_chain(teacher: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Refuse a network whose channels cannot be reordered layer by layer, as where a shortcut adds two of them."""
    import copy

    reordered = copy.deepcopy(teacher).eval()
    _copy_filters(reordered, teacher, by_index=False)
    device = next(teacher.parameters()).device
    images = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        expected, found = teacher.eval()(images), reordered(images)
    if not torch.allclose(found, expected, rtol=0, atol=_SAME_OUTPUT * float(expected.abs().max())):
        raise ValueError(
            "FSKD needs a teacher that is a plain chain of layers, and this one has branches"
        )


def pointwise_fit(features: Tensor, targets: Tensor, *, ridge: float) -> Tensor:
    """Return the 1x1 convolution Q that makes the student's features the teacher's.

    Q = argmin ||X Q' - Y||^2 + ridge s ||Q - I||^2, with s the mean squared norm of a column of X. With ridge 0 this is
    the plain least squares of the paper, and of its solutions the one nearest to the identity where the samples leave
    a choice. Near as many samples as channels that one is wild, hence the ridge, which the paper does not have.

    Args:
        features: X, (N, C, H, W) or (N, C), the student's.
        targets: Y, of the same shape.
        ridge: >= 0.

    Returns:
        (C, C) of the dtype of `features`, to be applied as x -> Q x.

    Raises:
        ValueError: the shapes differ or ridge is negative.
    """
    if features.shape != targets.shape:
        raise ValueError(
            f"features and targets must have one shape, got {tuple(features.shape)} and {tuple(targets.shape)}"
        )
    if not ridge >= 0.0:
        raise ValueError(f"ridge must be at least 0, got {ridge!r}")
    x, y = (
        part.detach().movedim(1, -1).flatten(0, -2).double().cpu() for part in (features, targets)
    )
    identity = torch.eye(x.shape[1], dtype=torch.float64)
    pull = (ridge * x.square().sum(dim=0).mean()).sqrt() * identity
    change = torch.linalg.lstsq(
        torch.cat([x, pull]), torch.cat([y - x, torch.zeros_like(identity)]), driver="gelsd"
    ).solution
    return (identity + change).T.to(features)


def absorb_pointwise(layer: Aligned, pointwise: Tensor) -> None:
    """Make a convolution or linear layer give Q y where it gave y: its weights become Q W and its bias Q b.

    Args:
        layer: a Conv2d or Linear with C outputs; changed in place.
        pointwise: Q, (C, C).
    """
    with torch.no_grad():
        layer.weight.copy_((pointwise @ layer.weight.flatten(1)).view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.copy_(pointwise @ layer.bias)


def align(
    student: nn.Module,
    pairs: Sequence[Pair],
    teacher: nn.Module,
    images: Tensor,
    *,
    ridge: float = ALIGNMENT_RIDGE,
) -> None:
    """Fit a 1x1 convolution behind every layer of the student, first to last, and absorb it at once.

    Each layer's outputs, before BatchNorm and activation, are brought as near to the teacher's as the images allow,
    given the layers before it. The paper adds the convolutions at the end of blocks; a chain's blocks are its layers.
    Linear layers are convolutions of one pixel and are aligned as well, which the paper leaves open.

    Args:
        student: from `prune_into`; changed in place.
        pairs: from `prune_into`.
        teacher: in eval mode, as the student is for the time of this call.
        images: (N, C, H, W) float32 normalized.
        ridge: see `pointwise_fit`.
    """
    was_training = student.training
    student.eval()
    with torch.no_grad():
        for pair in pairs:
            with (
                outputs_of(student, pair.student) as mine,
                outputs_of(teacher, pair.teacher) as theirs,
            ):
                student(images)
                teacher(images)
            kept = pair.kept.to(images.device)
            absorb_pointwise(pair.student, pointwise_fit(mine[0], theirs[0][:, kept], ridge=ridge))
    student.train(was_training)
