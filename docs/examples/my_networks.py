"""An example of your own network: the pipeline imports it as `my_networks:small_cnn`."""

from __future__ import annotations

from torch import nn


def small_cnn(n_classes: int, in_channels: int = 1, width: int = 32) -> nn.Module:
    """Return a network for 32 x 32 images; a smaller width gives a student for it."""
    stages = []
    channels = in_channels
    for out_channels in (width, 2 * width, 4 * width):
        # BatchNorm subtracts the mean, so that a bias would have no effect.
        convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        norm = nn.BatchNorm2d(out_channels)
        stages.append(nn.Sequential(convolution, norm, nn.ReLU(), nn.MaxPool2d(2)))
        channels = out_channels
    classifier = nn.Linear(4 * channels, n_classes)
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(2), nn.Flatten(), classifier)
