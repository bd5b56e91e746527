"""A decoder with a fault in its native code, as far as anybody else can tell: some images end its process.

`python crashing_decoder.py FOLDER PARQUET` ingests with it. A module of its own, since other processes import it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pu_kd_pipeline.images import ingestion
from pu_kd_pipeline.images.decoding import Decoder, Unusable
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.store import ImageStore
from tests.hostile.fuzzing import plan_of

CRASHES = b"an image that crashes"


class CrashingDecoder(Decoder):
    """Aborts on images that say so."""

    def decode(self, raw: Any) -> np.ndarray | Unusable:
        if raw == CRASHES:
            os.abort()
        return super().decode(raw)


def ingest(folder: Path, parquet: Path) -> ImageStore:
    """Ingest with the decoder that crashes."""
    ingestion.Decoder = CrashingDecoder  # type: ignore[misc]
    try:
        return write_store(
            plan_of({"type": "parquet", "path": str(parquet)}, n_workers=2, shard_size=100), folder
        )
    finally:
        ingestion.Decoder = Decoder  # type: ignore[misc]


if __name__ == "__main__":
    ingest(Path(sys.argv[1]), Path(sys.argv[2]))
