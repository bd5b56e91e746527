"""Teacher features of whole image stores, shard by shard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pu_kd_pipeline.devices import prepare_device
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import map_images, normalization
from pu_kd_pipeline.images.store import ImageStore, Shard
from pu_kd_pipeline.learning.features import to_float16
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.storage.sharded_table import fixed_size_list

Makers = dict[str, Callable[[], pa.Table]]
TEACHER = "teacher"  # the fact of a feature shard that says which network made it
LAST_TAP_SIZE = (
    "last_tap_size"  # the fact that says how many of the descriptor's channels are the last tap's
)


def feature_shards(images: ImageStore, teacher: Model, compute: ComputeParams) -> Makers:
    """Return one maker a shard of a store, named after the shard and the fingerprints of teacher and precision."""
    if not len(images):
        raise InputError(
            "feature_extraction: the image store is empty; check the sources in parameters_data_ingestion.yml"
        )
    device = prepare_device(compute)
    extractor = teacher.extractor(device)
    normalize = normalization(teacher, device)
    made_by = short_hash(fingerprint := teacher.fingerprint(), compute.precision)

    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        descriptor, logits = extractor(images)
        return to_float16(descriptor), logits

    def maker(shard: Shard) -> Callable[[], pa.Table]:
        def make() -> pa.Table:
            rows = np.arange(shard.start, shard.start + shard.n, dtype=np.int64)
            batches = map_images(extract, images, rows, normalize, compute)
            descriptor, logits = (
                torch.cat(column).numpy() for column in zip(*batches, strict=True)
            )
            columns = [
                images.ids_of(shard).cast(pa.string()),
                fixed_size_list(descriptor),
                fixed_size_list(logits),
            ]
            table = pa.Table.from_arrays(columns, names=["id", "descriptor", "logits"])
            return table.replace_schema_metadata(
                {TEACHER: fingerprint, LAST_TAP_SIZE: str(extractor.last_tap_size)}
            )

        return make

    return {f"{shard.name}-{made_by}": maker(shard) for shard in images.shards}


def short_hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
