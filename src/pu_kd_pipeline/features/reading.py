"""Reading features for training and for weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import LAST_TAP_SIZE
from pu_kd_pipeline.learning.confidence import class_confidence
from pu_kd_pipeline.learning.pu_classifier import pu_features
from pu_kd_pipeline.storage.digests import json_digest
from pu_kd_pipeline.storage.sharded_table import ShardedTable, as_array


def feature_tensors(
    features: ShardedTable, kind: str, device: torch.device, rows: np.ndarray | None = None
) -> tuple[np.ndarray, Tensor]:
    """Return (N,) ids and the (N, F) features that a PU head of a kind reads, on the device.

    Args:
        features: the table.
        kind: `features` of the block `pu_training`.
        device: of the result.
        rows: ascending row numbers of the table, of which at most a shard is read at a time; None:
            all.

    Raises:
        InputError: the last layer is asked for, but the features do not state which channels
            belong to it.
    """
    # 0 where the table does not state it
    stated_size = features.facts.get(LAST_TAP_SIZE, 0)
    last_tap_size = int(stated_size)
    if kind == "last_layer" and not last_tap_size:
        raise InputError(
            f"{features.folder}: these features do not say which channels are the last layer's. "
            "Delete the folder, and run `kedro run --pipeline=feature_extraction`"
        )

    ids: list[np.ndarray] = []
    parts: list[Tensor] = []
    for table in _row_selection(features, ["id", "descriptor", "logits"], rows):
        shard_ids = table["id"].to_pandas()
        ids.append(shard_ids.to_numpy())
        # Reduced shard by shard: a head that reads the last layer needs a part of each descriptor.
        descriptor = as_tensor(table["descriptor"]).to(device)
        logits = as_tensor(table["logits"]).to(device)
        part = pu_features(descriptor, logits, kind, last_tap_size)
        parts.append(part)

    return np.concatenate(ids), torch.cat(parts)


def read_log_odds(features: ShardedTable, rows: np.ndarray | None = None) -> np.ndarray:
    """Return the (N,) float64 log odds of the teacher's class, see `class_confidence`.

    Args:
        features: the table.
        rows: ascending row numbers of the table; None: all.
    """
    parts = []
    for table in _row_selection(features, ["logits"], rows):
        logits = as_tensor(table["logits"])
        log_odds = class_confidence(logits).log_odds
        parts.append(log_odds.numpy())
    return np.concatenate(parts)


def _row_selection(
    features: ShardedTable, columns: list[str], rows: np.ndarray | None
) -> Iterator[pa.Table]:
    """Yield columns of each shard, with those of its rows that are among the ascending `rows`."""
    start = 0
    for table in features.shards(columns):
        if rows is None:
            yield table
            continue
        stop = start + len(table)
        first, last = np.searchsorted(rows, (start, stop))
        yield table.take(pa.array(rows[first:last] - start))
        start = stop


def read_confidence(features: ShardedTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the (N,) ids, int32 classes of the teacher and their float64 log odds."""
    ids = []
    classes = []
    log_odds = []
    for table in features.shards(["id", "logits"]):
        found = class_confidence(as_tensor(table["logits"]))
        ids.append(table["id"].to_pandas().to_numpy())
        classes.append(found.classes.numpy())
        log_odds.append(found.log_odds.numpy())
    if not ids:
        return np.array([], dtype=object), np.array([], dtype=np.int32), np.array([])
    return np.concatenate(ids), np.concatenate(classes), np.concatenate(log_odds)


def images_digest(features: ShardedTable) -> str:
    """Return a hash of the images that features are of, whatever made them.

    A feature shard is named after its image shard, whose name holds a hash of the images, with a
    hash of what made it behind the last hyphen.
    """
    return json_digest([name.rpartition("-")[0] for name in features.names])


def iter_logits(features: ShardedTable, ids: set[str]) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield those of the given ids that a shard holds, (n,), and their (n, K) float32 logits."""
    wanted_ids = sorted(ids)
    wanted = pa.array(wanted_ids, pa.string())
    for table in features.shards(["id", "logits"]):
        is_wanted = pa.compute.is_in(table["id"], wanted)
        kept = table.filter(is_wanted)

        if len(kept):
            yield kept["id"].to_pandas().to_numpy(), as_tensor(kept["logits"])


def as_tensor(column: pa.ChunkedArray) -> Tensor:
    """Return a column of a feature shard as a tensor of its own memory, on the CPU."""
    values = as_array(column)
    # Copied: the shard's file is memory-mapped and read-only, which torch does not support.
    own_values = values.copy()
    return torch.from_numpy(own_values)
