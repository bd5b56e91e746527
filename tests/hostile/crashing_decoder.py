"""A decoder that crashes its process on some images, as a bug in native code would.

`python crashing_decoder.py FOLDER PARQUET` ingests with it. It is a module, and not part of a test,
because the decoding processes import it.
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
from tests.hostile.valid_files import plan_of

CRASHES = b"an image that crashes"


class CrashingDecoder(Decoder):
    """Aborts the process on the image `CRASHES`."""

    def decode(self, raw: Any) -> np.ndarray | Unusable:
        if raw == CRASHES:
            os.abort()
        return super().decode(raw)


def ingest(folder: Path, parquet: Path) -> ImageStore:
    """Ingest with the decoder that crashes."""
    plan = plan_of({"type": "parquet", "path": str(parquet)}, n_workers=2, shard_size=100)
    # Patched by hand: this also runs as a script, without pytest.
    ingestion.Decoder = CrashingDecoder  # type: ignore[misc,attr-defined]
    try:
        return write_store(plan, folder)
    finally:
        ingestion.Decoder = Decoder  # type: ignore[misc,attr-defined]


if __name__ == "__main__":
    ingest(Path(sys.argv[1]), Path(sys.argv[2]))
