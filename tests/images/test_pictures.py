"""Images of a store as PNG files and as addresses of pictures in a page."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pu_kd_pipeline.images.pictures import SMALL_PX, data_uri, png_bytes


@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_png_file_has_exactly_the_pixels(n_channels):
    pixels = np.random.default_rng(0).integers(0, 256, (n_channels, 5, 7), dtype=np.uint8)
    picture = np.asarray(Image.open(io.BytesIO(png_bytes(pixels))))
    if n_channels == 1:
        picture = picture[:, :, None]
    assert (np.moveaxis(picture, -1, 0) == pixels).all()


@pytest.mark.parametrize(
    ("size_px", "kind"), [(8, "png"), (SMALL_PX, "png"), (SMALL_PX + 1, "jpeg")]
)
def test_large_pictures_of_a_page_are_compressed(size_px, kind):
    pixels = np.full((3, size_px, size_px), 130, dtype=np.uint8)
    start, _, encoded = data_uri(pixels).partition(",")
    assert start == f"data:image/{kind};base64"
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert picture.size == (size_px, size_px)
    assert np.abs(np.asarray(picture).astype(int) - 130).max() <= 2
