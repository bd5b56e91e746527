"""Features and scores, shard by shard: the one backbone pass, and the PU classifier on what it gave."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.infra.devices import memory_told, prepare_device
from pu_kd_pipeline.infra.image_batches import map_images, normalisation
from pu_kd_pipeline.infra.image_store import ImageStore, Shard
from pu_kd_pipeline.infra.model_files import Model, PUClassifier
from pu_kd_pipeline.infra.sharded_table import ShardedTable, as_array, fixed_size_list
from pu_kd_pipeline.learning.augmentation import Normalise
from pu_kd_pipeline.learning.features import to_float16
from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier, pu_features
from pu_kd_pipeline.params import ComputeParams

Makers = dict[str, Callable[[], pa.Table]]
TEACHER = "teacher"  # the fact of a feature shard that says which network made it
LAST_TAP_SIZE = "last_tap_size"  # the fact that says how many of the descriptor's channels are the last tap's


def feature_shards(images: ImageStore, teacher: Model, compute: ComputeParams) -> Makers:
    """Return one maker a shard of a store, named after the shard and the fingerprints of teacher and precision."""
    if not len(images):
        raise InputError(
            "feature_extraction: the image store is empty; check the sources in parameters_data_ingestion.yml"
        )
    device = prepare_device(compute)
    extractor = teacher.extractor(device)
    normalise = normalisation(teacher, device)
    made_by = _short_hash(fingerprint := teacher.fingerprint(), compute.precision)

    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        descriptor, logits = extractor(images)
        return to_float16(descriptor), logits

    def maker(shard: Shard) -> Callable[[], pa.Table]:
        def make() -> pa.Table:
            rows = np.arange(shard.start, shard.start + shard.n, dtype=np.int64)
            batches = map_images(extract, images, rows, normalise, compute)
            descriptor, logits = (torch.cat(column).numpy() for column in zip(*batches, strict=True))
            columns = [images.ids_of(shard).cast(pa.string()), fixed_size_list(descriptor), fixed_size_list(logits)]
            table = pa.Table.from_arrays(columns, names=["id", "descriptor", "logits"])
            return table.replace_schema_metadata({TEACHER: fingerprint, LAST_TAP_SIZE: str(extractor.last_tap_size)})

        return make

    return {f"{shard.name}-{made_by}": maker(shard) for shard in images.shards}


def score_shards(
    features: ShardedTable, images: ImageStore, classifier: PUClassifier, compute: ComputeParams
) -> Makers:
    """Return one maker a shard of the pool's features, named after the shard and the classifier's fingerprint."""
    check_teacher(features, classifier.card.teacher_fingerprint, "pool_features", "the PU classifier's teacher")
    if [name.rpartition("-")[0] for name in features.names] != [shard.name for shard in images.shards]:
        raise InputError(
            "pool_features: pool_images changed since they were made. Run `kedro run --pipeline=feature_extraction`"
        )
    device = prepare_device(compute)
    classifier.module.to(device).eval()
    made_by = _short_hash(classifier.fingerprint(), compute.precision)

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
            return pa.Table.from_arrays(columns, names=["id", "pu_score", "teacher_class", "teacher_confidence"])

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
        batches = map_images(lambda x: (module(x),), images, rows, Normalise(spec.mean, spec.std, device), compute)
        return torch.cat([scores.float() for (scores,) in batches]).numpy()
    with memory_told("pool_scoring"), torch.inference_mode():
        descriptor = torch.from_numpy(as_array(table["descriptor"]).copy())
        card = classifier.card  # its descriptor is the last tap where it reads the last layer
        return (
            module(pu_features(descriptor.to(device), logits.to(device), card.features, card.descriptor_size))
            .cpu()
            .numpy()
        )


def check_teacher(features: ShardedTable, fingerprint: str, whose: str, teacher: str = "teacher_model") -> None:
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


def rows_of(images: ImageStore, ids: np.ndarray, whose: str) -> np.ndarray:
    """Return the rows of a store that hold the given ids.

    Raises:
        InputError: the store has no such image: `whose` was made from other images.
    """
    import pandas as pd

    rows = pd.Index(images.index["id"]).get_indexer(pd.Index(ids))
    if (rows < 0).any():
        raise InputError(
            f"{whose}: {int((rows < 0).sum())} of {len(ids)} ids are not in the image store, such as "
            f"{ids[rows < 0][0]!r}. It was made from other images: rerun the stages from `feature_extraction` on"
        )
    return rows.astype(np.int64)


def feature_tensors(features: ShardedTable, kind: str, device: torch.device) -> tuple[np.ndarray, Tensor]:
    """Return (N,) ids and the (N, F) features that a PU head of a kind reads, on the device.

    Raises:
        InputError: the last layer is asked for, and the features do not say which channels are its.
    """
    ids, parts = [], []
    last_tap_size = int(features.facts.get(LAST_TAP_SIZE, 0))
    if kind == "last_layer" and not last_tap_size:
        raise InputError(
            f"{features.folder}: these features do not say which channels are the last layer's. Delete the folder, "
            "and run `kedro run --pipeline=feature_extraction`"
        )
    for table in features.shards():
        ids.append(table["id"].to_pandas().to_numpy())
        descriptor, logits = (
            torch.from_numpy(as_array(table[name]).copy()).to(device) for name in ("descriptor", "logits")
        )
        parts.append(pu_features(descriptor, logits, kind, last_tap_size))
    return np.concatenate(ids), torch.cat(parts)


def logits_of(features: ShardedTable, ids: set[str]) -> Iterator[Tensor]:
    """Yield the (n, K) float32 logits of the given ids, shard by shard."""
    wanted = pa.array(sorted(ids), pa.string())
    for table in features.shards(["id", "logits"]):
        kept = table.filter(pa.compute.is_in(table["id"], wanted))
        if len(kept):
            yield torch.from_numpy(as_array(kept["logits"]).copy())


def _short_hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
