"""Networks by name: ours, torchvision's, and a user's own factory."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from pu_kd_pipeline.learning.networks.cifar_resnet import (
    cifar_resnet,
    cifar_resnet18,
    cifar_resnet34,
)
from pu_kd_pipeline.learning.networks.cifar_vgg import cifar_vgg13, cifar_vgg19
from pu_kd_pipeline.learning.networks.lenet import digits_cnn, lenet5, lenet5_half
from pu_kd_pipeline.learning.networks.strided_pointwise import guard

Factory = Callable[..., nn.Module]

# `limits.LIMITS` holds the sizes and options that each is known to work with, without torch.
NETWORKS: dict[str, Factory] = {
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
        architecture: a name of `NETWORKS`, a torchvision classification model, or
            `package.module:function`. A user's factory gets `n_classes` (or `num_classes`) and,
            where it takes it, `in_channels`.
        n_classes: K >= 2.
        in_channels: color channels of the input images.
        options: further keyword arguments of the factory.

    Raises:
        ValueError: the architecture does not exist, cannot be imported, refuses the options, or is
            not a network.
    """
    options = dict(options or {})
    factory, arguments = _find_factory(architecture, n_classes, in_channels)
    # A TypeError is what Python raises for arguments that a function does not take.
    try:
        network = factory(**arguments, **options)
    except TypeError as exc:
        raise ValueError(
            f"architecture {architecture!r} refuses its options {options}: {exc}"
        ) from exc
    # A user's factory may raise anything, and torch does for numbers that make no layer.
    except Exception as exc:
        raise ValueError(
            f"architecture {architecture!r} with options {options} fails: "
            f"{type(exc).__name__}: {exc}"
        ) from exc
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"{architecture!r} returned {type(network).__name__}, not a torch.nn.Module"
        )
    # Taps and objectives read inner layers by hooks, which TorchScript does not have.
    if isinstance(network, torch.jit.ScriptModule):
        raise ValueError(
            f"{architecture!r} returned a TorchScript program, whose layers cannot be read: return "
            "the network that it was made from, with the state dict of the program"
        )
    return guard(network)


def _find_factory(
    architecture: str, n_classes: int, in_channels: int
) -> tuple[Factory, dict[str, Any]]:
    """Return the factory of an architecture, and the arguments that it gets before the options."""
    arguments = {"n_classes": n_classes, "in_channels": in_channels}
    if ":" in architecture:
        factory = _user_factory(architecture)
        return factory, _accepted(factory, arguments)
    if architecture in NETWORKS:
        return NETWORKS[architecture], arguments
    factory = _torchvision_factory(architecture)
    if in_channels != 3:
        raise ValueError(
            f"{architecture!r} is a torchvision model and reads three channels, "
            f"the input has {in_channels}: set input.channels to 3 with three values of mean and "
            "std (gray images are repeated)"
        )
    return factory, {"num_classes": n_classes}


def _torchvision_factory(architecture: str) -> Factory:
    # torchvision takes seconds to import
    from pu_kd_pipeline.learning.networks.vision import models

    names = models.list_models(module=models)
    if architecture not in names:
        hint = _did_you_mean(architecture, [*NETWORKS, *names])
        if not hint:
            hint = f"ours are {', '.join(NETWORKS)}"
        raise ValueError(
            f"there is no architecture {architecture!r}; {hint} "
            "Torchvision's classifiers and `package.module:function` work too"
        )
    factory: Factory = models.get_model_builder(architecture)
    return factory


def _user_factory(architecture: str) -> Factory:
    module_name, _, function_name = architecture.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as exc:
        raise ValueError(
            f"architecture {architecture!r}: the module {module_name!r} cannot be imported "
            f"({exc}). Install it or put its folder on PYTHONPATH"
        ) from exc
    factory = getattr(module, function_name, None)
    if not callable(factory):
        message = f"architecture {architecture!r}: {module_name} has no function {function_name!r}"
        hint = _did_you_mean(function_name, dir(module))
        if hint:
            message += f"; {hint}"
        raise ValueError(message)
    return factory  # type: ignore[no-any-return]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'a' or 'b'?", or an empty string where no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=3)
    if not near:
        return ""
    return f"did you mean {' or '.join(map(repr, near))}?"


def _accepted(factory: Factory, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return those of the arguments that the factory takes.

    The number of classes gets torchvision's name, `num_classes`, where the factory has that.
    """
    parameters = inspect.signature(factory).parameters
    accepted = {}
    for name, value in arguments.items():
        if name in parameters:
            accepted[name] = value
    if "num_classes" in parameters:
        accepted["num_classes"] = arguments["n_classes"]
    # A factory that only takes **kwargs still has to learn the number of classes.
    kinds = [parameter.kind for parameter in parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        accepted["n_classes"] = arguments["n_classes"]
    return accepted
