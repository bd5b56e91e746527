"""From the bytes of an image file to uint8 pixels of the teacher's size and colors.

A classifier that learns from positives and unlabeled images picks up any trace of where an image
came from, so the images of all sources take the same steps: orientation, colors, one antialiased
resize. An image that cannot be decoded becomes an `Unusable` with its reason; nothing here raises
for a bad image. Normalization is left to the network's input.
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

from pu_kd_pipeline.images import pixel_formats
from pu_kd_pipeline.images.file_kinds import is_other_format, readable_formats
from pu_kd_pipeline.images.pixel_formats import (
    PixelFormat,
    UnsupportedPixelsError,
    fault_of_tiff,
    pixel_format,
    to_8_bits,
)
from pu_kd_pipeline.images.resizing import resized_size, to_square

if TYPE_CHECKING:
    from PIL import Image

    from pu_kd_pipeline.images.store_file import Specification

    # A file's bytes, uint8 (H, W) or (H, W, C) pixels, or an image that Pillow has opened.
    RawImage: TypeAlias = bytes | np.ndarray | Image.Image
    _DecodedChunk: TypeAlias = tuple[list[RawImage | "Unusable"], list[np.ndarray | "Unusable"]]

Item = TypeVar("Item")
Result = TypeVar("Result")

_ORIENTATION = 0x0112  # EXIF tag
# Large enough to be worth a thread's task, small enough that a few of them fit into memory.
_CHUNK_IMAGES = 64
_CHUNK_BYTES = 16 * 2**20


class Reason(StrEnum):
    """Why an image cannot be used."""

    EMPTY = "empty"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    NOT_OPENED = "could not be opened"  # the disk or network may recover: the next run tries again
    TOO_MANY_PIXELS = "too many pixels"
    TOO_ELONGATED = "too elongated for a center crop"
    TOO_MUCH_METADATA = "compressed metadata too large"
    TOO_LARGE = "file too large"
    OTHER_FORMAT = "image format that is not read"
    UNSUPPORTED = pixel_formats.OTHER_PIXELS
    FLOATING_POINT = pixel_formats.FLOATING_POINT
    WIDE_INTEGERS = pixel_formats.WIDE_INTEGERS
    SIGNED_INTEGERS = pixel_formats.SIGNED_INTEGERS
    EMPTY_HIGH_BYTES = pixel_formats.EMPTY_HIGH_BYTES
    CRASHED = "crashes its decoder"
    LINK = "link out of the folder"
    BROKEN_LINK = "broken link"
    MISSING = "file not found"  # of those that a list names
    NAME = "file name is not UTF-8"
    REPEATED = "several files of one name"
    ONLY_A_PATH = "only the path of a file"
    SEVERAL_IMAGES = "several images in one row"


@dataclass(frozen=True)
class Unusable:
    """Stands in the place of an image that cannot be used."""

    reason: Reason


# Parts of Pillow's messages: a file that ends too early, and a PNG whose profile or text unpacks to
# more than a megabyte.
_REASON_BY_MESSAGE = {
    "truncated": Reason.TRUNCATED,
    "decompressed data too large": Reason.TOO_MUCH_METADATA,
}


@dataclass(frozen=True)
class Decoder:
    """Turns raw images into (channels, size_px, size_px) uint8 arrays.

    The resize is that of `resizing.to_square`. By default it is straight to the square, as in the
    paper, with Pillow's antialiased bilinear filter.
    """

    channels: int
    size_px: int
    max_image_pixels: int
    shorter_side_px: int | None = None
    interpolation: str = "bilinear"

    @classmethod
    def of(cls, about: Specification) -> Decoder:
        """Return the decoder that makes the pixels of a store."""
        return cls(
            about.channels,
            about.size_px,
            about.max_image_pixels,
            about.shorter_side_px,
            about.interpolation,
        )

    def decode(self, raw: RawImage) -> np.ndarray | Unusable:
        """Return the (channels, size_px, size_px) uint8 pixels of an image, or why there are none.

        EXIF orientation is applied, the first frame of an animation is taken, values are reduced to
        8 bits (see `pixel_formats.to_8_bits`), and transparent images are put on white (the
        transparency of 16-bit gray is ignored). The declared size is checked before any pixel is
        decoded.
        """
        if isinstance(raw, np.ndarray):
            return self._from_array(raw)
        from PIL import Image, UnidentifiedImageError

        if isinstance(raw, bytes) and not raw:
            return Unusable(Reason.EMPTY)
        try:
            if isinstance(raw, bytes):
                image: Image.Image = Image.open(BytesIO(raw), formats=readable_formats())
            else:
                image = raw
            n_pixels = image.width * image.height
            if n_pixels > self.max_image_pixels:
                return Unusable(Reason.TOO_MANY_PIXELS)
            about = pixel_format(image)
            return self._pixels(_upright(image), about)
        except UnsupportedPixelsError as exc:
            return Unusable(Reason(str(exc)))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return Unusable(Reason.TOO_MANY_PIXELS)
        except UnidentifiedImageError:
            return Unusable(_reason_of_unidentified(raw))
        except Exception as exc:  # a damaged file makes Pillow's readers raise nearly anything
            return Unusable(_reason_of(exc))

    def decode_all(
        self, raws: Iterable[RawImage | Unusable], n_workers: int
    ) -> Iterator[tuple[RawImage | Unusable, np.ndarray | Unusable]]:
        """Yield (raw image, its pixels or why there are none) in order, decoded by threads.

        Only a few chunks of at most 64 images or 16 MiB are held at a time.
        """

        def decode(chunk: list[RawImage | Unusable]) -> _DecodedChunk:
            return chunk, self._decode_chunk(chunk)

        for chunk, decoded in map_in_order(decode, _chunks(raws), n_workers):
            yield from zip(chunk, decoded, strict=True)

    def decode_all_in_processes(
        self, raws: Iterable[RawImage | Unusable], n_workers: int
    ) -> Iterator[tuple[RawImage | Unusable, np.ndarray | Unusable]]:
        """Yield the same as `decode_all`, decoded by other processes, which an image may crash.

        A crash in a decoder's own code (a segmentation fault, an abort, the system's out-of-memory
        killer) then costs the image, `Reason.CRASHED`, and not the run.
        """
        with ExitStack() as stack:
            idle: SimpleQueue[_DecoderProcess] = SimpleQueue()
            for _ in range(n_workers):
                idle.put(stack.enter_context(_DecoderProcess(self)))

            def decode(chunk: list[RawImage | Unusable]) -> _DecodedChunk:
                process = idle.get()
                try:
                    return chunk, process.decode(chunk)
                finally:
                    idle.put(process)

            for chunk, decoded in map_in_order(decode, _chunks(raws), n_workers):
                yield from zip(chunk, decoded, strict=True)

    def _decode_chunk(self, chunk: list[RawImage | Unusable]) -> list[np.ndarray | Unusable]:
        decoded: list[np.ndarray | Unusable] = []
        for raw in chunk:
            if isinstance(raw, Unusable):
                decoded.append(raw)
            else:
                decoded.append(self.decode(raw))
        return decoded

    def _from_array(self, pixels: np.ndarray) -> np.ndarray | Unusable:
        from PIL import Image

        if pixels.size == 0:
            return Unusable(Reason.EMPTY)
        if np.issubdtype(pixels.dtype, np.floating):
            return Unusable(Reason.FLOATING_POINT)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            return Unusable(Reason.UNSUPPORTED)
        height, width = pixels.shape[:2]
        if height * width > self.max_image_pixels:
            return Unusable(Reason.TOO_MANY_PIXELS)

        if pixels.ndim == 3:
            n_channels = pixels.shape[2]
            if n_channels not in (1, 3, 4):
                return Unusable(Reason.UNSUPPORTED)
            # Pillow knows gray pixels as (H, W) only.
            if n_channels == 1:
                pixels = pixels[:, :, 0]
        return self._pixels(Image.fromarray(pixels), PixelFormat())

    def _pixels(self, image: Image.Image, about: PixelFormat) -> np.ndarray | Unusable:
        mode = "RGB"
        if self.channels == 1:
            mode = "L"
        image = to_8_bits(image, about, mode)
        width, height = resized_size(*image.size, self.size_px, self.shorter_side_px)
        # A crop of a line of 10 x 100,000 pixels would be cut out of a resized image of gigabytes.
        square = min(width, height) ** 2
        if width * height > max(self.max_image_pixels, square):
            return Unusable(Reason.TOO_ELONGATED)
        image = to_square(image, self.size_px, self.shorter_side_px, self.interpolation)
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            return np.ascontiguousarray(pixels[None])
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class _DecoderProcess:
    """A process that decodes for this one and is replaced when an image crashes it.

    Only one thread at a time may use it.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._process = self._start()

    def __enter__(self) -> _DecoderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown(cancel_futures=True)

    def decode(self, chunk: list[RawImage | Unusable]) -> list[np.ndarray | Unusable]:
        """Return the pixels of each image or why there are none."""
        try:
            return self._process.submit(self._decoder._decode_chunk, chunk).result()
        except BrokenProcessPool:
            self._process = self._start()
        # Some image of the chunk crashed the process: decode one at a time to find out which.
        if len(chunk) == 1:
            return [Unusable(Reason.CRASHED)]
        decoded: list[np.ndarray | Unusable] = []
        for raw in chunk:
            decoded += self.decode([raw])
        return decoded

    @staticmethod
    def _start() -> ProcessPoolExecutor:
        # Not at the top: a served student decodes with this file, and without the engines.
        from pu_kd_pipeline.engines.processes import end_with_parent

        # Spawned: a fork would copy the locks of this process's threads in whatever state they are.
        # It would outlive this process, should that be killed.
        context = get_context("spawn")
        return ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent)


