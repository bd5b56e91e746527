"""Small image files and sources for the tests of this folder."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pu_kd_pipeline.images.decoding import Unusable
from pu_kd_pipeline.images.sources.base import Source
from pu_kd_pipeline.images.sources.registry import open_source
from pu_kd_pipeline.params.data_ingestion import ImageSource


def png(gray: int, size_px: int = 8) -> bytes:
    buffer = BytesIO()
    Image.new("L", (size_px, size_px), gray).save(buffer, "PNG")
    return buffer.getvalue()


def image_folder(root: Path, **grays: int) -> Path:
    """Write `dog__a=3` as the image root/dog/a.png with gray level 3."""
    for name, gray in grays.items():
        path = root / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(gray))
    return root


def parquet_file(
    file: Path | str, n: int, first: int = 0, row_group_size: int = 4, **columns: Any
) -> str:
    """Write n images with the gray levels first, first + 1, …, modulo 256."""
    images = [png((first + row) % 256) for row in range(n)]
    table = pa.table({"image": pa.array(images, pa.binary()), **columns})
    with fsspec.open(str(file), "wb") as opened:
        pq.write_table(table, opened, row_group_size=row_group_size)
    return str(file)


def source_of(kind: str, **parameters: Any) -> ImageSource:
    if "path" in parameters:  # which is text in YAML
        parameters["path"] = str(parameters["path"])
    return ImageSource.model_validate({"type": kind, **parameters})


def opened(kind: str, **parameters: Any) -> Source:
    return open_source(source_of(kind, **parameters), seed=0)


def listed(kind: str, **parameters: Any) -> pd.DataFrame:
    return opened(kind, **parameters).listing()


def gray_levels(images: Any) -> list[Any]:
    """Return the gray level of each encoded image, or the fault that stands for it."""
    found: list[Any] = []
    for image in images:
        if isinstance(image, Unusable):
            found.append(image)
        else:
            pixels = np.asarray(Image.open(BytesIO(image)))
            found.append(int(pixels[0, 0]))
    return found
