"""Images whose values use a small part of their range, which may be a matter of their file format.

Values of 10 to 14 bits in files of 16 bits, and numbers of classes in masks, decode without an
error and look black.
"""

from __future__ import annotations

import logging

import numpy as np

from pu_kd_pipeline.masking import visible_name

logger = logging.getLogger(__name__)

_BLACK = 15  # the largest value of an image that looks black; 12 bits of 16 end here
_HALF = 127
_MIN_IMAGES = 10  # few images may all be dark


class DarkImages:
    """Counts dark images among those that are decoded, and warns of them."""

    def __init__(self) -> None:
        self._n_images = 0
        self._n_black = 0
        self._first_black = ""
        self._brightest = 0

    def see(self, image_id: str, pixels: np.ndarray) -> None:
        """Take the uint8 pixels of an image into account."""
        brightest = int(pixels.max())
        self._n_images += 1
        self._brightest = max(self._brightest, brightest)
        if brightest <= _BLACK:
            self._first_black = self._first_black or image_id
            self._n_black += 1

    def warn(self, where: str) -> None:
        """Log a warning if there are dark images, or if all of them are rather dark."""
        fix = "If their values have 10 to 14 bits, or number classes, scale them to 8 or 16 bits"
        if self._n_images >= _MIN_IMAGES and self._brightest <= _HALF:
            logger.warning(
                "%s: no value of %s new images is above %d of 255. %s",
                where,
                f"{self._n_images:,}",
                self._brightest,
                fix,
            )
        elif self._n_black:
            logger.warning(
                "%s: %s of %s new images have no value above %d of 255, such as %s. %s",
                where,
                f"{self._n_black:,}",
                f"{self._n_images:,}",
                _BLACK,
                visible_name(self._first_black),
                fix,
            )
