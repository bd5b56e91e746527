"""Teacher features of whole image stores, shard by shard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pu_kd_pipeline.devices import arithmetic, prepare_device
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import map_images, normalization
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.store_file import Shard
from pu_kd_pipeline.learning.features import to_float16
from pu_kd_pipeline.models.model import Model, load_model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint
from pu_kd_pipeline.storage.parquet_files import write_parquet
from pu_kd_pipeline.storage.sharded_table import fixed_size_list

ShardMakers = dict[str, Callable[[], pa.Table]]
# Metadata keys of a feature shard: the fingerprint of the network that made it, and how many of the
# descriptor's channels belong to the last tap.
TEACHER = "teacher"
LAST_TAP_SIZE = "last_tap_size"


def feature_shards(images: ImageStore, teacher: Model, compute: ComputeParams) -> ShardMakers:
    """Return one function per shard of a store that computes the features of the shard.

    The names consist of the shard's name and a hash of teacher, kind of device, number format,
    code and libraries.
    """
    if not len(images):
        raise InputError(
            "feature_extraction: the image store is empty; check the sources in "
            "parameters_data_ingestion.yml"
        )
    device = prepare_device(compute)
    extractor = teacher.extractor(device)
    normalize = normalization(teacher, device, images)
    fingerprint = teacher.fingerprint()
    last_tap_size = str(extractor.last_tap_size)
    metadata = {TEACHER: fingerprint, LAST_TAP_SIZE: last_tap_size}

    def extract(batch: Tensor) -> tuple[Tensor, Tensor]:
        descriptor, logits = extractor(batch)
        # On the device already: half of the bytes travel to the CPU.
        return to_float16(descriptor), logits

    def make(shard: Shard) -> pa.Table:
        stop = shard.start + shard.n
        rows = np.arange(shard.start, stop, dtype=np.int64)
        descriptors: list[Tensor] = []
        logits: list[Tensor] = []
        batches = map_images(extract, images, rows, normalize, compute)
        for descriptor_batch, logits_batch in batches:
            descriptors.append(descriptor_batch)
            logits.append(logits_batch)

        # (n, D) float16 and (n, K) float32
        shard_descriptors = torch.cat(descriptors)
        shard_logits = torch.cat(logits)
        ids = images.shard_ids(shard)
        columns = {
            "id": ids.cast(pa.string()),
            "descriptor": fixed_size_list(shard_descriptors.numpy()),
            "logits": fixed_size_list(shard_logits.numpy()),
        }
        table = pa.table(columns)
        return table.replace_schema_metadata(metadata)

    # In the name, so that another teacher, device, format, code or library makes all shards again.
    # `load_model` reaches the code of the networks, which nothing else here mentions.
    maker = maker_fingerprint(feature_shards, load_model, write_parquet)
    suffix = short_hash(fingerprint, arithmetic(compute, device), maker)
    return {f"{shard.name}-{suffix}": partial(make, shard) for shard in images.shards}


def short_hash(*parts: str) -> str:
    """Return twelve hexadecimal digits that change with any of the parts."""
    content = "\n".join(parts)
    digest = hashlib.sha256(content.encode())
    return digest.hexdigest()[:12]
