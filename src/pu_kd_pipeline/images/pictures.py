"""Images of a store as files that browsers and other programs open."""

from __future__ import annotations

import base64
import io

import numpy as np

SMALL_PX = 96  # up to this side, PNG is as small as JPEG
_QUALITY = 90  # of JPEG


def png_bytes(pixels: np.ndarray) -> bytes:
    """Return a PNG file with exactly these pixels.

    Args:
        pixels: (C, H, W) uint8, gray or RGB.
    """
    return _encoded(pixels, "PNG")


def data_uri(pixels: np.ndarray) -> str:
    """Return the address of a picture that holds the picture itself, for a page.

    Large pictures are compressed as JPEG, which changes pixels a little.

    Args:
        pixels: (C, H, W) uint8, gray or RGB.
    """
    kind = "PNG" if max(pixels.shape[1:]) <= SMALL_PX else "JPEG"
    encoded = base64.b64encode(_encoded(pixels, kind)).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    from PIL import Image

    picture = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    file = io.BytesIO()
    options = {"quality": _QUALITY} if kind == "JPEG" else {}
    Image.fromarray(np.ascontiguousarray(picture)).save(file, kind, **options)
    return file.getvalue()
