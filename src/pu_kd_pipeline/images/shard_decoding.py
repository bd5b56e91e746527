"""Decoding shards of images in other processes than the one that writes the store.

A worker cannot know which images of other shards have the same pixels: it stores all distinct
images of its shard, and returns the digests of their pixels. Who writes the store decides, in the
order of the shards, and copies the bytes of those that stay where some do not.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from pu_kd_pipeline.errors import UnavailableError
from pu_kd_pipeline.images.decoding import Decoder, Unusable
from pu_kd_pipeline.images.listing import Reader
from pu_kd_pipeline.images.shard_writers import shard_writer
from pu_kd_pipeline.images.sources.base import Source
from pu_kd_pipeline.images.sources.registry import open_source
from pu_kd_pipeline.images.store_file import Specification
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint

if TYPE_CHECKING:
    from pu_kd_pipeline.images.decoding import RawImage

logger = logging.getLogger(__name__)

# Begins the name of a shard that is being decoded; only a killed process leaves such a file behind.
UNFINISHED = ".shard-"
# Begins the name of a shard that was decoded, and is not part of the store yet.
_DECODED = ".decoded-"
_DIGEST_BYTES = 32  # SHA-256


@dataclass(frozen=True)
class DecodingTask:
    """The images of a shard that is to be made.

    Attributes:
        number: of the shard.
        parts: positions of sources, and rows of their listings.
    """

    number: int
    parts: tuple[tuple[int, pd.DataFrame], ...]


@dataclass(frozen=True)
class DecodedShard:
    """What is known of the images of a shard, by their position among N of a task.

    Attributes:
        file: holds the distinct ones among the usable images, in their order.
        reasons: position -> why there are no pixels.
        digests: (N, 32) uint8 SHA-256 of the pixels; zeros where there are none.
        brightest: (N,) uint8, the largest value of an image.
        checksums: of each image in the file.
    """

    file: Path
    reasons: Mapping[int, str]
    digests: np.ndarray
    brightest: np.ndarray
    checksums: Sequence[int]


class DecodingTasks(Mapping[str, DecodingTask]):
    """Name of a shard in messages -> what to decode, made when it is asked for.

    Args:
        store: name of the store.
        rows: of `list_images`, all that are decoded.
        readers: of the sources.
        shard_size: images per shard.
        numbers: of the shards.
    """

    def __init__(
        self,
        store: str,
        rows: pd.DataFrame,
        readers: Sequence[Reader],
        shard_size: int,
        numbers: Iterator[int],
    ) -> None:
        self._rows = rows
        self._readers = readers
        self._shard_size = shard_size
        # Name -> number, and the first of its rows.
        self._places: dict[str, tuple[int, int]] = {}
        for start in range(0, len(rows), shard_size):
            number = next(numbers)
            self._places[f"{store} shard {number:05d}"] = (number, start)

    def __getitem__(self, name: str) -> DecodingTask:
        rows = self.rows(name)
        number, _ = self._places[name]
        return DecodingTask(number, tuple(listing_parts(rows, self._readers)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def sources(self) -> list[int]:
        """Return the positions of the sources that are read."""
        return [int(position) for position in self._rows["reader"].unique()]

    def number(self, name: str) -> int:
        """Return the number of a shard."""
        return self._places[name][0]

    def rows(self, name: str) -> pd.DataFrame:
        """Return the rows of `list_images` that a shard is made of."""
        _, start = self._places[name]
        return self._rows.iloc[start : start + self._shard_size]


def listing_parts(
    rows: pd.DataFrame, readers: Sequence[Reader]
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Yield the position of each source that holds some of the rows, and those of its listing."""
    # The rows are ordered by source, so that each is opened once.
    for position in rows["reader"].unique():
        is_of_reader = rows["reader"] == position
        listing_rows = rows.loc[is_of_reader, "listing_row"]
        yield int(position), readers[position].listing.iloc[listing_rows]


