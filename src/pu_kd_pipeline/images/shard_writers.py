"""Writers of the pixels of one shard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa

from pu_kd_pipeline.images.decoding import Unusable, to_file_bytes
from pu_kd_pipeline.images.row_checksums import checksum
from pu_kd_pipeline.images.store_file import Specification

if TYPE_CHECKING:
    from pu_kd_pipeline.images.decoding import RawImage


_ENCODED_BATCH_BYTES = 32 * 2**20  # of images in one Arrow record batch


class ShardWriter(Protocol):
    """Takes the images of a shard one by one; at the end of its context the file is on disk.

    `checksums` holds one per image, of its bytes in the file.
    """

    checksums: list[int]

    def __enter__(self) -> ShardWriter: ...

    def __exit__(self, *_: object) -> None: ...

    def append(self, raw: RawImage | Unusable, pixels: np.ndarray) -> None:
        """Add an image, given both as the source delivered it and as (C, H, W) uint8 pixels."""
        ...


def shard_writer(file: Path, specification: Specification) -> ShardWriter:
    """Return the writer of a kind of store, which has opened the file."""
    if specification.kind == "packed":
        return PackedWriter(file, specification)
    return EncodedWriter(file)


class PackedWriter:
    """Streams pixels into a `.npy` file whose length is known only at the end."""

    def __init__(self, file: Path, specification: Specification) -> None:
        self.checksums: list[int] = []
        self._file = open(file, "wb")  # noqa: SIM115  (closed by __exit__)
        size_px = specification.size_px
        self._shape = (specification.channels, size_px, size_px)
        self._n = 0
        # With a length of zero; __exit__ writes it again over the same bytes.
        self._write_header()
        self._header_size = self._file.tell()

    def __enter__(self) -> PackedWriter:
        return self

    def append(self, raw: RawImage | Unusable, pixels: np.ndarray) -> None:
        """Add the pixels of an image."""
        self._file.write(pixels.data)
        self.checksums.append(checksum(pixels.data))
        self._n += 1

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()
            # NumPy pads the header so that the length along the first axis may grow in place.
            assert self._file.tell() == self._header_size
            self._file.flush()
            os.fsync(self._file.fileno())

    def _write_header(self) -> None:
        shape = (self._n, *self._shape)
        # "|u1" is uint8 in NumPy's notation.
        about = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, about)


class EncodedWriter:
    """Streams the images' own bytes into an uncompressed Arrow file.

    Reading any row is then one access to the memory map.
    """

    def __init__(self, file: Path) -> None:
        self.checksums: list[int] = []
        self._file = open(file, "wb")  # noqa: SIM115  (closed by __exit__)
        self._schema = pa.schema([("image", pa.large_binary())])
        self._writer = pa.ipc.new_file(self._file, self._schema)
        self._images: list[bytes] = []
        self._n_bytes = 0

    def __enter__(self) -> EncodedWriter:
        return self

    def append(self, raw: RawImage | Unusable, pixels: np.ndarray) -> None:
        """Add an image as the source delivered it; an array of pixels becomes a PNG."""
        assert not isinstance(raw, Unusable)
        image = to_file_bytes(raw)
        self.checksums.append(checksum(image))
        self._images.append(image)
        self._n_bytes += len(image)
        # One record batch per image would make the file slow to open, one per shard costs memory.
        if self._n_bytes >= _ENCODED_BATCH_BYTES:
            self._flush()

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._flush()
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())

    def _flush(self) -> None:
        if self._images:
            column = pa.array(self._images, pa.large_binary())
            batch = pa.record_batch([column], schema=self._schema)
            self._writer.write_batch(batch)
        self._images = []
        self._n_bytes = 0
