"""Small image files and sources for the tests of this folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and listings of folders, and logs nothing."""

    def log_message(self, *arguments: Any) -> None:
        pass


class FilesOnlyHandler(QuietHandler):
    """Serves files, and refuses to list folders, as most servers do."""

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.FORBIDDEN)


@contextmanager
def served(folder: Path, handler: type[QuietHandler] = QuietHandler) -> Iterator[str]:
    """Serve a folder over HTTP; yields its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def png(gray: int, size_px: int = 8) -> bytes:
    """Return an image of one gray level, by which a test recognizes it."""
    buffer = BytesIO()
    image = Image.new("L", (size_px, size_px), gray)
    # Lossless, so that the gray level is read back as it was written.
    image.save(buffer, "PNG")
    return buffer.getvalue()


def image_folder(root: Path, **grays: int) -> Path:
    """Write `dog__a=3` as the image root/dog/a.png with gray level 3."""
    for name, gray in grays.items():
        # A keyword cannot hold a slash.
        relative = name.replace("__", "/")
        path = root / f"{relative}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(gray))
    return root


def parquet_file(
    file: Path | str, n: int, first: int = 0, row_group_size: int = 4, **columns: Any
) -> str:
    """Write n images with the gray levels first, first + 1, …, modulo 256."""
    path = str(file)
    images = []
    for number in range(first, first + n):
        gray = number % 256
        images.append(png(gray))

    image_column = pa.array(images, pa.binary())
    table = pa.table({"image": image_column, **columns})
    # fsspec instead of `open`: the file may have a URL.
    with fsspec.open(path, "wb") as opened:
        pq.write_table(table, opened, row_group_size=row_group_size)
    return path


def source_of(kind: str, **parameters: Any) -> ImageSource:
    """Return the parameters of a source, as YAML would give them."""
    block = {"type": kind, **parameters}
    if "path" in block:
        # YAML has no paths, only text.
        block["path"] = str(block["path"])
    return ImageSource.model_validate(block)


def opened(kind: str, **parameters: Any) -> Source:
    source = source_of(kind, **parameters)
    return open_source(source, seed=0)


def listed(kind: str, **parameters: Any) -> pd.DataFrame:
    source = opened(kind, **parameters)
    return source.listing()


def gray_levels(images: Any) -> list[Any]:
    """Return the gray level of each encoded image, or the fault that stands for it."""
    found: list[Any] = []
    for image in images:
        if isinstance(image, Unusable):
            found.append(image)
        else:
            decoded = Image.open(BytesIO(image))
            pixels = np.asarray(decoded)
            found.append(int(pixels[0, 0]))
    return found