@dataclass(frozen=True, eq=False)
class DecodingWork:
    """Decodes the images of any shard into a file next to the store.

    Attributes:
        sources: of the images, by their position.
        specification: of the store.
        folder: of the store, absolute.
        n_threads: that decode in each process.
        isolates: an image may crash its decoder: each worker decodes in further processes.
    """

    sources: Mapping[int, Source]
    specification: Specification
    folder: Path
    n_threads: int
    isolates: bool = False

    def __call__(self, name: str, task: DecodingTask) -> DecodedShard:
        """Decode the images of a shard, and return what is known of them.

        Where an earlier attempt was killed, an image may have crashed its decoder: other processes
        than this one then decode.

        Raises:
            SourceLostError: a source as a whole is gone or damaged.
        """
        raws = chain.from_iterable(
            self.sources[position].read(rows) for position, rows in task.parts
        )
        decoder = Decoder.of(self.specification)
        attempts = unfinished_files(self.folder, task.number)
        if attempts:
            logger.warning(
                "%s: its images are now decoded in processes of their own, because the process "
                "that decoded them was killed",
                name,
            )
        if attempts or self.isolates:
            # Only then it may start others, which end with it.
            multiprocessing.current_process().daemon = False
            decoded = decoder.decode_all_in_processes(raws, self.n_threads)
        else:
            decoded = decoder.decode_all(raws, self.n_threads)
        own_name = f"{UNFINISHED}{task.number:05d}.{socket.gethostname()}.{os.getpid()}.tmp"
        shard = self._write(self.folder / own_name, task, decoded)
        for file in attempts:
            file.unlink(missing_ok=True)
        return shard

    def facts(self) -> Mapping[str, str]:
        """Return what decides the pixels of an image."""
        return {"code or libraries": maker_fingerprint(DecodingWork, open_source)}

    def _write(
        self,
        temporary: Path,
        task: DecodingTask,
        decoded: Iterator[tuple[RawImage | Unusable, np.ndarray | Unusable]],
    ) -> DecodedShard:
        n_images = sum(len(rows) for _, rows in task.parts)
        reasons: dict[int, str] = {}
        digests = np.zeros((n_images, _DIGEST_BYTES), dtype=np.uint8)
        brightest = np.zeros(n_images, dtype=np.uint8)
        known: set[bytes] = set()
        try:
            with shard_writer(temporary, self.specification) as writer:
                images = zip(range(n_images), decoded, strict=True)
                for position, (raw, pixels) in images:
                    if isinstance(pixels, Unusable):
                        reasons[position] = str(pixels.reason)
                        continue
                    digest = hashlib.sha256(pixels.data).digest()
                    digests[position] = np.frombuffer(digest, dtype=np.uint8)
                    brightest[position] = pixels.max()
                    if digest not in known:
                        known.add(digest)
                        writer.append(raw, pixels)
            file = decoded_file(self.folder, task.number)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        return DecodedShard(file, reasons, digests, brightest, writer.checksums)


def decoded_file(folder: Path, number: int) -> Path:
    """Return where the images of a shard are that was decoded, and is not part of a store yet."""
    return folder / f"{_DECODED}{number:05d}.images.tmp"


def unfinished_files(folder: Path, number: int | None = None) -> list[Path]:
    """Return the files of shards that are being decoded, or that killed processes left behind.

    Args:
        folder: of the store.
        number: of the shard; None: any.
    """
    beginning = UNFINISHED if number is None else f"{UNFINISHED}{number:05d}."
    return list(folder.glob(f"{beginning}*.tmp"))


def remove_decoded(folder: Path) -> None:
    """Remove what was decoded and did not become part of the store."""
    for file in folder.glob(f"{_DECODED}*.tmp"):
        file.unlink(missing_ok=True)


def keep_images(shard: DecodedShard, rows: Sequence[int], specification: Specification) -> Path:
    """Return a file with some of the images of a shard, in the place of the one with all.

    Their bytes are copied; nothing is decoded.

    Args:
        shard: as it was decoded.
        rows: of its file.
        specification: of the store.

    Raises:
        UnavailableError: the file is not what was written.
    """
    kept = shard.file.with_name(shard.file.name.replace(".images.", ".kept."))
    with shard_writer(kept, specification) as writer:
        if specification.kind == "packed":
            pixels = np.load(shard.file, mmap_mode="r", allow_pickle=False)
            for row in rows:
                writer.append(pixels[row], pixels[row])
        else:
            images = pa.ipc.open_file(pa.memory_map(str(shard.file))).read_all()["image"]
            nothing = np.empty(0, dtype=np.uint8)
            for row in rows:
                writer.append(images[row].as_py(), nothing)
    if writer.checksums != [shard.checksums[row] for row in rows]:
        raise UnavailableError(
            f"{shard.file} changed on its disk after it was written: check the disk; the same "
            "command resumes"
        )
    shard.file.unlink()
    return kept
