"""What the loaders and PU loops are held against: the loops of a usual research script, every image decoded each epoch.

Torchvision's ImageFolder, Pillow, per-sample transforms, a DataLoader in the process, unfused SGD, a host
synchronization a step. Here are also the image files that both sides read.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from pu_kd_pipeline.learning.networks.vision import datasets, torchvision
from pu_kd_pipeline.params.data_ingestion import ImageStoreParams
from pu_kd_pipeline.params.teacher import InputSpec

Transform = Callable[[Image.Image], Tensor]

# how the benchmarks keep their image stores: packed, decoded in the process
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


# --- image files ------------------------------------------------------------------------------------------------------


def encoded_images(
    images: Path | None, name: str, n: int, generated: tuple[str, int, int]
) -> list[bytes]:
    """Return the bytes of n image files: spread evenly over the Parquet file of that name, or generated.

    Args:
        images: folder of Parquet files with a column `image`; None: generate.
        name: of the file, without suffix; it also seeds what is generated.
        n: number of images.
        generated: format ("JPEG" or "PNG"), channels and size in pixels of generated images.
    """
    if images is not None:
        column = pq.read_table(images / f"{name}.parquet", columns=["image"])["image"]
        if len(column) < n:
            raise ValueError(
                f"{images / name}.parquet has {len(column)} images, and {n} are needed"
            )
        return [
            column[row].as_py() for row in np.linspace(0, len(column) - 1, n).astype(int).tolist()
        ]
    file_format, channels, size_px = generated
    rng = np.random.default_rng(list(name.encode()))
    return [_generated(rng, file_format, channels, size_px) for _ in range(n)]


def _generated(rng: np.random.Generator, file_format: str, channels: int, size_px: int) -> bytes:
    """Return an image of coarse patches under weak noise: plain noise would take longer to decode than any photo."""
    patches = rng.integers(0, 256, (8, 8, channels), dtype=np.uint8).squeeze()
    coarse = Image.fromarray(patches).resize((size_px, size_px), Image.Resampling.BICUBIC)
    noise = rng.integers(-8, 9, np.shape(coarse))
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(
        buffer, file_format
    )
    return buffer.getvalue()


def write_folder(folder: Path, encoded: Sequence[bytes]) -> Path:
    """Write image files into sub-folders, as ImageFolder wants them, and return the folder."""
    for number in range(_N_FOLDERS):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
    for row, content in enumerate(encoded):
        suffix = _SUFFIXES.get(content[:4], "jpg")
        (folder / str(row % _N_FOLDERS) / f"{row:06d}.{suffix}").write_bytes(content)
    return folder


# --- loading ----------------------------------------------------------------------------------------------------------


def transform_of(
    spec: InputSpec, padding: int = 0, flip: bool = False, resize: bool = True
) -> Transform:
    """Return the per-sample transforms of a script: resize, random crop and flip, to a tensor, normalize."""
    transforms = torchvision.transforms
    steps: list[Any] = [transforms.Resize(spec.size_px)] if resize else []
    if padding:
        steps.append(transforms.RandomCrop(spec.size_px, padding=padding))
    if flip:
        steps.append(transforms.RandomHorizontalFlip())
    composed: Transform = transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
    )
    return composed


def open_image(path: str, channels: int) -> Image.Image:
    """Return the decoded image in gray or in colors."""
    with open(path, "rb") as file:
        return Image.open(file).convert("L" if channels == 1 else "RGB")


def image_folder(
    folder: Path, spec: InputSpec, transform: Transform, label: int = 0
) -> datasets.ImageFolder:
    """Return the images of a folder as a data set, decoded and transformed one by one, all with one label."""
    return datasets.ImageFolder(
        str(folder),
        transform=transform,
        target_transform=lambda _: label,
        loader=lambda path: open_image(path, spec.channels),
    )


def rows_of_ids(dataset: datasets.ImageFolder, ids: Iterable[str]) -> list[int]:
    """Return the positions in the data set of the images that a store calls so."""
    position = {Path(path).name: row for row, (path, _) in enumerate(dataset.samples)}
    return [position[Path(image_id).name] for image_id in ids]


def loader(dataset: Dataset[Any], batches: Sequence[Sequence[int]]) -> DataLoader[Any]:
    """Return a DataLoader over stated batches, in the process."""
    return DataLoader(dataset, batch_sampler=batches, num_workers=0)  # type: ignore[arg-type]


# --- PU training ------------------------------------------------------------------------------------------------------


def shuffled_union(
    positive: Dataset[Any], unlabeled: Dataset[Any], batch_size: int
) -> DataLoader[Any]:
    """Return batches as the released loop draws them: labeled and unlabeled images together, shuffled."""
    return DataLoader(
        ConcatDataset([positive, unlabeled]), batch_size=batch_size, shuffle=True, num_workers=0
    )


def nnpu_loss(scores: Tensor, is_positive: Tensor, class_prior: float) -> Tensor:
    """Return the loss whose gradient is nnPU's step (Kiryo et al. 2017, Algorithm 1, beta 0 and gamma 1)."""
    positive, unlabeled = scores[is_positive], scores[~is_positive]
    n_positive, n_unlabeled = max(1, len(positive)), max(1, len(unlabeled))
    positive_risk = class_prior * torch.sigmoid(-positive).sum() / n_positive
    negative_risk = torch.sigmoid(unlabeled).sum() / n_unlabeled
    negative_risk = negative_risk - class_prior * torch.sigmoid(positive).sum() / n_positive
    if negative_risk.item() < 0:
        return -negative_risk
    return positive_risk + negative_risk


def train_end_to_end(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    class_prior: float,
    optimizer: torch.optim.Optimizer,
) -> list[float]:
    """Train head and backbone on batches of images, labeled 1 for positives, and return the loss of every step.

    Args:
        network: maps (N, C, H, W) images to (N,) scores.
        batches: one epoch.
        class_prior: share of positives among the unlabeled.
        optimizer: of the network's parameters.
    """
    network.train()
    losses = []
    for images, labels in batches:
        loss = nnpu_loss(network(images), labels == 1, class_prior)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
