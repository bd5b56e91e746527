"""The input of a network's last layer: reading it, adapting its width, sharing the layer (S3, a reconstruction)."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


def last_linear(network: nn.Module, n_classes: int | None = None) -> tuple[str, nn.Linear]:
    """Return the name and module of the layer that gives the logits: the last nn.Linear, in order of definition.

    Args:
        network: a classifier.
        n_classes: K; layers with another number of outputs are passed over. None takes any.

    Raises:
        ValueError: there is none, as in SqueezeNet, which classifies by a convolution.
    """
    linear = [
        (name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)
    ]
    fitting = [
        (name, module) for name, module in linear if n_classes in (None, module.out_features)
    ]
    if fitting:
        return fitting[-1]
    found = ", ".join(f"{name!r} of {module.out_features}" for name, module in linear) or "none"
    raise ValueError(
        f"{type(network).__name__} has no linear layer that gives {n_classes or 'the'} logits; its linear layers, with "
        f"their outputs, are: {found}. Choose a network that ends in one"
    )


class PenultimateTap:
    """Records what enters the layer that gives the logits, behind any dropout, as long as its `with` block lasts.

    Args:
        network: a classifier. One that has a `SharedHead` is tapped behind the adapter.
        n_classes: K.

    Raises:
        ValueError: see `last_linear`.
    """

    def __init__(self, network: nn.Module, n_classes: int) -> None:
        self.name, self._layer = last_linear(network, n_classes)
        self._features: Tensor | None = None

    def __enter__(self) -> PenultimateTap:
        def remember(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._features = inputs[0]

        self._hook = self._layer.register_forward_pre_hook(remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.remove()
        self._features = None

    @property
    def features(self) -> Tensor:
        """(N, D) of the latest forward pass, with its graph.

        Raises:
            ValueError: there was no forward pass yet, or the layer reads no (N, D) tensor.
        """
        if self._features is None:
            raise ValueError(
                f"no images went through the layer {self.name!r} since the tap was set"
            )
        if self._features.ndim != 2:
            raise ValueError(
                f"the layer {self.name!r} reads {tuple(self._features.shape)}; expected (N, D)"
            )
        return self._features


def penultimate_adapter(student: nn.Module, teacher: nn.Module, n_classes: int) -> nn.Module:
    """Return the map from the student's penultimate features to the teacher's, to be trained with the student.

    A linear layer without bias where the widths differ, else the identity, which has no parameters. It is discarded
    after training: the student keeps its own last layer.

    Raises:
        ValueError: see `last_linear`.
    """
    (_, own), (_, theirs) = last_linear(student, n_classes), last_linear(teacher, n_classes)
    return _adapter(own, theirs)


def _adapter(own: nn.Linear, theirs: nn.Linear) -> nn.Module:
    if own.in_features == theirs.in_features:
        return nn.Identity()
    return nn.Linear(own.in_features, theirs.in_features, bias=False).to(own.weight)


class SharedHead(nn.Module):
    """The student's last layer while it uses the teacher's: z = W_t A u + b_t, of which the adapter A alone learns.

    Args:
        own: the layer that it stands for; gives width, device and dtype.
        theirs: the teacher's last layer, copied and frozen.
    """

    def __init__(self, own: nn.Linear, theirs: nn.Linear) -> None:
        super().__init__()
        self.adapter = _adapter(own, theirs)
        no_bias = torch.zeros_like(theirs.weight[:, 0]) if own.bias is not None else None
        bias = theirs.bias if theirs.bias is not None else no_bias
        self.head = _linear(theirs.weight, bias).to(own.weight).requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Map the student's (N, D) penultimate features to (N, K) logits."""
        logits: Tensor = self.head(self.adapter(features))
        return logits

    def folded(self) -> nn.Linear:
        """Return the one layer, of the shape of the student's own, that computes the same: W = W_t A and b = b_t."""
        weight = self.head.weight
        if isinstance(self.adapter, nn.Linear):
            weight = (weight.double() @ self.adapter.weight.double()).to(weight.dtype)
        return _linear(weight, self.head.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a layer with these values, copied."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).to(weight)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def share_head(student: nn.Module, teacher: nn.Module, n_classes: int) -> None:
    """Let the student compute its logits by the teacher's last layer, through an adapter where the widths differ.

    The student stays a classifier, but its weights are no longer those of its architecture until `fold_shared_head`.
    With equal widths nothing but the network below is left to train.

    Args:
        student: changed in place: a `SharedHead` takes the place of its last linear layer.
        teacher: left as it is.
        n_classes: K.

    Raises:
        ValueError: a network has no last linear layer, the student has a shared head already or is but a linear layer,
            or its last layer has no bias where the teacher's has one, so that it could not be folded.
    """
    name, own = last_linear(student, n_classes)
    _, theirs = last_linear(teacher, n_classes)
    if any(isinstance(module, SharedHead) for module in student.modules()):
        raise ValueError("the student has a shared head already: fold it before it gets another")
    if not name:
        raise ValueError(
            "the student is a single linear layer: it has no network below a shared head"
        )
    if theirs.bias is not None and own.bias is None:
        raise ValueError(
            f"the student's last layer {name!r} has no bias and the teacher's has one, which cannot be folded into it"
        )
    student.set_submodule(name, SharedHead(own, theirs))


def fold_shared_head(student: nn.Module) -> None:
    """Give the student its plain architecture back: one linear layer for adapter and head, with the same logits.

    The product W_t A is (K, D), the shape of the layer that `share_head` replaced.

    Args:
        student: from `share_head`; changed in place.

    Raises:
        ValueError: the student has no shared head.
    """
    heads = [
        (name, module) for name, module in student.named_modules() if isinstance(module, SharedHead)
    ]
    if not heads:
        raise ValueError("the student has no shared head to fold: call share_head before training")
    name, head = heads[0]
    student.set_submodule(name, head.folded().train(head.training))
