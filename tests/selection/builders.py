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

N_TRAINING, N_DIGITS, N_SHUFFLED, N_NOISE = 1200, 300, 200, 100
MEAN, STD = (0.3,), (0.38,)
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
    return (data.images * (255 / 16)).round().astype(np.uint8)[:, None], data.target


def model_of(network: nn.Module) -> Model:
    spec = InputSpec(size_px=8, channels=1, mean=MEAN, std=STD)
    return Model(network.eval(), ModelCard(architecture="digits_cnn", classes=CLASSES, input=spec))


def png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def collections_of(folder: Path) -> dict[str, Path]:
    """Write digits, digits with shuffled pixels, and noise; return source -> Parquet file."""
    images, labels = digits()
    rng = np.random.default_rng(0)
    last = N_TRAINING + N_DIGITS  # the teacher learned the first digits
    held_out = images[N_TRAINING:last]
    later = images[last - N_SHUFFLED : last]
    # The same permutation for all: their gray values stay those of digits.
    shuffled = later.reshape(N_SHUFFLED, 64)[:, rng.permutation(64)].reshape(later.shape)
    noise = rng.integers(0, 256, (N_NOISE, 1, 8, 8), dtype=np.uint8)
    parts = {
        "digits": (held_out, labels[N_TRAINING:last]),
        "shuffled": (shuffled, np.full(N_SHUFFLED, 10)),  # 10: a class that the teacher lacks
        "noise": (noise, np.full(N_NOISE, 10)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, (pixels, classes) in parts.items():
        ids = [f"{row}" for row in range(len(pixels))]
        encoded = [png(each[0]) for each in pixels]
        files[name] = folder / f"{name}.parquet"
        pq.write_table(pa.table({"id": ids, "image": encoded, "label": classes}), files[name])
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
    figure.canvas.draw()
    found = [figure.get_suptitle()]
    found += [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [axes.get_xlabel(), axes.get_ylabel()]
        found += [axes.get_title(loc="left"), axes.get_title(loc="right")]
        labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts]
        found += [label.get_text() for label in labels]
    return " | ".join(found)
