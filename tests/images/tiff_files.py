"""TIFF files of pixels that Pillow does not write: white as zero, big-endian, signed, 12 bits."""

from __future__ import annotations

import struct

import numpy as np

WHITE_IS_ZERO = 0
BLACK_IS_ZERO = 1
RGB = 2
YCBCR = 6
LAB = 8
UNSIGNED = 1
SIGNED = 2
FLOAT = 3
_HEADER_BYTES = 8
_LONG = 4  # types of the values of a tag
_SHORT = 3


def tiff(
    pixels: np.ndarray,
    photometric: int = BLACK_IS_ZERO,
    sample_format: int = UNSIGNED,
    *,
    order: str = "<",
    extra_sample: int | None = None,
) -> bytes:
    """Return an uncompressed TIFF of (H, W) or (H, W, C) pixels; their dtype gives the bits."""
    height, width = pixels.shape[:2]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    return packed_tiff(
        data,
        width,
        height,
        photometric,
        sample_format,
        n_bits=8 * pixels.dtype.itemsize,
        n_samples=pixels[0, 0].size,
        order=order,
        extra_sample=extra_sample,
    )


def packed_tiff(
    data: bytes,
    width: int,
    height: int,
    photometric: int = BLACK_IS_ZERO,
    sample_format: int = UNSIGNED,
    *,
    n_bits: int,
    n_samples: int = 1,
    order: str = "<",
    extra_sample: int | None = None,
) -> bytes:
    """Return a TIFF of pixels that are packed already."""
    data += b"\0" * (len(data) % 2)
    tags: dict[int, tuple[int, list[int]]] = {
        256: (_LONG, [width]),
        257: (_LONG, [height]),
        258: (_SHORT, [n_bits] * n_samples),
        259: (_SHORT, [1]),  # not compressed
        262: (_SHORT, [photometric]),
        273: (_LONG, [_HEADER_BYTES]),  # where the pixels begin
        277: (_SHORT, [n_samples]),
        278: (_LONG, [height]),
        279: (_LONG, [len(data)]),
        339: (_SHORT, [sample_format] * n_samples),
    }
    if extra_sample is not None:
        tags[338] = (_SHORT, [extra_sample])

    directory_start = _HEADER_BYTES + len(data)
    # Behind the directory: a count, 12 bytes per tag, and the place of the next directory.
    values_start = directory_start + 2 + 12 * len(tags) + 4
    directory = struct.pack(f"{order}H", len(tags))
    values = b""
    for tag, (kind, numbers) in sorted(tags.items()):
        letter = "H" if kind == _SHORT else "I"
        content = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        # Four bytes have their place in the directory itself.
        if len(content) > 4:
            place = values_start + len(values)
            values += content
            content = struct.pack(f"{order}I", place)
        directory += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + content.ljust(4, b"\0")
    directory += struct.pack(f"{order}I", 0)

    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return magic + struct.pack(f"{order}I", directory_start) + data + directory + values
