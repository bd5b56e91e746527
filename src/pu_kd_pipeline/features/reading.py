"""Reading features for training and for weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import LAST_TAP_SIZE
from pu_kd_pipeline.learning.pu_classifier import pu_features
from pu_kd_pipeline.storage.sharded_table import ShardedTable, as_array


def feature_tensors(
    features: ShardedTable, kind: str, device: torch.device
) -> tuple[np.ndarray, Tensor]:
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
            torch.from_numpy(as_array(table[name]).copy()).to(device)
            for name in ("descriptor", "logits")
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
