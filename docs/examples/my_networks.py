"""A network of one's own: the pipeline knows it by `my_networks:small_cnn`."""

from __future__ import annotations

from torch import nn


def small_cnn(n_classes: int, in_channels: int = 1, width: int = 32) -> nn.Module:
    """Return a network for 32x32 images; a smaller width makes a student of it."""
    stages, channels = [], in_channels
    for out_channels in (width, 2 * width, 4 * width):
        convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        stages.append(
            nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(), nn.MaxPool2d(2))
        )
        channels = out_channels
    return nn.Sequential(
        *stages, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, n_classes)
    )
