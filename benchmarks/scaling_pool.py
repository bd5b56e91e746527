"""A pool of random images and untrained models for the benchmark of scaling."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from pu_kd_pipeline.images.row_checksums import checksum
from pu_kd_pipeline.images.shard_files import index_file, index_schema, pixel_file
from pu_kd_pipeline.images.store import QUARANTINE_FILE, ImageStore
from pu_kd_pipeline.images.store_file import STORE_FILE, Specification
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.pu_classifier import make_head
from pu_kd_pipeline.models.cards import PUClassifierCard
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import PUClassifier, save_model
from pu_kd_pipeline.params.teacher import InputSpec, TeacherParams
from pu_kd_pipeline.storage.checked_json import to_checked_json
from pu_kd_pipeline.storage.parquet_files import write_parquet

N_CHANNELS = 1
SIZE_PX = 16
CLASSES = tuple("0123456789")
REDUCTION = 16  # as in conf/base/parameters_pu_training.yml

Shard = tuple[str, int]
"""Name of a shard, and number of its images."""


def write_shard(folder: Path, number: int, n: int) -> Shard:
    """Write a shard of random images in the format of a packed store."""
    name = f"{number:05d}-{n:012x}"
    rng = np.random.default_rng([number, n])
    pixels = rng.integers(0, 256, (n, N_CHANNELS, SIZE_PX, SIZE_PX), dtype=np.uint8)
    np.save(folder / pixel_file(name, "packed"), pixels)
    index = {
        "id": [f"pool/{number:05d}/{row:08d}" for row in range(n)],
        "source": ["pool"] * n,
        "label": [None] * n,
        "relevant": [None] * n,
        # Nothing reads these digests here; only their size matters.
        "sha256": [rng.bytes(32).hex() for _ in range(n)],
        "status": ["ok"] * n,
        "version": [None] * n,
        "row": range(n),
        "checksum": [checksum(image) for image in pixels],
    }
    table = pa.table(index, schema=index_schema())
    write_parquet(table, folder / index_file(name), name)
    return name, n


def link_store(shards: Sequence[Shard], origin: Path, folder: Path) -> ImageStore:
    """Make a folder the store of some shards of another folder, and share the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, _ in shards:
        for file in (pixel_file(name, "packed"), index_file(name)):
            # Hard links: a copy of each pool would take gigabytes.
            if not (folder / file).exists():
                os.link(origin / file, folder / file)
    specification = Specification("packed", N_CHANNELS, SIZE_PX, 10**6, maker="benchmark")
    about = {
        "specification": asdict(specification),
        "n_images": sum(n for _, n in shards),
        "shards": [{"name": name, "n": n} for name, n in shards],
        "quarantine": {},
        "class_names": list(CLASSES),
    }
    nothing = {name: pa.array([], pa.string()) for name in ("id", "source", "status", "version")}
    write_parquet(pa.table(nothing), folder / QUARANTINE_FILE, QUARANTINE_FILE)
    (folder / STORE_FILE).write_text(to_checked_json(about))
    return ImageStore.open(folder)


def write_models(work: Path) -> None:
    """Write an untrained network and PU classifier to `work`, as the stages before would."""
    params = TeacherParams(
        architecture="digits_cnn",
        architecture_options={"width": 2},
        weights=None,
        classes=CLASSES,
        input=InputSpec(size_px=SIZE_PX, channels=N_CHANNELS, mean=(0.5,), std=(0.25,)),
        taps=None,
    )
    with seeded(0):
        teacher = new_teacher(params)
        size = teacher.extractor().descriptor_size
        head = make_head(size, "both", REDUCTION)
    card = PUClassifierCard(
        backbone="frozen",
        features="both",
        descriptor_size=size,
        attention_reduction=REDUCTION,
        class_prior=0.5,
        teacher=teacher.card,
        teacher_fingerprint=teacher.fingerprint(),
    )
    save_model(teacher, work / "teacher")
    save_model(PUClassifier(head.eval(), card), work / "classifier")
