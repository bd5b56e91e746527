"""Distillation from a few images alone: FitNet's hints and FSKD's pruned and aligned teacher.

The two papers' baselines. FitNet: Romero et al. 2015 (arXiv:1412.6550). FSKD: Li et al. 2018
(arXiv:1812.01839) and the code they released. Leaves out the training loop and the distillation
that follows.

Both are compared here at a given number of updates. Their papers do not say how to spend it, so
this is ours: FitNet gives a share of them to the hints and the rest to distillation; FSKD prunes
and aligns without any and then distills with all of them. Distillation has soft targets alone, as
for every other student. FSKD further differs from the paper in that linear layers are aligned like
convolutions, and in the ridge of `pointwise_fit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pu_kd_pipeline.learning.pruning import AlignedLayer, LayerPair

# LeNet-5 to its half on five MNIST digits per class, accuracy before any update: 12 % without it,
# 74 % with it.
ALIGNMENT_RIDGE = 0.01


@contextmanager
def record_outputs(network: nn.Module, layer: str | nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list to which every forward pass of the network appends the layer's output.

    Args:
        network: contains the layer.
        layer: the layer or its name.

    Raises:
        ValueError: the network has no layer of that name.
    """
    module = layer
    if isinstance(layer, str):
        modules = dict(network.named_modules())
        if layer not in modules:
            names = ", ".join(filter(None, modules))  # the network itself has the name ""
            raise ValueError(f"the network has no layer {layer!r}; its layers are {names}")
        module = modules[layer]
    assert isinstance(module, nn.Module)
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


# --- FitNet ---------------------------------------------------------------------------------------


def hint_adapter(student_map: Tensor, teacher_map: Tensor) -> nn.Conv2d:
    """Return the 1x1 convolution from the student's guided layer to the teacher's hint layer.

    Romero et al. use a larger kernel without padding where the student's map is larger; here the
    sizes must agree.

    Args:
        student_map: (N, C, H, W), or (N, C), which is a map of one pixel.
        teacher_map: (N, D, H, W) or (N, D).

    Raises:
        ValueError: the maps differ in height or width, or have another number of dimensions.
    """
    _check_map(student_map, "student's guided")
    _check_map(teacher_map, "teacher's hint")
    student_shape = tuple(student_map.shape[1:])
    teacher_shape = tuple(teacher_map.shape[1:])
    if student_shape[1:] != teacher_shape[1:]:
        raise ValueError(
            f"the guided layer gives {student_shape} and the hint layer "
            f"{teacher_shape}: choose layers of equal height and width"
        )
    n_student_channels = student_shape[0]
    n_teacher_channels = teacher_shape[0]
    return nn.Conv2d(n_student_channels, n_teacher_channels, 1)


def _check_map(feature_map: Tensor, name: str) -> None:
    if feature_map.ndim not in (2, 4):
        shape = tuple(feature_map.shape)
        raise ValueError(f"the {name} layer gives {shape}; expected (N, C, H, W) or (N, C)")


def hint_loss(student_map: Tensor, teacher_map: Tensor, adapter: nn.Module) -> Tensor:
    """Return 1/2 mean (r(student) - teacher)^2 over all entries, () float32.

    Romero et al. 2015, Eq. 3.

    Args:
        student_map: (N, C, H, W) or (N, C).
        teacher_map: (N, D, H, W) or (N, D); no gradient flows to it.
        adapter: r, from `hint_adapter`.
    """
    if student_map.ndim == 2:  # as maps of one pixel
        student_map = student_map[..., None, None]
        teacher_map = teacher_map[..., None, None]
    adapted = adapter(student_map)
    target = teacher_map.detach()
    difference = adapted.float() - target.float()
    # The paper sums over the map; the mean keeps one learning rate for every size.
    return 0.5 * difference.square().mean()


# --- FSKD -----------------------------------------------------------------------------------------


