"""Made-up pictures for tests of near-duplicates, and the edits that copies go through."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

BICUBIC = Image.Resampling.BICUBIC
LANCZOS = Image.Resampling.LANCZOS
BILINEAR = Image.Resampling.BILINEAR


def to_uint8(images: np.ndarray) -> np.ndarray:
    clipped = np.clip(images, 0, 255)
    return clipped.astype(np.uint8)


def textures(n: int, seed: int = 0, size_px: int = 32) -> np.ndarray:
    """Return (n, 3, H, W) uint8 clouds of color, whose spectrum falls like a photo's."""
    rng = np.random.default_rng(seed)
    frequencies_1d = np.fft.fftfreq(size_px)
    vertical = frequencies_1d[:, None]
    radii = np.hypot(vertical, frequencies_1d)
    # The offset keeps the frequency of the mean above zero.
    frequencies = radii + 1 / size_px
    white_noise = rng.normal(size=(n, 3, size_px, size_px))
    white_spectrum = np.fft.fft2(white_noise)
    # The amplitudes of a photo fall about as 1 / frequency; a little steeper gives softer clouds.
    falloff = frequencies**1.2
    spectrum = white_spectrum / falloff
    noise = np.fft.ifft2(spectrum).real

    # Centered, and with a part that all channels share, as in a photo.
    image_mean = noise.mean(axis=(1, 2, 3), keepdims=True)
    channel_mean = noise.mean(axis=1, keepdims=True)
    centered = noise - image_mean
    clouds = centered + 0.5 * channel_mean
    spread = clouds.std(axis=(1, 2, 3), keepdims=True)
    contrast = 40 / spread
    contrasted = contrast * clouds
    return to_uint8(128 + contrasted)


def strokes(n: int, seed: int = 0) -> np.ndarray:
    """Return (n, 1, 28, 28) uint8 bars like a pen's, much more alike than photos are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-13.5:14, -13.5:14]
    # Slow waves with random heights: a smooth line from top to bottom.
    slope = y / 10
    phases = np.pi * y / 20
    sines = [np.sin(k * phases) for k in range(1, 5)]
    cosines = [np.cos(k * phases) for k in range(3)]

    # Where the stroke is in each row of pixels.
    centers = np.zeros((n, 28, 28))
    for wave in [slope, *sines, *cosines]:
        amplitudes = rng.normal(scale=0.8, size=(n, 1, 1))
        centers += amplitudes * wave

    half_widths = rng.uniform(1.2, 2.2, size=(n, 1, 1))
    distances = np.abs(x - centers)
    # Half a pixel of soft edge, as an antialiased pen leaves it.
    ink = np.clip(half_widths - distances + 0.5, 0, 1)
    heights = np.abs(y)
    is_inside = heights < 10
    images = to_uint8(255 * ink * is_inside)
    return images[:, None]


def to_pictures(images: np.ndarray) -> list[Image.Image]:
    """Return PIL images; arrays of one channel become gray ones."""
    if images.shape[1] == 1:
        arrays = images[:, 0]
    else:
        arrays = images.transpose(0, 2, 3, 1)
    return [Image.fromarray(array) for array in arrays]


def to_array(pictures: list[Image.Image]) -> np.ndarray:
    arrays = [np.asarray(picture) for picture in pictures]
    stacked = np.stack(arrays)
    if stacked.ndim == 3:
        return stacked[:, None]
    return stacked.transpose(0, 3, 1, 2)


# --- edits


def as_jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    decoded = []
    for picture in to_pictures(images):
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        copy = Image.open(buffer)
        decoded.append(copy)
    return to_array(decoded)


def resized(
    images: np.ndarray, factor: float, there: Image.Resampling, back: Image.Resampling
) -> np.ndarray:
    """Resize by a factor and back to the original size."""
    size_px = images.shape[-1]
    other_px = round(factor * size_px)
    original_size = (size_px, size_px)
    other_size = (other_px, other_px)

    results = []
    for picture in to_pictures(images):
        other = picture.resize(other_size, there)
        restored = other.resize(original_size, back)
        results.append(restored)
    return to_array(results)


def lit(images: np.ndarray, contrast: float, brightness: float) -> np.ndarray:
    values = images.astype(float)
    scaled = contrast * values
    return to_uint8(scaled + brightness)


def gray(images: np.ndarray) -> np.ndarray:
    """Return copies without color that still have three channels."""
    results = []
    for picture in to_pictures(images):
        without_color = picture.convert("L")
        with_channels = without_color.convert("RGB")
        results.append(with_channels)
    return to_array(results)


def several_edits(images: np.ndarray) -> np.ndarray:
    enlarged = resized(images, 2, BICUBIC, LANCZOS)
    darker = lit(enlarged, 0.9, 5)
    return as_jpeg(darker, 70)
