"""Pools and teachers for the tests of relatedness."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.teacher import InputSpec
from pu_kd_pipeline.storage.sharded_table import ShardedTable

# The digits of `load_digits` in their order: first those of the teacher, then those of the pool.
N_TRAINING = 1200
N_DIGITS = 300
N_SHUFFLED = 200
N_NOISE = 100
# A class that the teacher lacks: images with this label are not relevant.
UNKNOWN_CLASS = 10
MEAN = (0.3,)
STD = (0.38,)
CLASSES = tuple(str(digit) for digit in range(10))
STORE = {
    "kind": "packed",
    "packed_max_size_px": 64,
    "disk_budget_gb": 1.0,
    "shard_size": 250,
    "n_workers": 1,
    "max_image_pixels": 10_000,
    "max_quarantined_share": 0.0,
}
COMPUTE = {
    "device": "cpu",
    "precision": "float32",
    "n_threads": 1,
    "resident_limit_gb": 1.0,
    "inference_batch_size": 64,
}


def params_of(**changes: Any) -> RelatednessParams:
    given = {
        "seed": 0,
        "n_noise_images": 500,
        "clip": 10.0,
        "sampling": "preferential",
        "temperature": 0.5,
    }
    return RelatednessParams.model_validate({**given, "floor": 0.1, "compute": COMPUTE, **changes})


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 1, 8, 8) uint8 images and their classes."""
    data = load_digits()
    # scikit-learn's gray values end at 16.
    gray = data.images * (255 / 16)
    images = gray.round().astype(np.uint8)
    return images[:, None], data.target


def model_of(network: nn.Module) -> Model:
    spec = InputSpec(size_px=8, channels=1, mean=MEAN, std=STD)
    card = ModelCard(architecture="digits_cnn", classes=CLASSES, input=spec)
    return Model(network.eval(), card)


def png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def with_shuffled_pixels(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # The same permutation for all: their gray values stay those of digits.
    order = rng.permutation(64)
    flat = images.reshape(len(images), 64)
    return flat[:, order].reshape(images.shape)


def write_collection(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    n_images = len(images)
    columns = {
        "id": [str(row) for row in range(n_images)],
        # One channel: PNG files of gray images.
        "image": [png(image) for image in images[:, 0]],
        "label": labels,
    }
    table = pa.table(columns)
    pq.write_table(table, file)


def collections_of(folder: Path) -> dict[str, Path]:
    """Write digits, digits with shuffled pixels, and noise; return source -> Parquet file."""
    images, labels = digits()
    rng = np.random.default_rng(0)
    last = N_TRAINING + N_DIGITS

    # The teacher learned the digits before these.
    held_out = images[N_TRAINING:last]
    held_out_labels = labels[N_TRAINING:last]
    shuffled = with_shuffled_pixels(images[last - N_SHUFFLED : last], rng)
    noise = rng.integers(0, 256, (N_NOISE, 1, 8, 8), dtype=np.uint8)

    parts = {
        "digits": (held_out, held_out_labels),
        "shuffled": (shuffled, np.full(N_SHUFFLED, UNKNOWN_CLASS)),
        "noise": (noise, np.full(N_NOISE, UNKNOWN_CLASS)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, (pixels, classes) in parts.items():
        files[name] = folder / f"{name}.parquet"
        write_collection(files[name], pixels, classes)
    return files


def store_of(
    files: dict[str, Path], folder: Path, labels: str = "truth", size_px: int = 8
) -> ImageStore:
    sources = []
    for name, file in files.items():
        source = {"type": "parquet", "path": str(file), "name": name, "labels": labels}
        sources.append(ImageSource.model_validate(source))
    plan = IngestionPlan(
        name="pool",
        sources=tuple(sources),
        size_px=size_px,
        channels=1,
        class_names=CLASSES,
        store=ImageStoreParams.model_validate(STORE),
        seed=0,
    )
    return write_store(plan, folder)


def files_of(table: ShardedTable) -> list[Path]:
    return [table.folder / f"{name}.parquet" for name in table.names]


def words(figure: Any) -> str:
    """Return everything written in a figure."""
    # Tick labels are empty until the figure is drawn.
    figure.canvas.draw()
    texts = list(figure.texts)
    found = [figure.get_suptitle()]
    for axes in figure.axes:
        texts += axes.get_xticklabels()
        texts += axes.get_yticklabels()
        texts += axes.texts
        found.append(axes.get_xlabel())
        found.append(axes.get_ylabel())
        found.append(axes.get_title(loc="left"))
        found.append(axes.get_title(loc="right"))
    found += [text.get_text() for text in texts]
    return " | ".join(found)
