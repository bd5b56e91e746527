"""From the bytes of an image file to uint8 pixels of the teacher's size and colors: one path for every source.

A classifier that learns from positives and unlabeled images picks up any trace of where an image came from, so every
image takes the same steps: orientation, colors, one antialiased resize. What cannot be decoded becomes an `Unusable`
with its reason; nothing here raises for a bad image. Normalization is the network's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from multiprocessing import get_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    # a file's bytes, uint8 (H, W) or (H, W, C) pixels, or an image that Pillow has opened
    RawImage: TypeAlias = bytes | np.ndarray | Image.Image

Item = TypeVar("Item")
Result = TypeVar("Result")

# The formats behind the accepted extensions and no other: Pillow's EPS reader, for one, starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF")
_ORIENTATION = 0x0112
# Transparent images are mostly dark drawings and logos made for a white page; dropping alpha would bare hidden colors.
_BEHIND_TRANSPARENCY = (255, 255, 255, 255)
_CHUNK_IMAGES, _CHUNK_BYTES = 64, 16 * 2**20


class Reason(StrEnum):
    """Why an image cannot be used."""

    EMPTY = "empty"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    NOT_OPENED = (
        "could not be opened"  # a disk or a network may recover: tried again by the next run
    )
    TOO_MANY_PIXELS = "too many pixels"
    TOO_MUCH_METADATA = "compressed metadata too large"
    TOO_LARGE = "file too large"
    UNSUPPORTED = "unsupported pixel format"
    CRASHED = "crashes its decoder"
    LINK = "link out of the folder"
    NAME = "file name is not UTF-8"


@dataclass(frozen=True)
class Unusable:
    """Stands in the place of an image that cannot be used."""

    reason: Reason


# What Pillow says of a file that ends too early, and of a PNG whose profile or text unpacks to more than a megabyte.
_COMPLAINTS = {
    "truncated": Reason.TRUNCATED,
    "decompressed data too large": Reason.TOO_MUCH_METADATA,
}


class _UnsupportedPixelsError(Exception):
    """Pixels without a fixed range, such as 32-bit floats."""


@dataclass(frozen=True)
class Decoder:
    """Turns raw images into (channels, size_px, size_px) uint8 arrays.

    The resize goes straight to the square, as the paper does, with Pillow's antialiased bilinear filter: the pixels
    equal those of `torchvision.transforms.Resize((size_px, size_px))` on an opened image, as most teachers saw them.
    """

    channels: int
    size_px: int
    max_image_pixels: int

    def decode(self, raw: RawImage) -> np.ndarray | Unusable:
        """Return the (channels, size_px, size_px) uint8 pixels of an image, or why there are none.

        EXIF orientation is applied, the first frame of an animation taken, 16-bit values reduced to their high byte,
        and transparency laid over white (that of 16-bit gray is ignored). The declared size is checked before any pixel
        is decoded.
        """
        if isinstance(raw, np.ndarray):
            return self._from_array(raw)
        from PIL import Image

        if isinstance(raw, bytes) and not raw:
            return Unusable(Reason.EMPTY)
        try:
            image = Image.open(BytesIO(raw), formats=_FORMATS) if isinstance(raw, bytes) else raw
            if image.width * image.height > self.max_image_pixels:
                return Unusable(Reason.TOO_MANY_PIXELS)
            return self._pixels(_upright(image))
        except _UnsupportedPixelsError:
            return Unusable(Reason.UNSUPPORTED)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return Unusable(Reason.TOO_MANY_PIXELS)
        except Exception as exc:  # a damaged file makes Pillow's readers raise nearly anything
            complaint = str(exc).lower()
            reasons = (reason for mark, reason in _COMPLAINTS.items() if mark in complaint)
            return Unusable(next(reasons, Reason.UNREADABLE))

    def decode_all(
        self, raws: Iterable[RawImage | Unusable], n_workers: int
    ) -> Iterator[tuple[RawImage | Unusable, np.ndarray | Unusable]]:
        """Yield (raw image, its pixels or why there are none), in order, decoded by `n_workers` threads.

        Only a few chunks of at most 64 images or 16 MiB are held at a time.
        """
        for chunk, decoded in map_in_order(self._decode_chunk, _chunks(raws), n_workers):
            yield from zip(chunk, decoded, strict=True)

    def _decode_chunk(
        self, chunk: list[RawImage | Unusable]
    ) -> tuple[list[RawImage | Unusable], list[np.ndarray | Unusable]]:
        return chunk, [raw if isinstance(raw, Unusable) else self.decode(raw) for raw in chunk]

    def decode_all_apart(
        self, raws: Iterable[RawImage | Unusable], n_workers: int
    ) -> Iterator[tuple[RawImage | Unusable, np.ndarray | Unusable]]:
        """Yield what `decode_all` does, decoded by other processes: safe from an image that ends them.

        A fault in a decoder's own code (a segmentation fault, an abort, memory that the system takes back by force)
        then costs the image, `Reason.CRASHED`, and not the run.
        """
        with ExitStack() as stack:
            idle: SimpleQueue[_Apart] = SimpleQueue()
            for _ in range(n_workers):
                idle.put(stack.enter_context(_Apart(self)))

            def decode(chunk: list[RawImage | Unusable]) -> list[np.ndarray | Unusable]:
                apart = idle.get()
                try:
                    return apart.decode(chunk)
                finally:
                    idle.put(apart)

            for chunk, decoded in map_in_order(
                lambda chunk: (chunk, decode(chunk)), _chunks(raws), n_workers
            ):
                yield from zip(chunk, decoded, strict=True)

    def _from_array(self, pixels: np.ndarray) -> np.ndarray | Unusable:
        from PIL import Image

        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
            return Unusable(Reason.UNSUPPORTED if pixels.size else Reason.EMPTY)
        if pixels.shape[0] * pixels.shape[1] > self.max_image_pixels:
            return Unusable(Reason.TOO_MANY_PIXELS)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
            return Unusable(Reason.UNSUPPORTED)
        return self._pixels(Image.fromarray(pixels))

    def _pixels(self, image: Image.Image) -> np.ndarray:
        from PIL import Image

        image = _in_colors(image, "L" if self.channels == 1 else "RGB")
        if image.size != (self.size_px, self.size_px):
            image = image.resize((self.size_px, self.size_px), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


class _Apart:
    """A process that decodes for this one, and is replaced when an image ends it; for one thread at a time."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._process = self._start()

    def __enter__(self) -> _Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown(cancel_futures=True)

    def decode(self, chunk: list[RawImage | Unusable]) -> list[np.ndarray | Unusable]:
        """Return the pixels of each image or why there are none."""
        try:
            _, decoded = self._process.submit(self._decoder._decode_chunk, chunk).result()
        except BrokenProcessPool:
            self._process = self._start()
            if len(chunk) == 1:
                return [Unusable(Reason.CRASHED)]
            return [pixels for raw in chunk for pixels in self.decode([raw])]
        return decoded

    @staticmethod
    def _start() -> ProcessPoolExecutor:
        # spawned: a fork would copy the threads' locks as they happen to be
        return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _upright(image: Image.Image) -> Image.Image:
    """Return the loaded image turned as its EXIF orientation says."""
    from PIL.Image import Transpose

    image.load()
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # pixels are fine, the metadata is not
        return image
    # not `ImageOps.exif_transpose`, which also writes the metadata anew and fails where that is damaged
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _in_colors(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in mode `L` or `RGB`."""
    from PIL import Image

    if image.mode == "F":
        raise _UnsupportedPixelsError
    if image.mode == "I" or image.mode.startswith("I;16"):
        # convert("L") would clip at 255 and turn all but the darkest pixels white
        image = Image.fromarray((np.asarray(image).clip(0, 2**16 - 1) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(
            Image.new("RGBA", image.size, _BEHIND_TRANSPARENCY), image
        ).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def as_file(raw: RawImage) -> bytes:
    """Return the bytes of an image file: those it came in, or a lossless PNG of its pixels."""
    if isinstance(raw, bytes):
        return raw
    from PIL import Image

    buffer = BytesIO()
    image = Image.fromarray(raw.squeeze()) if isinstance(raw, np.ndarray) else raw
    image.save(buffer, "PNG")
    return buffer.getvalue()


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], n_workers: int
) -> Iterator[Result]:
    """Yield function(item) in the order of the items, computed by threads, with at most 2 n_workers under way."""
    if n_workers == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(n_workers) as pool:
        window: deque[Future[Result]] = deque()
        try:
            for item in items:
                window.append(pool.submit(function, item))
                if len(window) >= 2 * n_workers:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:  # the caller stopped early or an item failed
            for future in window:
                future.cancel()


def _chunks(
    raws: Iterable[RawImage | Unusable],
) -> Iterator[list[RawImage | Unusable]]:
    """Cut a stream of images into pieces small enough to hold and large enough to pay for a thread's task."""
    chunk: list[RawImage | Unusable] = []
    n_bytes = 0
    for raw in raws:
        chunk.append(raw)
        n_bytes += (
            len(raw) if isinstance(raw, bytes) else raw.nbytes if isinstance(raw, np.ndarray) else 0
        )
        if len(chunk) == _CHUNK_IMAGES or n_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, n_bytes = [], 0
    if chunk:
        yield chunk
