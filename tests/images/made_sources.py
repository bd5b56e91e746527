"""Sources that misbehave in the middle of a shard, in whatever process reads them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from pu_kd_pipeline.images.sources.base import SourceLostError, listing_table
from tests.images.numbered_images import png


class KillsDecoder:
    """An image that kills the process that decodes it."""

    @property
    def width(self) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


class Misbehaving:
    """Numbered images, one of which does something else.

    Args:
        folder: where it leaves a file for each time that it misbehaved.
        n_images: of the source.
        number: of the image that misbehaves.
        how: killed, once: the process that reads it is killed the first time; lost, once: the
            source cannot be read the first time; crashes: the image kills its decoder each time.
    """

    def __init__(self, folder: Path, n_images: int, number: int, how: str) -> None:
        self._folder = folder
        self._n_images = n_images
        self._number = number
        self._how = how

    @staticmethod
    def state(source: Any) -> str:
        return ""

    def why_not_shared(self, n_images: int) -> str | None:
        return None

    def listing(self) -> pd.DataFrame:
        numbers = list(range(self._n_images))
        return listing_table([f"i{number}" for number in numbers], number=numbers)

    def read(self, rows: pd.DataFrame) -> Iterator[Any]:
        for number in rows["number"].tolist():
            if number != self._number:
                yield png(number)
                continue
            if self._how == "crashes":
                yield KillsDecoder()
                continue
            self._misbehave_once()
            yield png(number)

    def processes(self) -> list[int]:
        """Return the processes in which it misbehaved."""
        return [int(file.suffix[1:]) for file in self._folder.glob("misbehaved.*")]

    def _misbehave_once(self) -> None:
        if self.processes():
            return
        (self._folder / f"misbehaved.{os.getpid()}").touch()
        if self._how == "lost":
            raise SourceLostError("the source could not be read to its end")
        os.kill(os.getpid(), signal.SIGKILL)
