"""ResNets for images of 32 pixels."""

from __future__ import annotations

from torch import Tensor, nn


def _cifar_resnet(name: str, n_classes: int, in_channels: int) -> nn.Module:
    from pu_kd_pipeline.learning.networks.vision import models

    network: nn.Module = models.get_model(name, weights=None, num_classes=n_classes)
    # 32x32 images keep their resolution through the stem (He et al. 2016, sec. 4.2; the papers'
    # released code).
    network.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


def cifar_resnet18(n_classes: int, in_channels: int = 3) -> nn.Module:
    """Return torchvision's ResNet-18 with a 3x3 stem and no max-pooling.

    It has 11.17 M parameters at K = 10.
    """
    return _cifar_resnet("resnet18", n_classes, in_channels)


def cifar_resnet34(n_classes: int, in_channels: int = 3) -> nn.Module:
    """Return torchvision's ResNet-34 with a 3x3 stem and no max-pooling.

    It has 21.28 M parameters at K = 10.
    """
    return _cifar_resnet("resnet34", n_classes, in_channels)


class CifarResNet(nn.Module):
    """A residual network with three stages for 32x32 images, of any depth and width.

    Source: He et al. 2016, sec. 4.2. The stages have `width`, 2 `width` and 4 `width` channels at
    32, 16 and 8 pixels. Departure: He et al. pad the shortcuts of wider stages with zeros; here
    they are 1x1 convolutions, as in torchvision's blocks.

    Args:
        n_classes: K.
        in_channels: 1 or 3.
        depth: 6 n + 2 layers, n blocks per stage: 8, 14, 20, 32, 44, 56, 110.
        width: channels of the first stage; 16 in the paper.
        downscale: images are averaged over squares of this many pixels first, for a cheap student
            of large images. With 3, images of 128 pixels are seen with 42.
    """

    default_taps = ("layer1", "layer2", "layer3")

    def __init__(
        self,
        n_classes: int,
        in_channels: int = 3,
        depth: int = 20,
        width: int = 16,
        downscale: int = 1,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(
                f"depth must be 6 n + 2 with n of at least 1 (8, 14, 20, 32, …), got {depth}"
            )
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if downscale < 1:
            raise ValueError(f"downscale must be at least 1, got {downscale}")
        self.downscale = nn.Identity() if downscale == 1 else nn.AvgPool2d(downscale)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

        # A block has two layers; the first convolution and the last layer are outside of them.
        n_blocks = (depth - 2) // 6
        second_width = 2 * width
        third_width = 4 * width
        self.layer1 = _residual_stage(width, width, n_blocks, stride=1)
        self.layer2 = _residual_stage(width, second_width, n_blocks, stride=2)
        self.layer3 = _residual_stage(second_width, third_width, n_blocks, stride=2)

        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third_width, n_classes)

        # As torchvision initializes its ResNets (He et al. 2015)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) float32 images to (N, K) logits."""
        features = self.downscale(images)
        features = self.conv1(features)
        features = self.bn1(features)
        features = self.relu(features)
        features = self.layer1(features)
        features = self.layer2(features)
        features = self.layer3(features)
        pooled = self.avgpool(features)
        pooled = pooled.flatten(1)
        logits: Tensor = self.fc(pooled)
        return logits


def _residual_stage(
    in_channels: int, out_channels: int, n_blocks: int, stride: int
) -> nn.Sequential:
    from pu_kd_pipeline.learning.networks.vision import models

    block = models.resnet.BasicBlock
    # Only the first block changes the resolution and the number of channels.
    shortcut = None
    if stride != 1:
        convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        normalization = nn.BatchNorm2d(out_channels)
        shortcut = nn.Sequential(convolution, normalization)
    first = block(in_channels, out_channels, stride, shortcut)

    blocks = [first]
    for _ in range(n_blocks - 1):
        further = block(out_channels, out_channels)
        blocks.append(further)
    return nn.Sequential(*blocks)


def cifar_resnet(
    n_classes: int, in_channels: int = 3, depth: int = 20, width: int = 16, downscale: int = 1
) -> nn.Module:
    """Return a narrow ResNet for 32x32 images (ResNet-20: 0.27 M parameters at K = 10)."""
    return CifarResNet(n_classes, in_channels, depth, width, downscale)
