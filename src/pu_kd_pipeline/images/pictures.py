"""Images of a store as files that browsers and other programs open."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Kind = Literal["PNG", "JPEG"]

SMALL_PX = 96  # up to this side, PNG is as small as JPEG
_QUALITY = 90  # of JPEG


def png_bytes(pixels: np.ndarray) -> bytes:
    """Return a PNG file with exactly these pixels.

    Args:
        pixels: (C, H, W) uint8, gray or RGB.
    """
    return _encoded(pixels, "PNG")


def data_uri(pixels: np.ndarray, max_side_px: int | None = None, kind: Kind | None = None) -> str:
    """Return the address of a picture that holds the picture itself, for a page.

    Args:
        pixels: (C, H, W) uint8, gray or RGB.
        max_side_px: a longer side is shrunk to it; None: the picture keeps its size.
        kind: of the file; None: PNG for images of up to `SMALL_PX`, before they are shrunk, and for
            others JPEG, which changes pixels a little.
    """
    if kind is None:
        kind = "PNG" if max(pixels.shape[1:]) <= SMALL_PX else "JPEG"
    encoded = base64.b64encode(_encoded(pixels, kind, max_side_px)).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"


def _encoded(pixels: np.ndarray, kind: Kind, max_side_px: int | None = None) -> bytes:
    picture = _picture(pixels)
    longer_px = max(picture.size)
    if max_side_px is not None and longer_px > max_side_px:
        width, height = (max(1, side * max_side_px // longer_px) for side in picture.size)
        picture = picture.resize((width, height))
    file = io.BytesIO()
    options = {"quality": _QUALITY} if kind == "JPEG" else {}
    picture.save(file, kind, **options)
    return file.getvalue()


def _picture(pixels: np.ndarray) -> Image:
    """Return a (C, H, W) array as Pillow has it."""
    from PIL import Image

    picture = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    return Image.fromarray(np.ascontiguousarray(picture))


def thumbnails(images: np.ndarray, n_columns: int, height_px: int = 64) -> np.ndarray:
    """Return one picture of several images in rows, from the upper left.

    Args:
        images: (N, C, H, W) uint8, gray or RGB.
        n_columns: images per row.
        height_px: of each image; small ones are repeated in whole pixels, large ones are thinned.

    Returns:
        (C, H', W') uint8, white between the images and where there is none.
    """
    n, channels, height, _ = images.shape
    if n == 0:
        return np.full((channels, height_px, height_px), 255, dtype=np.uint8)
    if height > height_px:
        step = -(-height // height_px)
        images = images[:, :, ::step, ::step]
    else:
        factor = height_px // height
        images = images.repeat(factor, axis=2).repeat(factor, axis=3)
    # A line of one pixel around each image
    tiles = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=255)
    n_columns = max(1, min(n_columns, n))
    n_rows = -(-n // n_columns)
    n_empty = n_rows * n_columns - n
    tiles = np.pad(tiles, ((0, n_empty), (0, 0), (0, 0), (0, 0)), constant_values=255)
    tile_height, tile_width = tiles.shape[2:]
    grid = tiles.reshape(n_rows, n_columns, channels, tile_height, tile_width)
    return grid.transpose(2, 0, 3, 1, 4).reshape(
        channels, n_rows * tile_height, n_columns * tile_width
    )
