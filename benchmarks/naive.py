"""The other side of the comparisons: the loops of a usual research script.

Torchvision's ImageFolder, Pillow, per-sample transforms, every image decoded in every epoch, a
DataLoader in the process, unfused SGD, and a host synchronization per step. The image files that
both sides read are written here, too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from pu_kd_pipeline.learning.networks.vision import datasets, torchvision
from pu_kd_pipeline.params.compute import AugmentationParams
from pu_kd_pipeline.params.data_ingestion import ImageStoreParams
from pu_kd_pipeline.params.teacher import InputSpec

Transform = Callable[[Image.Image], Tensor]

# How the benchmarks keep their image stores: packed, and decoded in this process.
PACKED = ImageStoreParams(
    kind="packed",
    packed_max_size_px=64,
    disk_budget_gb=9,
    shard_size=50_000,
    max_image_pixels=10**6,
    max_quarantined_share=0.5,
    n_workers=1,
)
_N_FOLDERS = 10
_SUFFIXES = {b"\x89PNG": "png", b"\xff\xd8\xff\xe0": "jpg"}


# --- image files ----------------------------------------------------------------------------------


def encoded_images(
    images: Path | None, name: str, n: int, generated: tuple[str, int, int]
) -> list[bytes]:
    """Return the bytes of n image files.

    Args:
        images: folder of Parquet files with a column `image`; None: images are generated.
        name: the file's name without suffix, whose images are taken evenly; also the seed of
            generated images.
        n: number of images.
        generated: format ("JPEG" or "PNG"), channels and size in pixels of generated images.
    """
    if images is None:
        file_format, channels, size_px = generated
        # Another seed per name, so that no two sets share images.
        seed = list(name.encode())
        rng = np.random.default_rng(seed)
        return [_generated(rng, file_format, channels, size_px) for _ in range(n)]
    file = images / f"{name}.parquet"
    table = pq.read_table(file, columns=["image"])
    column = table["image"]
    n_stored = len(column)
    if n_stored < n:
        raise ValueError(f"{file} has {n_stored} images, and {n} are needed")
    # Spread over the file, which may be sorted by class.
    positions = np.linspace(0, n_stored - 1, n)
    rows = positions.astype(int).tolist()
    return [column[row].as_py() for row in rows]


def _generated(rng: np.random.Generator, file_format: str, channels: int, size_px: int) -> bytes:
    """Return an image of coarse patches under weak noise.

    Noise alone would take longer to decode than any photo.
    """
    patches = rng.integers(0, 256, (8, 8, channels), dtype=np.uint8)
    tiny = Image.fromarray(patches.squeeze())  # gray images have no axis of channels
    size = (size_px, size_px)
    coarse = tiny.resize(size, Image.Resampling.BICUBIC)
    coarse_pixels = np.asarray(coarse)
    noise = rng.integers(-8, 9, coarse_pixels.shape)
    noisy = coarse_pixels + noise
    pixels = noisy.clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


def write_folder(folder: Path, encoded: Sequence[bytes]) -> Path:
    """Write image files into sub-folders, as ImageFolder expects them, and return the folder."""
    for number in range(_N_FOLDERS):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
    for row, content in enumerate(encoded):
        # ImageFolder finds images by their suffix.
        suffix = _SUFFIXES.get(content[:4], "jpg")
        number = row % _N_FOLDERS
        file = folder / str(number) / f"{row:06d}.{suffix}"
        file.write_bytes(content)
    return folder


# --- loading --------------------------------------------------------------------------------------


def transform_of(
    spec: InputSpec, padding: int = 0, flip: bool = False, resize: bool = True
) -> Transform:
    """Return a script's per-sample transforms: resize, random crop and flip, normalize."""
    transforms = torchvision.transforms
    steps: list[Any] = []
    if resize:
        steps.append(transforms.Resize(spec.size_px))
    if padding:
        steps.append(transforms.RandomCrop(spec.size_px, padding=padding))
    if flip:
        steps.append(transforms.RandomHorizontalFlip())
    # On images before, on tensors after.
    steps.append(transforms.ToTensor())
    steps.append(transforms.Normalize(spec.mean, spec.std))
    composed: Transform = transforms.Compose(steps)
    return composed


