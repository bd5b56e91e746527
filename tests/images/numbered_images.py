"""Images that are identified by a number: their pixels, Parquet files of them, plans and stores."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams

KINDS = pytest.mark.parametrize("kind", ["packed", "encoded"])


def pixels_of(number: int) -> np.ndarray:
    # Seeded by the number: two images are equal only if their numbers are.
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (3, 8, 8), dtype=np.uint8)


def batch_of(numbers: Iterable[int]) -> np.ndarray:
    images = [pixels_of(number) for number in numbers]
    return np.stack(images)


def png(number: int) -> bytes:
    pixels = pixels_of(number)
    # Pillow has the channels last.
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def parquet_of(file: Path, numbers: Iterable[int], **replaced: bytes) -> Path:
    """Write images to a Parquet file; `i3=b"..."` writes other bytes in place of image 3.

    The label of an image is its number modulo 3.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    ids = []
    images = []
    labels = []
    for number in numbers:
        image_id = f"i{number}"
        image = replaced.get(image_id, png(number))
        ids.append(image_id)
        images.append(image)
        labels.append(number % 3)

    table = pa.table({"id": ids, "image": images, "label": labels})
    # Several row groups, so that reading has to find its way around a file.
    pq.write_table(table, file, row_group_size=5)
    return file


def plan_of(*paths: Path, source: dict[str, Any] | None = None, **store: Any) -> IngestionPlan:
    """Return the plan of a store of these files; `source` and `store` change its parameters."""
    sources = []
    for path in paths:
        block = {"type": "parquet", "path": str(path), "labels": "classes"}
        block.update(source or {})
        sources.append(ImageSource.model_validate(block))
    store_params = {
        "kind": "packed",
        "packed_max_size_px": 64,
        "disk_budget_gb": 1.0,
        "shard_size": 10,
        "n_workers": 2,
        "max_image_pixels": 10_000,
        "max_quarantined_share": 0.5,
        **store,
    }
    return IngestionPlan(
        name="pool",
        sources=tuple(sources),
        size_px=8,
        channels=3,
        class_names=("cat", "dog", "owl"),
        store=ImageStoreParams.model_validate(store_params),
        seed=0,
    )


def numbered_store(folder: Path, numbers: Iterable[int], **store: Any) -> ImageStore:
    """Write `a.parquet` and the store of it into a folder."""
    file = parquet_of(folder / "a.parquet", numbers)
    plan = plan_of(file, **store)
    return write_store(plan, folder / "store")


def shard_ids(store: ImageStore) -> list[str]:
    """Return the ids of the images in the order of the index."""
    ids = store.index["id"]
    return ids.tolist()


def contents(store: ImageStore) -> dict[str, bytes]:
    """Return the pixels of every image by its id."""
    rows = np.arange(len(store))
    images = store.read(rows)
    found = {}
    for image_id, image in zip(shard_ids(store), images, strict=True):
        found[image_id] = image.tobytes()
    return found


def expected(numbers: Iterable[int]) -> dict[str, bytes]:
    """Return what `contents` of a store of these images must be."""
    by_id = {}
    for number in numbers:
        pixels = pixels_of(number)
        by_id[f"i{number}"] = pixels.tobytes()
    return by_id
