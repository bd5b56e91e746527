"""The input of a network's last linear layer (S3, a reconstruction).

Holds how to read it, how to adapt its width, and how to share the layer between two networks.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


# `relatedness.probe` looks for the layer whose output is the logits by a trial pass. The callers of
# this function have no images for one, know the number of classes, and fail without such a layer.
def find_last_linear(network: nn.Module, n_classes: int | None = None) -> tuple[str, nn.Linear]:
    """Return the name and module of the layer that gives the logits.

    That is the last nn.Linear, in order of definition.

    Args:
        network: a classifier.
        n_classes: K; layers with another number of outputs are passed over. None takes any.

    Raises:
        ValueError: no such layer exists, as in SqueezeNet, which classifies by a convolution.
    """
    layers: list[tuple[str, nn.Linear]] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            layers.append((name, module))

    for name, layer in reversed(layers):
        takes_any = n_classes is None
        if takes_any or layer.out_features == n_classes:
            return name, layer

    descriptions = []
    for name, layer in layers:
        descriptions.append(f"{name!r} of {layer.out_features}")
    found = ", ".join(descriptions)
    raise ValueError(
        f"{type(network).__name__} has no linear layer that gives {n_classes or 'the'} logits; its "
        f"linear layers, with their outputs, are: {found or 'none'}. Choose a network that ends in "
        "one"
    )


class PenultimateTap:
    """Records the input of the layer that gives the logits, after any dropout, in a `with` block.

    Args:
        network: a classifier. One that has a `SharedHead` is tapped after the adapter.
        n_classes: K.

    Raises:
        ValueError: see `find_last_linear`.
    """

    def __init__(self, network: nn.Module, n_classes: int) -> None:
        self.name, self._layer = find_last_linear(network, n_classes)
        self._features: Tensor | None = None

    def __enter__(self) -> PenultimateTap:
        self._hook = self._layer.register_forward_pre_hook(self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.remove()
        self._features = None  # frees the graph that hangs on it

    def _record(self, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features = inputs[0]

    @property
    def features(self) -> Tensor:
        """(N, D) of the latest forward pass, with its graph.

        Raises:
            ValueError: there was no forward pass yet, or the layer's input is not (N, D).
        """
        if self._features is None:
            raise ValueError(
                f"no images went through the layer {self.name!r} since the tap was set"
            )
        if self._features.ndim != 2:
            shape = tuple(self._features.shape)
            raise ValueError(f"the layer {self.name!r} reads {shape}; expected (N, D)")
        return self._features


def penultimate_adapter(student: nn.Module, teacher: nn.Module, n_classes: int) -> nn.Module:
    """Return the map from the student's penultimate features to the teacher's.

    A linear layer without bias where the widths differ, else the identity, which has no parameters.
    It is trained with the student and discarded after training: the student keeps its own last
    layer.

    Raises:
        ValueError: see `find_last_linear`.
    """
    _, student_layer = find_last_linear(student, n_classes)
    _, teacher_layer = find_last_linear(teacher, n_classes)
    return _adapter(student_layer, teacher_layer)


def _adapter(own: nn.Linear, theirs: nn.Linear) -> nn.Module:
    own_width = own.in_features
    their_width = theirs.in_features
    if own_width == their_width:
        return nn.Identity()
    adapter = nn.Linear(own_width, their_width, bias=False)
    return adapter.to(own.weight)


class SharedHead(nn.Module):
    """The student's last layer while it uses the teacher's: z = W_t A u + b_t.

    Only the adapter A is trained.

    Args:
        own: the layer that it replaces; gives width, device and dtype.
        theirs: the teacher's last layer, copied and frozen.
    """

    def __init__(self, own: nn.Linear, theirs: nn.Linear) -> None:
        super().__init__()
        self.adapter = _adapter(own, theirs)
        weight = theirs.weight
        bias: Tensor | None = theirs.bias
        # A zero bias gives the head the parameters of the student's own layer, for the fold.
        if bias is None and own.bias is not None:
            bias = torch.zeros_like(weight[:, 0])

        head = _linear(weight, bias)
        self.head = head.to(own.weight)
        # Frozen, so that the student has to give features that the teacher's layer understands.
        self.head.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Map the student's (N, D) penultimate features to (N, K) logits."""
        adapted = self.adapter(features)
        logits: Tensor = self.head(adapted)
        return logits

    def folded(self) -> nn.Linear:
        """Return one layer, of the shape of the student's own, with W = W_t A and b = b_t."""
        weight: Tensor = self.head.weight
        # An adapter that is the identity leaves the head as it is.
        if isinstance(self.adapter, nn.Linear):
            # In float64, so that folding rounds once and the logits hardly move.
            adapter_weight = self.adapter.weight.double()
            product = weight.double() @ adapter_weight
            weight = product.to(weight.dtype)
        return _linear(weight, self.head.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a layer with a copy of these values."""
    n_outputs, n_inputs = weight.shape
    has_bias = bias is not None
    layer = nn.Linear(n_inputs, n_outputs, bias=has_bias)
    layer = layer.to(weight)  # device and dtype
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def share_head(student: nn.Module, teacher: nn.Module, n_classes: int) -> None:
    """Make the student compute its logits by the teacher's last layer.

    An adapter precedes it where the widths differ. The student stays a classifier, but its weights
    are no longer those of its architecture until `fold_shared_head`. With equal widths only the
    network below the head is left to train.

    Args:
        student: changed in place: a `SharedHead` replaces its last linear layer.
        teacher: not changed.
        n_classes: K.

    Raises:
        ValueError: a network has no last linear layer, the student already has a shared head or is
            only a linear layer, or its last layer has no bias where the teacher's has one, so that
            it could not be folded.
    """
    name, own = find_last_linear(student, n_classes)
    _, theirs = find_last_linear(teacher, n_classes)
    if _shared_heads(student):
        raise ValueError("the student has a shared head already: fold it before it gets another")
    if not name:  # the network itself
        raise ValueError(
            "the student is a single linear layer: it has no network below a shared head"
        )
    if theirs.bias is not None and own.bias is None:
        raise ValueError(
            f"the student's last layer {name!r} has no bias and the teacher's has one, which "
            "cannot be folded into it"
        )
    shared_head = SharedHead(own, theirs)
    student.set_submodule(name, shared_head)


def fold_shared_head(student: nn.Module) -> None:
    """Restore the student's plain architecture: one linear layer replaces adapter and head.

    The logits stay the same. The product W_t A is (K, D), the shape of the layer that `share_head`
    replaced.

    Args:
        student: from `share_head`; changed in place.

    Raises:
        ValueError: the student has no shared head.
    """
    heads = _shared_heads(student)
    if not heads:
        raise ValueError("the student has no shared head to fold: call share_head before training")
    name, head = heads[0]  # `share_head` refuses a second one
    folded = head.folded()
    folded.train(head.training)
    student.set_submodule(name, folded)


def _shared_heads(network: nn.Module) -> list[tuple[str, SharedHead]]:
    heads: list[tuple[str, SharedHead]] = []
    for name, module in network.named_modules():
        if isinstance(module, SharedHead):
            heads.append((name, module))
    return heads