def _reason_of_unidentified(raw: object) -> Reason:
    if not isinstance(raw, bytes):
        return Reason.UNREADABLE
    if is_other_format(raw):
        return Reason.OTHER_FORMAT
    fault = fault_of_tiff(raw)
    if fault is not None:
        return Reason(fault)
    return Reason.UNREADABLE


def _reason_of(error: Exception) -> Reason:
    message = str(error).lower()
    for part, reason in _REASON_BY_MESSAGE.items():
        if part in message:
            return reason
    return Reason.UNREADABLE


def _upright(image: Image.Image) -> Image.Image:
    """Return the loaded image, turned as its EXIF orientation asks."""
    from PIL.Image import Transpose

    image.load()
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the metadata is damaged, but the pixels are fine
        return image
    # Not `ImageOps.exif_transpose`: it also rewrites the metadata, and fails where that is damaged.
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    # A damaged tag can hold anything, also what is not hashable.
    if not isinstance(orientation, int) or orientation not in turns:
        return image
    return image.transpose(turns[orientation])


def to_file_bytes(raw: RawImage) -> bytes:
    """Return the bytes of an image file: the original ones, or a lossless PNG of its pixels."""
    if isinstance(raw, bytes):
        return raw
    from PIL import Image

    if isinstance(raw, np.ndarray):
        raw = Image.fromarray(raw.squeeze())
    buffer = BytesIO()
    raw.save(buffer, "PNG")
    return buffer.getvalue()


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], n_workers: int
) -> Iterator[Result]:
    """Yield function(item) in the order of the items, computed by threads.

    At most 2 n_workers items are in progress or waiting at a time.
    """
    # With a single worker nothing runs ahead of the caller.
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


def _chunks(raws: Iterable[RawImage | Unusable]) -> Iterator[list[RawImage | Unusable]]:
    """Cut a stream of images into chunks, each one task of a thread."""
    chunk: list[RawImage | Unusable] = []
    n_bytes = 0
    for raw in raws:
        chunk.append(raw)
        # An image that Pillow has opened is not loaded yet, and holds next to nothing.
        if isinstance(raw, bytes):
            n_bytes += len(raw)
        elif isinstance(raw, np.ndarray):
            n_bytes += raw.nbytes
        if len(chunk) == _CHUNK_IMAGES or n_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk = []
            n_bytes = 0
    if chunk:
        yield chunk
