"""Images, a teacher and features that the golden runs read: made in seconds, the same each time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.duplicates import COLUMNS
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.yardstick import Yardstick
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams, OptimizerParams
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.selection.yardstick import choose_yardstick
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.teacher import train_classifier

N_CLASSES = 5
SIZE_PX = 8
N_LABELED = 40
N_RELEVANT = 60
N_IRRELEVANT = 60
BATCH_SIZE = 24
# An epoch of the 144 of 160 images that are not on the yardstick is 6 updates.
N_UPDATES = 12
RECORD_EVERY = 2
IMAGE_PROBES = (3, 1, SIZE_PX, SIZE_PX)

NO_DUPLICATES = pd.DataFrame(columns=COLUMNS)

COMPUTE = ComputeParams(
    device="cpu",
    precision="float32",
    n_threads=1,
    resident_limit_gb=1.0,
    inference_batch_size=64,
)
# SGD and not Adam: Adam's first steps have one size whatever the gradient's, so where a gradient
# is zero but for rounding (a bias before BatchNorm), another CPU would step the other way.
SGD = OptimizerParams(
    algorithm="sgd",
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="constant",
)
PLAIN_VIEWS = AugmentationParams(padding_px=0, horizontal_flip=False)
FLIPPED_VIEWS = AugmentationParams(padding_px=0, horizontal_flip=True)
SHIFTED_VIEWS = AugmentationParams(padding_px=1, horizontal_flip=True)
PHOTO_VIEWS = AugmentationParams(
    padding_px=0,
    horizontal_flip=True,
    resized_crop_scale=(0.5, 1.0),
    brightness=0.4,
    contrast=0.4,
)


def encoded_image(number: int, *, is_relevant: bool) -> bytes:
    """Return a PNG of noise and a bar in the row of its class, inverted if it is irrelevant."""
    pixels = np.random.default_rng(number).integers(0, 120, (SIZE_PX, SIZE_PX), dtype=np.uint8)
    row = number % N_CLASSES
    # Noise below 120 plus 100 stays within a byte.
    pixels[row : row + 3] += 100
    if not is_relevant:
        pixels = 255 - pixels
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def image_rows(start: int, n: int, *, is_relevant: bool) -> list[dict[str, Any]]:
    """Return n rows of a table of images, with consecutive numbers."""
    rows = []
    for number in range(start, start + n):
        image = encoded_image(number, is_relevant=is_relevant)
        rows.append({"id": f"image-{number}", "image": image, "label": number % N_CLASSES})
    return rows


def write_images(folder: Path, rows: list[dict[str, Any]], labels: str) -> ImageStore:
    """Return an image store of the rows; `labels` is as for `ImageSource`."""
    folder.mkdir(parents=True)
    file = folder / "images.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    source = ImageSource.model_validate({"type": "parquet", "path": str(file), "labels": labels})
    store = ImageStoreParams(
        kind="packed",
        packed_max_size_px=64,
        disk_budget_gb=1.0,
        shard_size=64,
        max_image_pixels=10_000,
        max_quarantined_share=0.0,
        n_workers=1,
    )
    class_names = tuple(str(index) for index in range(N_CLASSES))
    plan = IngestionPlan("images", (source,), SIZE_PX, 1, class_names, store, 0)
    return write_store(plan, folder / "store")


@dataclass(frozen=True)
class ToyInputs:
    """What every run reads; made once and shared, since no run changes it."""

    folder: Path

    @cached_property
    def labeled(self) -> ImageStore:
        """Images whose class is known."""
        rows = image_rows(0, N_LABELED, is_relevant=True)
        return write_images(self.folder / "labeled", rows, "classes")

    @cached_property
    def pool(self) -> ImageStore:
        """Images without labels, half of them irrelevant."""
        # Numbers apart from those of the labeled images: they are the seeds of the noise.
        rows = image_rows(100, N_RELEVANT, is_relevant=True)
        rows += image_rows(1000, N_IRRELEVANT, is_relevant=False)
        return write_images(self.folder / "pool", rows, "ignore")

    @cached_property
    def trained_teacher(self) -> tuple[Model, pd.DataFrame]:
        """A teacher of the labeled images, and its history."""
        size = {"size_px": SIZE_PX, "channels": 1, "mean": [0.4], "std": [0.25]}
        architecture = TeacherParams(
            architecture="digits_cnn",
            architecture_options={"width": 8},
            weights=None,
            taps=None,
            classes=N_CLASSES,
            input=size,
        )
        training = TeacherTrainingParams(
            seed=1,
            n_updates=N_UPDATES,
            record_every=RECORD_EVERY,
            batch_size=BATCH_SIZE,
            optimizer=SGD,
            augmentation=FLIPPED_VIEWS,
            compute=COMPUTE,
        )
        return train_classifier(architecture, self.labeled, training)

    @property
    def teacher(self) -> Model:
        """The network that students and PU classifiers start from."""
        return self.trained_teacher[0]

    @cached_property
    def features(self) -> tuple[ShardedTable, ShardedTable]:
        """The teacher's features of the labeled images and of the pool."""
        labeled = feature_shards(self.labeled, self.teacher, COMPUTE)
        pool = feature_shards(self.pool, self.teacher, COMPUTE)
        return (
            ShardedTable.write(self.folder / "labeled_features", labeled),
            ShardedTable.write(self.folder / "pool_features", pool),
        )

    @cached_property
    def yardstick(self) -> Yardstick:
        """Eleven pool images and a labeled one of each class."""
        params = YardstickParams(
            seed=0,
            n_images=11,
            uniform_share=1.0,
            max_share=0.1,
            labeled_share=0.125,
            min_labeled_per_class=8,
        )
        table = choose_yardstick(
            self.labeled, self.pool, *self.features, self.teacher, NO_DUPLICATES, params
        )
        return Yardstick(table, {"labeled": self.labeled, "pool": self.pool})

    @property
    def manifest(self) -> pd.DataFrame:
        """All images that are not on the yardstick, shuffled."""
        labeled = self.labeled.index[["id"]].assign(origin="labeled")
        pool = self.pool.index[["id"]].assign(origin="pool")
        images = pd.concat([labeled, pool]).sample(frac=1, random_state=0)
        return images[~images["id"].isin(self.yardstick.table["id"])]
