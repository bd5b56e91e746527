"""PU scores of the pool, shard by shard."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pu_kd_pipeline.devices import memory_told, prepare_device
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import TEACHER, Makers, short_hash
from pu_kd_pipeline.images.batches import map_images
from pu_kd_pipeline.images.store import ImageStore, rows_of
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier, pu_features
from pu_kd_pipeline.models.model import PUClassifier
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable, as_array


def score_shards(
    features: ShardedTable, images: ImageStore, classifier: PUClassifier, compute: ComputeParams
) -> Makers:
    """Return one maker a shard of the pool's features, named after the shard and the classifier's fingerprint."""
    check_teacher(
        features,
        classifier.card.teacher_fingerprint,
        "pool_features",
        "the PU classifier's teacher",
    )
    if [name.rpartition("-")[0] for name in features.names] != [
        shard.name for shard in images.shards
    ]:
        raise InputError(
            "pool_features: pool_images changed since they were made. Run `kedro run --pipeline=feature_extraction`"
        )
    device = prepare_device(compute)
    classifier.module.to(device).eval()
    made_by = short_hash(classifier.fingerprint(), compute.precision)

    def maker(name: str) -> Callable[[], pa.Table]:
        def make() -> pa.Table:
            table = next(ShardedTable(features.folder, (name,)).shards())
            logits = torch.from_numpy(as_array(table["logits"]).copy())
            probabilities = logits.softmax(dim=1)
            columns = [
                table["id"].combine_chunks(),
                pa.array(_scores(table, logits, images, classifier, compute, device)),
                pa.array(logits.argmax(dim=1).int().numpy()),
                pa.array(probabilities.amax(dim=1).numpy()),
            ]
            return pa.Table.from_arrays(
                columns, names=["id", "pu_score", "teacher_class", "teacher_confidence"]
            )

        return make

    return {f"{name}-{made_by}": maker(name) for name in features.names}


def _scores(
    table: pa.Table,
    logits: Tensor,
    images: ImageStore,
    classifier: PUClassifier,
    compute: ComputeParams,
    device: torch.device,
) -> np.ndarray:
    module = classifier.module
    if isinstance(module, FullPUClassifier):
        rows = rows_of(images, table["id"].to_pandas().to_numpy(), "pool_features")
        spec = classifier.card.teacher.input
        batches = map_images(
            lambda x: (module(x),), images, rows, Normalize(spec.mean, spec.std, device), compute
        )
        return torch.cat([scores.float() for (scores,) in batches]).numpy()
    with memory_told("pool_scoring"), torch.inference_mode():
        descriptor = torch.from_numpy(as_array(table["descriptor"]).copy())
        card = classifier.card  # its descriptor is the last tap where it reads the last layer
        return (
            module(
                pu_features(
                    descriptor.to(device), logits.to(device), card.features, card.descriptor_size
                )
            )
            .cpu()
            .numpy()
        )


def check_teacher(
    features: ShardedTable, fingerprint: str, whose: str, teacher: str = "teacher_model"
) -> None:
    """Check that features are of a teacher.

    Args:
        features: what is checked.
        fingerprint: of the teacher.
        whose: name of the features, for the message.
        teacher: name of the teacher, for the message.

    Raises:
        InputError: they were made by another one.
    """
    if features.facts.get(TEACHER, fingerprint) != fingerprint:
        raise InputError(
            f"{whose}: another network than {teacher} made them. Run the stages again that are older than the teacher: "
            "`kedro run --pipeline=feature_extraction`, then `--pipeline=pu_training`"
        )
