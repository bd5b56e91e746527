"""Which files are images: by their name, and by their first bytes where the name says nothing."""

from __future__ import annotations

import os
import re
from functools import cache

# Of the formats that are read, and no others: Pillow's EPS reader starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM", "AVIF")
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    *(".png", ".apng"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tif", ".tiff"),
    *(".bmp", ".dib", ".gif", ".webp", ".avif"),
)
N_FIRST_BYTES = 64  # enough for `is_image_content`
_FIRST_BYTES = re.compile(
    rb"\xff\xd8\xff"  # JPEG
    rb"|\x89PNG\r\n\x1a\n"
    rb"|GIF8[79]a"
    rb"|RIFF....WEBP"
    rb"|II[*+]\0|MM\0[*+]"  # TIFF
    rb"|....ftypavi[fs]"
    # Behind the two letters, a text that begins with "BM" has no zeros and no header size.
    rb"|BM....\0\0\0\0....[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"
    rb"|P[1-6]\s+[#\d]",
    re.DOTALL,
)
# Formats that are not read, and may have any extension: HEIC, JPEG 2000, JPEG XL, Photoshop
_OTHER_FORMATS = re.compile(
    rb"....ftyp|\0\0\0\x0cjP  |\xff\x4f\xff\x51|\0\0\0\x0cJXL |\xff\x0a|8BPS", re.DOTALL
)
_NUMBER = re.compile(r"\.\d+")


def has_image_name(name: str) -> bool:
    """Return whether a file is an image according to its extension."""
    return name.lower().endswith(EXTENSIONS)


def has_no_extension(name: str) -> bool:
    """Return whether a name says nothing about the format of a file: `scan` and `scan.17`."""
    _, extension = os.path.splitext(name)
    return not extension or _NUMBER.fullmatch(extension) is not None


def is_image_content(first_bytes: bytes) -> bool:
    """Return whether a file that begins like this is an image of a format that is read."""
    return _FIRST_BYTES.match(first_bytes) is not None


@cache
def readable_formats() -> tuple[str, ...]:
    """Return the formats that are read, in Pillow's names; AVIF needs Pillow 11.3."""
    try:
        from PIL import AvifImagePlugin  # noqa: F401
    except ImportError:
        return tuple(name for name in _FORMATS if name != "AVIF")
    return _FORMATS


def is_other_format(content: bytes) -> bool:
    """Return whether a file that Pillow cannot identify is an image all the same."""
    return _OTHER_FORMATS.match(content) is not None
