"""Several images of a store in one picture."""

from __future__ import annotations

import numpy as np

from pu_kd_pipeline.images.pictures import thumbnails


def test_images_are_in_rows_with_white_between_them():
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(2, axis=2).repeat(2, axis=3)
    sheet = thumbnails(images, n_columns=2, height_px=4)
    assert sheet.shape == (1, 12, 12)
    # Each pixel is repeated twice in both directions, with a white line around the image.
    assert (sheet[0, 1:5, 1:5] == 0).all()
    assert (sheet[0, 1:5, 7:11] == 1).all()
    assert (sheet[0, 7:11, 1:5] == 2).all()
    assert (sheet[0, 6:, 6:] == 255).all()
    assert (sheet[0, 0] == 255).all()


def test_large_images_are_thinned_and_an_empty_store_has_a_white_picture():
    images = np.zeros((1, 3, 100, 50), dtype=np.uint8)
    assert thumbnails(images, n_columns=8, height_px=64).shape == (3, 52, 27)
    assert (thumbnails(images[:0], n_columns=8, height_px=64) == 255).all()
