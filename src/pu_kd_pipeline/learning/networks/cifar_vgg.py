"""VGGs for images of 32 pixels."""

from __future__ import annotations

from torch import Tensor, nn


class CifarVGG(nn.Module):
    """Torchvision's VGG with BatchNorm for 32x32 images, with one linear layer as its classifier.

    Args:
        n_classes: K.
        in_channels: 1 or 3.
        configuration: torchvision's letter for the depth (Simonyan & Zisserman 2015, table 1):
            B for VGG13, E for VGG19.
    """

    def __init__(self, n_classes: int, in_channels: int, configuration: str) -> None:
        from pu_kd_pipeline.learning.networks.vision import models

        super().__init__()
        layers = models.vgg.cfgs[configuration]
        self.features = models.vgg.make_layers(layers, batch_norm=True)
        # torchvision's layers read color images.
        if in_channels != 3:
            self.features[0] = nn.Conv2d(in_channels, 64, 3, padding=1)

        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

        # Five max-pools leave one pixel of a 32x32 image, too little for VGG's three linear layers.
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) float32 images with sides of at least 32 pixels to (N, K) logits."""
        features = self.features(images)
        pooled = self.avgpool(features)
        pooled = pooled.flatten(1)
        logits: Tensor = self.fc(pooled)
        return logits


def cifar_vgg13(n_classes: int, in_channels: int = 3) -> nn.Module:
    """Return VGG13 with BatchNorm and one linear layer (9.42 M parameters at K = 10)."""
    return CifarVGG(n_classes, in_channels, "B")


def cifar_vgg19(n_classes: int, in_channels: int = 3) -> nn.Module:
    """Return VGG19 with BatchNorm and one linear layer (20.04 M parameters at K = 10)."""
    return CifarVGG(n_classes, in_channels, "E")