def photo_transform(
    spec: InputSpec, views: AugmentationParams, size_px: int
) -> Callable[[Tensor], Tensor]:
    """Return torchvision's transforms (v2) of one uint8 image with the parameters of our views."""
    v2 = import_module(f"{torchvision.__name__}.transforms.v2")
    steps = [
        v2.RandomResizedCrop(size_px, views.resized_crop_scale, views.resized_crop_ratio),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(views.brightness, views.contrast, views.saturation),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(spec.mean, spec.std),
    ]
    transform: Callable[[Tensor], Tensor] = v2.Compose(steps)
    return transform


def open_image(path: str, channels: int) -> Image.Image:
    """Return the decoded image in gray or in color."""
    mode = "RGB"
    if channels == 1:
        mode = "L"
    with open(path, "rb") as file:
        return Image.open(file).convert(mode)


def image_folder(
    folder: Path, spec: InputSpec, transform: Transform, label: int = 0
) -> datasets.ImageFolder:
    """Return a folder as a data set: images are decoded one by one, and share one label."""
    return datasets.ImageFolder(
        str(folder),
        transform=transform,
        target_transform=lambda _: label,
        loader=lambda path: open_image(path, spec.channels),
    )


def rows_of_ids(dataset: datasets.ImageFolder, ids: Iterable[str]) -> list[int]:
    """Return the positions in the data set of the images with these ids in a store."""
    # Ids of a store start with a folder, as paths do: file names are unique, and enough.
    positions = {}
    for row, (path, _) in enumerate(dataset.samples):
        positions[Path(path).name] = row
    return [positions[Path(image_id).name] for image_id in ids]


def loader(dataset: Dataset[Any], batches: Sequence[Sequence[int]]) -> DataLoader[Any]:
    """Return a DataLoader over the given batches of positions."""
    # No workers: the CPU time of other processes would not be counted.
    return DataLoader(dataset, batch_sampler=batches, num_workers=0)  # type: ignore[arg-type]


# --- PU training ----------------------------------------------------------------------------------


def shuffled_union(
    positive: Dataset[Any], unlabeled: Dataset[Any], batch_size: int
) -> DataLoader[Any]:
    """Return batches as the released loop draws them: labeled and unlabeled images shuffled."""
    union: Dataset[Any] = ConcatDataset([positive, unlabeled])
    return DataLoader(union, batch_size=batch_size, shuffle=True, num_workers=0)


def nnpu_loss(scores: Tensor, is_positive: Tensor, class_prior: float) -> Tensor:
    """Return the loss whose gradient is nnPU's step.

    Kiryo et al. 2017 (arXiv:1703.00593), Algorithm 1 with beta 0 and gamma 1.
    """
    positive = scores[is_positive]
    unlabeled = scores[~is_positive]
    # A shuffled batch may hold no positives at all.
    n_positive = max(1, len(positive))
    n_unlabeled = max(1, len(unlabeled))
    loss_as_positive = torch.sigmoid(-positive).sum()
    positive_risk = class_prior * loss_as_positive / n_positive
    # Positives among the unlabeled count as negatives there: their share is taken off.
    unlabeled_risk = torch.sigmoid(unlabeled).sum() / n_unlabeled
    loss_as_negative = torch.sigmoid(positive).sum()
    negative_risk = unlabeled_risk - class_prior * loss_as_negative / n_positive
    # Waits for the value, as scripts do.
    if negative_risk.item() < 0:
        return -negative_risk
    return positive_risk + negative_risk


def train_end_to_end(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    class_prior: float,
    optimizer: torch.optim.Optimizer,
) -> list[float]:
    """Train head and backbone for one epoch, and return the loss of every step.

    Args:
        network: maps (N, C, H, W) images to (N,) scores.
        batches: images and their labels, 1 for positives and 0 for unlabeled.
        class_prior: share of positives among the unlabeled.
        optimizer: updates the network's parameters.
    """
    network.train()
    losses = []
    for images, labels in batches:
        scores = network(images)
        is_positive = labels == 1
        loss = nnpu_loss(scores, is_positive, class_prior)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # Waits for the loss in every step, as scripts do.
        losses.append(loss.item())
    return losses
