"""PU scores of the pool, shard by shard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pu_kd_pipeline.devices import arithmetic, explain_memory_shortage, prepare_device
from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import TEACHER, short_hash
from pu_kd_pipeline.features.reading import as_tensor
from pu_kd_pipeline.images.batches import check_images_fit, input_normalization, map_images
from pu_kd_pipeline.images.store import ImageStore, find_rows
from pu_kd_pipeline.learning.confidence import class_confidence
from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier, PUHead, pu_features
from pu_kd_pipeline.models.model import PUClassifier, load_pu_classifier
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint
from pu_kd_pipeline.storage.parquet_files import write_parquet
from pu_kd_pipeline.storage.sharded_table import ShardedTable


def score_shards(
    features: ShardedTable, images: ImageStore, classifier: PUClassifier, compute: ComputeParams
) -> ShardMakers:
    """Return one function per shard of the pool's features that scores the shard.

    The names consist of the shard's name and a hash of classifier, kind of device, number
    format, code and libraries.
    """
    check_teacher(
        features,
        classifier.card.teacher_fingerprint,
        "pool_features",
        "the PU classifier's teacher",
    )
    image_shards = [shard.name for shard in images.shards]
    # A feature shard is named after its image shard, with a hash behind the last hyphen.
    read_shards = [name.rpartition("-")[0] for name in features.names]
    if read_shards != image_shards:
        raise InputError(
            "pool_features: pool_images changed since they were made. Run "
            "`kedro run --pipeline=feature_extraction`"
        )
    work = ScoringWork(features, images, classifier, compute)
    # In the name, so that another classifier, device, precision, code or library scores all shards
    # again.
    suffix = short_hash(*work.facts().values())
    pairs = zip(features.names, images.shards, strict=True)
    shards = [(name, name, image_shard.n) for name, image_shard in pairs]
    return ShardMakers.of_images(work, shards, suffix)


@dataclass(frozen=True, eq=False)
class ScoringWork:
    """Scores the images of any shard of the pool's features."""

    features: ShardedTable
    images: ImageStore
    classifier: PUClassifier
    compute: ComputeParams

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what each process prepares for itself."""
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __call__(self, name: str) -> pa.Table:
        """Return the scores of the images of a feature shard."""
        module = self._module
        table = self.features.shard(name)
        logits = as_tensor(table["logits"])
        if isinstance(module, FullPUClassifier):
            scores = _scores_from_images(module, table, self.images, self.classifier, self.compute)
        else:
            scores = _scores_from_features(module, table, logits, self.classifier, self._device)

        teacher = class_confidence(logits)
        columns = {
            "id": table["id"].combine_chunks(),
            "pu_score": pa.array(scores),
            "teacher_class": pa.array(teacher.classes.numpy()),
            "teacher_confidence": pa.array(teacher.confidence.numpy()),
            "teacher_log_odds": pa.array(teacher.log_odds.numpy()),
        }
        return pa.table(columns)

    def facts(self) -> Mapping[str, str]:
        """Return what decides the score of an image."""
        return {
            "classifier": self.classifier.fingerprint(),
            "device or number format": arithmetic(self.compute, self._device),
            # `load_pu_classifier` reaches the code of the networks.
            "code or libraries": maker_fingerprint(ScoringWork, load_pu_classifier, write_parquet),
        }

    @cached_property
    def _device(self) -> torch.device:
        return prepare_device(self.compute)

    @cached_property
    def _module(self) -> PUHead | FullPUClassifier:
        return self.classifier.module.to(self._device).eval()


def _scores_from_images(
    module: FullPUClassifier,
    table: pa.Table,
    images: ImageStore,
    classifier: PUClassifier,
    compute: ComputeParams,
) -> np.ndarray:
    """Return the (n,) float32 scores of a classifier that has its own backbone."""
    ids = table["id"].to_pandas()
    rows = find_rows(images, ids.to_numpy(), "pool_features")

    # Of the classifier's own backbone, whose input is the teacher's.
    spec = classifier.card.teacher.input
    device = prepare_device(compute)
    check_images_fit(images, spec)
    normalize = input_normalization(spec, device)

    batches = map_images(lambda batch: (module(batch),), images, rows, normalize, compute)
    scores = [batch.float() for (batch,) in batches]
    return torch.cat(scores).numpy()


def _scores_from_features(
    module: PUHead,
    table: pa.Table,
    logits: Tensor,
    classifier: PUClassifier,
    device: torch.device,
) -> np.ndarray:
    """Return the (n,) scores of a head that reads cached features."""
    card = classifier.card
    with explain_memory_shortage("pool_scoring"), torch.inference_mode():
        descriptor = as_tensor(table["descriptor"]).to(device)
        logits = logits.to(device)
        # Where the head reads the last layer, its descriptor is the last tap.
        inputs = pu_features(descriptor, logits, card.features, card.descriptor_size)
        scores: Tensor = module(inputs)
        return scores.cpu().numpy()


def check_teacher(
    features: ShardedTable, fingerprint: str, name: str, teacher: str = "teacher_model"
) -> None:
    """Check that features were made by a teacher.

    Args:
        features: the features to check.
        fingerprint: fingerprint of the teacher.
        name: name of the features, for the message.
        teacher: name of the teacher, for the message.

    Raises:
        InputError: they were made by another network.
    """
    # Features that do not state their teacher, such as a table without shards, cannot be checked.
    made_by = features.facts.get(TEACHER, fingerprint)
    if made_by != fingerprint:
        raise InputError(
            f"{name}: another network than {teacher} made them. Run the stages again that are "
            "older than the teacher: `kedro run --pipeline=feature_extraction`, then "
            "`--pipeline=pu_training`"
        )
