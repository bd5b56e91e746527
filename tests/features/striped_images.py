"""Color images of six classes and a small network that knows them, for tests of a teacher's check.

The class is the direction and the brightness of red stripes. The blue stripes are those of another
class, so that exchanged channels give random answers, and the brightness makes the network depend
on mean, standard deviation and range.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

SIZE_PX = 16
BRIGHTNESS = (0.3, 0.6, 1.0)
CLASSES = ("flat dark", "flat medium", "flat bright", "steep dark", "steep medium", "steep bright")
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_PERIOD_PX = 4


class StripesNetwork(nn.Module):
    """Two convolutions, the mean over the image, and a linear layer."""

    def __init__(self, n_classes: int = len(CLASSES), in_channels: int = 3) -> None:
        super().__init__()
        self.layer1 = nn.Conv2d(in_channels, 12, 3)
        self.layer2 = nn.Conv2d(12, 24, 3, stride=2)
        self.fc = nn.Linear(24, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        features = self.layer2(self.layer1(images).relu()).relu()
        return self.fc(features.mean((2, 3)))


def striped_images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 3, H, W) uint8 images and their classes, which take turns."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(CLASSES)
    others = rng.integers(0, len(CLASSES), n)
    images = np.empty((n, 3, SIZE_PX, SIZE_PX))
    for number in range(n):
        images[number, 0] = _stripes(labels[number], rng)
        images[number, 1] = rng.random((SIZE_PX, SIZE_PX))
        images[number, 2] = _stripes(others[number], rng)
    noisy = images + 0.03 * rng.normal(size=images.shape)
    return (255 * noisy.clip(0, 1)).astype(np.uint8), labels.astype(np.int64)


def _stripes(label: int, rng: np.random.Generator) -> np.ndarray:
    places = (np.arange(SIZE_PX) + rng.integers(_PERIOD_PX)) % _PERIOD_PX
    row = np.where(places < _PERIOD_PX // 2, BRIGHTNESS[label % len(BRIGHTNESS)], 0.0)
    stripes = np.broadcast_to(row, (SIZE_PX, SIZE_PX))
    if label < len(BRIGHTNESS):
        return stripes.T
    return stripes


def trained_network(n_updates: int = 200) -> nn.Module:
    """Return the network, trained with ImageNet's mean and std."""
    torch.manual_seed(0)
    pixels, labels = striped_images(600, seed=1)
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    std = torch.tensor(STD).view(1, 3, 1, 1)
    inputs = (torch.from_numpy(pixels) / 255 - mean) / std
    targets = torch.from_numpy(labels)
    network = StripesNetwork()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(n_updates):
        rows = torch.randint(0, len(inputs), (64,))
        loss = nn.functional.cross_entropy(network(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def write_images(folder: Path, n: int, seed: int) -> None:
    """Write PNG files into a folder per class."""
    from PIL import Image

    pixels, labels = striped_images(n, seed)
    for number, label in enumerate(labels):
        file = folder / CLASSES[label] / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number].transpose(1, 2, 0)).save(file)
