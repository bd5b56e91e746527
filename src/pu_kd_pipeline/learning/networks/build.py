"""Networks by name: ours, torchvision's, and a user's own factory."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pu_kd_pipeline.learning.networks.cifar_resnet import (
    cifar_resnet,
    cifar_resnet18,
    cifar_resnet34,
)
from pu_kd_pipeline.learning.networks.cifar_vgg import cifar_vgg13, cifar_vgg19
from pu_kd_pipeline.learning.networks.lenet import digits_cnn, lenet5, lenet5_half

# network_limits.py says with which sizes and options they are known to work, without torch.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": lenet5,
    "lenet5_half": lenet5_half,
    "digits_cnn": digits_cnn,
    "cifar_resnet": cifar_resnet,
    "cifar_resnet18": cifar_resnet18,
    "cifar_resnet34": cifar_resnet34,
    "cifar_vgg13": cifar_vgg13,
    "cifar_vgg19": cifar_vgg19,
}


def build_network(
    architecture: str, n_classes: int, in_channels: int, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return a freshly initialized network.

    Args:
        architecture: a name of `NETWORKS`, a torchvision classification model, or `package.module:function`.
            A user's factory gets `n_classes` (or `num_classes`) and, where it takes it, `in_channels`.
        n_classes: K >= 2.
        in_channels: color channels of the input images.
        options: further keyword arguments of the factory.

    Raises:
        ValueError: the architecture does not exist, cannot be imported, refuses the options, or is not a network.
    """
    options = dict(options or {})
    if ":" in architecture:
        factory, arguments = (
            _user_factory(architecture),
            {"n_classes": n_classes, "in_channels": in_channels},
        )
        arguments = _accepted(factory, arguments)
    elif architecture in NETWORKS:
        factory, arguments = (
            NETWORKS[architecture],
            {"n_classes": n_classes, "in_channels": in_channels},
        )
    else:
        factory, arguments = _torchvision_factory(architecture), {"num_classes": n_classes}
        if in_channels != 3:
            raise ValueError(
                f"{architecture!r} is a torchvision model and reads three channels, the input has {in_channels}: set "
                "input.channels to 3 with three values of mean and std (gray images are repeated)"
            )
    try:
        network = factory(**arguments, **options)
    except TypeError as exc:
        raise ValueError(
            f"architecture {architecture!r} refuses its options {options}: {exc}"
        ) from exc
    except Exception as exc:  # a user's factory, or a number that torch cannot build a layer of
        raise ValueError(
            f"architecture {architecture!r} with options {options} fails: {type(exc).__name__}: {exc}"
        ) from exc
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"{architecture!r} returned {type(network).__name__}, not a torch.nn.Module"
        )
    return network


def _torchvision_factory(architecture: str) -> Callable[..., nn.Module]:
    from pu_kd_pipeline.learning.networks.vision import models

    names = models.list_models(module=models)
    if architecture not in names:
        known = [*NETWORKS, *names]
        near = difflib.get_close_matches(architecture, known, n=3)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else f"ours are {', '.join(NETWORKS)}"
        )
        raise ValueError(
            f"there is no architecture {architecture!r}; {hint} "
            "Torchvision's classifiers and `package.module:function` work too"
        )
    builder: Callable[..., nn.Module] = models.get_model_builder(architecture)
    return builder


def _user_factory(architecture: str) -> Callable[..., nn.Module]:
    module_name, _, function_name = architecture.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as exc:
        raise ValueError(
            f"architecture {architecture!r}: the module {module_name!r} cannot be imported ({exc}). "
            "Install it or put its folder on PYTHONPATH"
        ) from exc
    factory = getattr(module, function_name, None)
    if not callable(factory):
        near = difflib.get_close_matches(function_name, dir(module), n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"architecture {architecture!r}: {module_name} has no function {function_name!r}{hint}"
        )
    return factory  # type: ignore[no-any-return]


def _accepted(factory: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the factory takes; the number of classes under torchvision's name where it has that."""
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if "num_classes" in parameters:
        arguments = {**arguments, "num_classes": arguments["n_classes"]}
    return {
        name: value
        for name, value in arguments.items()
        if name in parameters or (takes_any and name == "n_classes")
    }
