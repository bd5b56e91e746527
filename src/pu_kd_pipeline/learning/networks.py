"""The networks by name: ours, torchvision's classifiers, and a user's own importable factory.

Ours are the papers' small ones: LeNet-5 and its half (Xu et al. 2019), torchvision's ResNets with the CIFAR stem and
its VGGs without their large classifiers, narrow ResNets for 32x32 images, and a small network for 8x8 digits. A network
maps (N, C, H, W) float32 images to (N, K) logits and holds nothing else.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max-pooling: three 5x5 convolutions and two linear layers, for 32x32 images.

    Args:
        n_classes: K.
        in_channels: 1 or 3.
        widths: channels of the three convolutions, then units of the hidden linear layer.
    """

    default_taps = ("pool1", "pool2", "relu3")

    def __init__(
        self, n_classes: int, in_channels: int = 1, widths: tuple[int, int, int, int] = (6, 16, 120, 84)
    ) -> None:
        super().__init__()
        first, second, third, hidden = widths
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(in_channels, first, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(first, second, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.conv3, self.relu3 = nn.Conv2d(second, third, 5), nn.ReLU()
        self.fc1, self.relu4, self.fc2 = nn.Linear(third, hidden), nn.ReLU(), nn.Linear(hidden, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, 32, 32) float32 images to (N, K) logits."""
        features = self.pool1(self.relu1(self.conv1(images)))
        features = self.pool2(self.relu2(self.conv2(features)))
        features = self.relu3(self.conv3(features))
        logits: Tensor = self.fc2(self.relu4(self.fc1(features.flatten(1))))
        return logits


def lenet5(n_classes: int, in_channels: int = 1) -> nn.Module:
    """Return LeNet-5 (6-16-120 channels, 84 hidden units), the papers' teacher for MNIST."""
    return LeNet5(n_classes, in_channels)


def lenet5_half(n_classes: int, in_channels: int = 1) -> nn.Module:
    """Return LeNet-5 at half width (3-8-60 channels, 42 hidden units), the papers' student for MNIST."""
    return LeNet5(n_classes, in_channels, widths=(3, 8, 60, 42))


class DigitsCNN(nn.Module):
    """A small convolutional network for images of about 8x8 pixels.

    Args:
        n_classes: K.
        in_channels: 1 or 3.
        width: channels of the first convolution; the later ones have twice as many.
    """

    default_taps = ("block1", "block2", "block3")

    def __init__(self, n_classes: int, in_channels: int = 1, width: int = 32) -> None:
        super().__init__()
        self.block1 = _conv_block(in_channels, width)
        self.block2 = _conv_block(width, 2 * width)
        self.pool = nn.MaxPool2d(2)
        self.block3 = _conv_block(2 * width, 2 * width)
        self.global_pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(8 * width, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) float32 images with sides of at least four pixels to (N, K) logits."""
        features = self.block3(self.pool(self.block2(self.block1(images))))
        logits: Tensor = self.fc(self.global_pool(features).flatten(1))
        return logits


def _conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def digits_cnn(n_classes: int, in_channels: int = 1, width: int = 32) -> nn.Module:
    """Return the demo's teacher; at a smaller width, its student."""
    return DigitsCNN(n_classes, in_channels, width)


def _cifar_resnet(name: str, n_classes: int, in_channels: int) -> nn.Module:
    from pu_kd_pipeline.learning.vision import models

    network: nn.Module = models.get_model(name, weights=None, num_classes=n_classes)
    # 32x32 images keep their resolution through the stem (He et al. 2016, sec. 4.2; the papers' released code)
    network.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


def cifar_resnet18(n_classes: int, in_channels: int = 3) -> nn.Module:
    """Return torchvision's ResNet-18 with a 3x3 stem and no max-pooling (11.17 M parameters at K = 10)."""
    return _cifar_resnet("resnet18", n_classes, in_channels)


def cifar_resnet34(n_classes: int, in_channels: int = 3) -> nn.Module:
    """Return torchvision's ResNet-34 with a 3x3 stem and no max-pooling (21.28 M parameters at K = 10)."""
    return _cifar_resnet("resnet34", n_classes, in_channels)


class CifarResNet(nn.Module):
    """A residual network of three stages for 32x32 images (He et al. 2016, sec. 4.2), of any depth and width.

    The stages have `width`, 2 `width` and 4 `width` channels at 32, 16 and 8 pixels. He et al. pad the shortcuts of
    wider stages with zeros; here they are 1x1 convolutions, as torchvision's blocks have them.

    Args:
        n_classes: K.
        in_channels: 1 or 3.
        depth: 6 n + 2 layers, n blocks a stage: 8, 14, 20, 32, 44, 56, 110.
        width: channels of the first stage; 16 in the paper.
    """

    default_taps = ("layer1", "layer2", "layer3")

    def __init__(self, n_classes: int, in_channels: int = 3, depth: int = 20, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2 with n of at least 1 (8, 14, 20, 32, …), got {depth}")
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        n_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.layer1 = _residual_stage(width, width, n_blocks, stride=1)
        self.layer2 = _residual_stage(width, 2 * width, n_blocks, stride=2)
        self.layer3 = _residual_stage(2 * width, 4 * width, n_blocks, stride=2)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4 * width, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) float32 images to (N, K) logits."""
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


def _residual_stage(in_channels: int, out_channels: int, n_blocks: int, stride: int) -> nn.Sequential:
    from pu_kd_pipeline.learning.vision import models

    shortcut = None
    if stride != 1:
        convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
    block = models.resnet.BasicBlock
    blocks = [block(in_channels, out_channels, stride, shortcut)]
    return nn.Sequential(*blocks, *(block(out_channels, out_channels) for _ in range(n_blocks - 1)))


def cifar_resnet(n_classes: int, in_channels: int = 3, depth: int = 20, width: int = 16) -> nn.Module:
    """Return a narrow ResNet for 32x32 images (ResNet-20: 0.27 M parameters at K = 10)."""
    return CifarResNet(n_classes, in_channels, depth, width)


class CifarVGG(nn.Module):
    """Torchvision's VGG with BatchNorm for 32x32 images: the five max-pools leave a pixel, of which one layer decides.

    Args:
        n_classes: K.
        in_channels: 1 or 3.
        configuration: torchvision's letter of the depth (Simonyan & Zisserman 2015, table 1): B for VGG13, E for VGG19.
    """

    def __init__(self, n_classes: int, in_channels: int, configuration: str) -> None:
        from pu_kd_pipeline.learning.vision import models

        super().__init__()
        self.features = models.vgg.make_layers(models.vgg.cfgs[configuration], batch_norm=True)
        if in_channels != 3:
            self.features[0] = nn.Conv2d(in_channels, 64, 3, padding=1)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(512, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) float32 images with sides of at least 32 pixels to (N, K) logits."""
        logits: Tensor = self.fc(self.avgpool(self.features(images)).flatten(1))
        return logits


def cifar_vgg13(n_classes: int, in_channels: int = 3) -> nn.Module:
    """Return VGG13 with BatchNorm and one linear layer (9.42 M parameters at K = 10)."""
    return CifarVGG(n_classes, in_channels, "B")


def cifar_vgg19(n_classes: int, in_channels: int = 3) -> nn.Module:
    """Return VGG19 with BatchNorm and one linear layer (20.04 M parameters at K = 10)."""
    return CifarVGG(n_classes, in_channels, "E")


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
    """Return a freshly initialised network.

    Args:
        architecture: a name of `NETWORKS`, a torchvision classification model, or `package.module:function`.
            A user's factory gets `n_classes` (or `num_classes`) and, where it takes it, `in_channels`.
        n_classes: K >= 2.
        in_channels: colour channels of the input images.
        options: further keyword arguments of the factory.

    Raises:
        ValueError: the architecture does not exist, cannot be imported, refuses the options, or is not a network.
    """
    options = dict(options or {})
    if ":" in architecture:
        factory, arguments = _user_factory(architecture), {"n_classes": n_classes, "in_channels": in_channels}
        arguments = _accepted(factory, arguments)
    elif architecture in NETWORKS:
        factory, arguments = NETWORKS[architecture], {"n_classes": n_classes, "in_channels": in_channels}
    else:
        factory, arguments = _torchvision_factory(architecture), {"num_classes": n_classes}
        if in_channels != 3:
            raise ValueError(
                f"{architecture!r} is a torchvision model and reads three channels, the input has {in_channels}: set "
                "input.channels to 3 with three values of mean and std (grey images are repeated)"
            )
    try:
        network = factory(**arguments, **options)
    except TypeError as exc:
        raise ValueError(f"architecture {architecture!r} refuses its options {options}: {exc}") from exc
    except Exception as exc:  # a user's factory, or a number that torch cannot build a layer of
        raise ValueError(
            f"architecture {architecture!r} with options {options} fails: {type(exc).__name__}: {exc}"
        ) from exc
    if not isinstance(network, nn.Module):
        raise ValueError(f"{architecture!r} returned {type(network).__name__}, not a torch.nn.Module")
    return network


def _torchvision_factory(architecture: str) -> Callable[..., nn.Module]:
    from pu_kd_pipeline.learning.vision import models

    names = models.list_models(module=models)
    if architecture not in names:
        known = [*NETWORKS, *names]
        near = difflib.get_close_matches(architecture, known, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"ours are {', '.join(NETWORKS)}"
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
        raise ValueError(f"architecture {architecture!r}: {module_name} has no function {function_name!r}{hint}")
    return factory  # type: ignore[no-any-return]


def _accepted(factory: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the factory takes; the number of classes under torchvision's name where it has that."""
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if "num_classes" in parameters:
        arguments = {**arguments, "num_classes": arguments["n_classes"]}
    return {
        name: value for name, value in arguments.items() if name in parameters or (takes_any and name == "n_classes")
    }


def check_network(network: nn.Module, n_classes: int, in_channels: int, size_px: int) -> None:
    """Check that a network turns an image of the stated size into K logits.

    Raises:
        ValueError: it cannot, with what it returned instead.
    """
    with torch.no_grad():
        image = torch.zeros(1, in_channels, size_px, size_px)
        was_training = network.training
        try:
            logits = network.eval()(image)
        except Exception as exc:
            raise ValueError(f"the network fails on an image of shape {tuple(image.shape[1:])}: {exc}") from exc
        finally:
            network.train(was_training)
    if not isinstance(logits, Tensor) or logits.shape != (1, n_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the network returns {found} for one image; expected logits of shape {(1, n_classes)}")


def check_training(network: nn.Module, n_classes: int, in_channels: int, size_px: int) -> None:
    """Check that a network in training mode turns two images into two rows of K logits; it is left as it is.

    Raises:
        ValueError: it cannot, with what it returned instead (Inception and GoogLeNet add auxiliary outputs).
    """
    images = torch.zeros(2, in_channels, size_px, size_px)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            logits = copy.deepcopy(network).train()(images)  # for BatchNorm would remember the images
        except Exception as exc:
            raise ValueError(
                f"the network cannot be trained on images of shape {tuple(images.shape[1:])}: {exc}"
            ) from exc
    if not isinstance(logits, Tensor) or logits.shape != (2, n_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"in training mode the network returns {found} for two images; expected logits of shape {(2, n_classes)}. "
            "Switch auxiliary outputs off in the options of the architecture, such as aux_logits: false"
        )
