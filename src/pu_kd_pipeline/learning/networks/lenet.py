"""LeNet-5 and its half, for MNIST."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max-pooling, for 32x32 images.

    It has three 5x5 convolutions and two linear layers.

    Args:
        n_classes: K.
        in_channels: 1 or 3.
        widths: channels of the three convolutions, then units of the hidden linear layer.
    """

    default_taps = ("pool1", "pool2", "relu3")

    def __init__(
        self,
        n_classes: int,
        in_channels: int = 1,
        widths: tuple[int, int, int, int] = (6, 16, 120, 84),
    ) -> None:
        super().__init__()
        first, second, third, hidden = widths
        self.conv1 = nn.Conv2d(in_channels, first, 5)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)

        self.conv2 = nn.Conv2d(first, second, 5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)

        # Maps 5x5 features to one pixel, so images must have 32 to 35 pixels.
        self.conv3 = nn.Conv2d(second, third, 5)
        self.relu3 = nn.ReLU()

        self.fc1 = nn.Linear(third, hidden)
        self.relu4 = nn.ReLU()
        self.fc2 = nn.Linear(hidden, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, 32, 32) float32 images to (N, K) logits."""
        features = self.conv1(images)
        features = self.relu1(features)
        features = self.pool1(features)

        features = self.conv2(features)
        features = self.relu2(features)
        features = self.pool2(features)

        features = self.conv3(features)
        features = self.relu3(features)
        features = features.flatten(1)

        hidden = self.fc1(features)
        hidden = self.relu4(hidden)
        logits: Tensor = self.fc2(hidden)
        return logits


def lenet5(n_classes: int, in_channels: int = 1) -> nn.Module:
    """Return LeNet-5 (6-16-120 channels, 84 hidden units), the papers' teacher for MNIST."""
    return LeNet5(n_classes, in_channels)


def lenet5_half(n_classes: int, in_channels: int = 1) -> nn.Module:
    """Return LeNet-5 at half width, the papers' student for MNIST.

    It has 3-8-60 channels and 42 hidden units.
    """
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
        later_width = 2 * width
        self.block1 = _conv_block(in_channels, width)
        self.block2 = _conv_block(width, later_width)
        self.pool = nn.MaxPool2d(2)
        self.block3 = _conv_block(later_width, later_width)

        # Four pixels of every channel remain, which tell the last layer roughly where strokes are.
        self.global_pool = nn.AdaptiveAvgPool2d(2)
        n_features = 4 * later_width
        self.fc = nn.Linear(n_features, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) float32 images with sides of at least four pixels to (N, K) logits."""
        features = self.block1(images)
        features = self.block2(features)
        features = self.pool(features)
        features = self.block3(features)
        pooled = self.global_pool(features)
        pooled = pooled.flatten(1)
        logits: Tensor = self.fc(pooled)
        return logits


def _conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    # Without bias, which BatchNorm would remove.
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    normalization = nn.BatchNorm2d(out_channels)
    return nn.Sequential(convolution, normalization, nn.ReLU())


def digits_cnn(n_classes: int, in_channels: int = 1, width: int = 32) -> nn.Module:
    """Return the demo's teacher; at a smaller width, its student."""
    return DigitsCNN(n_classes, in_channels, width)