def pointwise_fit(features: Tensor, targets: Tensor, *, ridge: float) -> Tensor:
    """Return the 1x1 convolution Q that maps the student's features to the teacher's.

    Q = argmin ||X Q' - Y||^2 + ridge s ||Q - I||^2, with s the mean squared norm of a column of X.
    With ridge 0 this is the plain least squares of the paper, and of its solutions the one nearest
    to the identity where the samples leave a choice.

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
            "features and targets must have one shape, "
            f"got {tuple(features.shape)} and {tuple(targets.shape)}"
        )
    if not ridge >= 0.0:
        raise ValueError(f"ridge must be at least 0, got {ridge!r}")
    x = _pixels_as_rows(features)
    y = _pixels_as_rows(targets)
    n_channels = x.shape[1]
    identity = torch.eye(n_channels, dtype=torch.float64)

    # With about as many samples as channels, plain least squares overfits: hence the ridge, which
    # the paper does not have. As extra rows of the system, and solved for Q - I, which "gelsd"
    # keeps as small as the samples allow.
    squared_norms = x.square().sum(dim=0)
    weight = ridge * squared_norms.mean()
    ridge_rows = weight.sqrt() * identity
    left = torch.cat([x, ridge_rows])
    zeros = torch.zeros_like(identity)
    right = torch.cat([y - x, zeros])
    least_squares = torch.linalg.lstsq(left, right, driver="gelsd")

    # The system has Q' as its unknown, because samples are rows.
    transposed = identity + least_squares.solution
    return transposed.T.to(features)


def _pixels_as_rows(feature_map: Tensor) -> Tensor:
    """Return (N, C, H, W) or (N, C) as (N*H*W, C) float64 on the CPU."""
    values = feature_map.detach()
    channels_last = values.movedim(1, -1)
    rows = channels_last.flatten(0, -2)
    return rows.double().cpu()


def absorb_pointwise(layer: AlignedLayer, pointwise: Tensor) -> None:
    """Change a layer so that it gives Q y where it gave y: its weights become Q W, its bias Q b.

    Args:
        layer: a Conv2d or Linear with C outputs; changed in place.
        pointwise: Q, (C, C).
    """
    with torch.no_grad():
        # (C, inputs): Q mixes filters, whatever their inputs and sizes are.
        filters = layer.weight.flatten(1)
        weight = pointwise @ filters
        weight = weight.view_as(layer.weight)
        layer.weight.copy_(weight)
        if layer.bias is not None:
            bias = pointwise @ layer.bias
            layer.bias.copy_(bias)


def align(
    student: nn.Module,
    pairs: Sequence[LayerPair],
    teacher: nn.Module,
    images: Tensor,
    *,
    ridge: float = ALIGNMENT_RIDGE,
) -> None:
    """Fit a 1x1 convolution after every layer of the student, first to last, and absorb it at once.

    The outputs of each layer, before BatchNorm and activation, are brought as near to the teacher's
    as the images allow, given the layers before it. The paper adds the convolutions at the end of
    blocks; the blocks of a chain are its layers. Linear layers are convolutions of one pixel and
    are aligned as well, which the paper leaves open.

    Args:
        student: from `prune_teacher_into`; changed in place, and in eval mode during this call.
        pairs: from `prune_teacher_into`.
        teacher: in eval mode.
        images: (N, C, H, W) float32 normalized.
        ridge: see `pointwise_fit`.
    """
    was_training = student.training
    student.eval()
    for pair in pairs:
        # A pass per layer: what a layer reads changes with every layer aligned before it.
        student_output = _output(student, pair.student, images)
        teacher_output = _output(teacher, pair.teacher, images)
        kept = pair.kept.to(images.device)
        target = teacher_output[:, kept]
        pointwise = pointwise_fit(student_output, target, ridge=ridge)
        absorb_pointwise(pair.student, pointwise)
    student.train(was_training)


def _output(network: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), record_outputs(network, layer) as outputs:
        network(images)
    return outputs[0]
