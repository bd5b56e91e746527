"""Teacher features of whole image stores, shard by shard."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pu_kd_pipeline.devices import arithmetic, prepare_device
from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import map_images, normalization
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.store_file import Shard
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.features import FeatureExtractor, to_float16
from pu_kd_pipeline.models.model import Model, load_model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint
from pu_kd_pipeline.storage.parquet_files import write_parquet
from pu_kd_pipeline.storage.sharded_table import fixed_size_list

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
    work = FeatureWork(images, teacher, compute)
    # A teacher or a store that cannot be used is reported before the first shard.
    _ = work.extractor, work.normalize
    # In the name, so that another teacher, device, format, code or library makes all shards again.
    suffix = short_hash(*work.facts().values())
    shards = [(shard.name, shard, shard.n) for shard in images.shards]
    return ShardMakers.of_images(work, shards, suffix)


@dataclass(frozen=True, eq=False)
class FeatureWork:
    """Computes the features of any shard of a store."""

    images: ImageStore
    teacher: Model
    compute: ComputeParams

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what each process prepares for itself."""
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __call__(self, shard: Shard) -> pa.Table:
        """Return `id`, `descriptor` (D float16) and `logits` (K float32) of a shard's images."""
        stop = shard.start + shard.n
        rows = np.arange(shard.start, stop, dtype=np.int64)
        descriptors: list[Tensor] = []
        logits: list[Tensor] = []
        batches = map_images(self._extract, self.images, rows, self.normalize, self.compute)
        for descriptor_batch, logits_batch in batches:
            descriptors.append(descriptor_batch)
            logits.append(logits_batch)

        # (n, D) float16 and (n, K) float32
        shard_descriptors = torch.cat(descriptors)
        shard_logits = torch.cat(logits)
        ids = self.images.shard_ids(shard)
        columns = {
            "id": ids.cast(pa.string()),
            "descriptor": fixed_size_list(shard_descriptors.numpy()),
            "logits": fixed_size_list(shard_logits.numpy()),
        }
        table = pa.table(columns)
        metadata = {
            TEACHER: self._fingerprint,
            LAST_TAP_SIZE: str(self.extractor.last_tap_size),
        }
        return table.replace_schema_metadata(metadata)

    def facts(self) -> Mapping[str, str]:
        """Return what decides the features of an image."""
        return {
            "teacher": self._fingerprint,
            "device or number format": arithmetic(self.compute, self._device),
            # `load_model` reaches the code of the networks, which nothing else here mentions.
            "code or libraries": maker_fingerprint(FeatureWork, load_model, write_parquet),
        }

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The teacher with its taps, on the device."""
        return self.teacher.extractor(self._device)

    @cached_property
    def normalize(self) -> Normalize:
        """What turns the store's pixels into the teacher's input."""
        return normalization(self.teacher, self._device, self.images)

    @cached_property
    def _device(self) -> torch.device:
        return prepare_device(self.compute)

    @cached_property
    def _fingerprint(self) -> str:
        return self.teacher.fingerprint()

    def _extract(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        descriptor, logits = self.extractor(batch)
        # On the device already: half of the bytes travel to the CPU.
        return to_float16(descriptor), logits


def short_hash(*parts: str) -> str:
    """Return twelve hexadecimal digits that change with any of the parts."""
    content = "\n".join(parts)
    digest = hashlib.sha256(content.encode())
    return digest.hexdigest()[:12]
