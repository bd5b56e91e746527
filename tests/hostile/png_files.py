"""PNG files written byte by byte, since Pillow would not write most broken ones."""

from __future__ import annotations

import struct
import zlib

# Color types of the PNG specification, section 11.2.2.
GRAY = 0
RGB = 2
PALETTE = 3
GRAY_ALPHA = 4
RGBA = 6


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return length, type, data and checksum."""
    length = struct.pack(">I", len(data))
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return length + kind + data + checksum


def png(
    width: int,
    height: int,
    depth: int,
    color: int,
    rows: list[bytes],
    *before: bytes,
    after: bytes = b"",
) -> bytes:
    """Return a PNG file.

    Args:
        width, height: declared size, which need not be that of the rows.
        depth: bits per channel.
        color: color type.
        rows: pixels of each row.
        before, after: chunks before and after the pixels.
    """
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    # Each row starts with the number of its filter, 0 for none.
    pixels = b"".join(b"\0" + row for row in rows)
    parts = [
        b"\x89PNG\r\n\x1a\n",
        png_chunk(b"IHDR", header),
        *before,
        png_chunk(b"IDAT", zlib.compress(pixels)),
        after,
        png_chunk(b"IEND", b""),
    ]
    return b"".join(parts)
