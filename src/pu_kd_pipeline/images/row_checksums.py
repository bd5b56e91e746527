"""The checksums of the images of one shard, verified image by image as they are first read."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.shard_files import RUN_AGAIN


class RowChecksums:
    """The checksums of a shard's images, and which of them were verified in this process.

    Reading random rows of a large shard thus never reads the whole file first. Several threads may
    use one object: at worst, two of them verify the same image.

    Args:
        checksums: (n,) uint32, of the bytes of each image in the file.
        file: path or address of the file, for messages.
    """

    def __init__(self, checksums: np.ndarray, file: str) -> None:
        self._checksums = checksums
        self._file = file
        # None when all are, so that opened shards of a large store take no memory.
        self._is_verified: np.ndarray | None = np.zeros(len(checksums), dtype=bool)

    def verify(self, rows: np.ndarray, images: Sequence[bytes] | np.ndarray) -> None:
        """Verify images that were just read, but those that were verified before.

        Args:
            rows: (n,) row numbers in the shard.
            images: the bytes of each of them.

        Raises:
            InputError: the bytes of an image are not those that were written.
        """
        # Taken once: another thread may finish in the meantime.
        checksums = self._checksums
        is_verified = self._is_verified
        if is_verified is None:
            return
        new_places = np.flatnonzero(~is_verified[rows])
        if not len(new_places):
            return
        for place in new_places.tolist():
            row = rows[place]
            if checksum(images[place]) != checksums[row]:
                raise InputError(
                    f"{self._file} is damaged (row {row}: its checksum is wrong): "
                    f"delete it and {RUN_AGAIN}"
                )
        is_verified[rows] = True
        if is_verified.all():
            self._is_verified = None
            self._checksums = np.empty(0, dtype=checksums.dtype)


def checksum(image: Any) -> int:
    """Return the checksum of the bytes of an image, or of its array, in 0..2**32-1."""
    return zlib.crc32(image)
