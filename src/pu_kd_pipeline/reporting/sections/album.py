"""The images of a page: each is read and embedded once, wherever it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pu_kd_pipeline.images.pictures import data_uri
from pu_kd_pipeline.images.store import find_rows

if TYPE_CHECKING:
    from pu_kd_pipeline.images.store import ImageStore

POOL = "pool"
LABELED = "labeled"
TEST = "test"

# All pictures of a page together. Images are made smaller until they fit.
MAX_BYTES = 3_000_000
_SIDES_PX = (224, 160, 112, 80, 56, 40)

Facts = Mapping[str, str | None]


@dataclass(frozen=True)
class Thumb:
    """One place of the page where an image is shown."""

    number: int
    """Of the image in the album."""
    lines: tuple[str, ...]
    """What is written below the image."""
    alt: str
    """What the image is, for readers who cannot see it."""
    mark: str = ""
    """"yes" or "no" where it is known whether the image is relevant, else ""."""


@dataclass(frozen=True)
class Strip:
    """A row of images under a heading."""

    title: str
    kind: str
    """"labeled", "selected", "rejected" or "ranked": which color the heading has."""
    thumbs: list[Thumb]


@dataclass
class Album:
    """Collects the images of a page and what is known of each; nothing is read before the end."""

    _numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    _facts: list[dict[str, str]] = field(default_factory=list)

    def add(self, store: str, identifier: str, facts: Facts) -> int:
        """Return the number of an image, and keep these facts of it; those of None are left out.

        Args:
            store: `POOL`, `LABELED` or `TEST`.
            identifier: id of the image in that store.
            facts: name and text, in the order in which they are shown.
        """
        key = (store, identifier)
        if key not in self._numbers:
            self._numbers[key] = len(self._facts)
            # The source is filled in when the image is read.
            self._facts.append({"id": identifier, "source": "", "image": f"{store} image"})
        number = self._numbers[key]
        known = {name: text for name, text in facts.items() if text is not None}
        self._facts[number] |= known
        return number

    def __len__(self) -> int:
        return len(self._facts)

    def facts(self) -> list[list[tuple[str, str]]]:
        """Return the facts of each image as pairs of name and text."""
        shown = []
        for facts in self._facts:
            shown.append([(name, text) for name, text in facts.items() if text])
        return shown

    def pictures(self, stores: Mapping[str, ImageStore]) -> list[str]:
        """Return each image as a picture that the page can hold; no other image is read.

        Args:
            stores: the image stores by the names that `add` was given.

        Raises:
            ValueError: an image was added of a store that is not among them.
        """
        missing = {name for name, _ in self._numbers} - stores.keys()
        if missing:
            raise ValueError(f"images of no store: {', '.join(sorted(missing))}")
        images: dict[int, np.ndarray] = {}
        for name, store in stores.items():
            ids = [identifier for of, identifier in self._numbers if of == name]
            if not ids:
                continue
            rows = find_rows(store, np.array(ids, dtype=object), f"{name}_images")
            index = store.index
            sources = index["source"].iloc[rows] if "source" in index else [None] * len(ids)
            found = zip(ids, sources, store.read(rows), strict=True)
            for identifier, source, pixels in found:
                number = self._numbers[name, identifier]
                images[number] = pixels
                if source is not None:
                    self._facts[number]["source"] = str(source)
        return _within_limit([images[number] for number in range(len(self))])


def _within_limit(images: Sequence[np.ndarray]) -> list[str]:
    """Return the pictures in the largest size at which they are small enough together.

    The last size is small enough for the most images that sections show, whatever they are.
    """
    pictures = [data_uri(image, _SIDES_PX[0]) for image in images]
    for side_px in _SIDES_PX:
        if _size(pictures) <= MAX_BYTES:
            break
        # Also of small images, of which photos take less as JPEG.
        smaller = [data_uri(image, side_px, "JPEG") for image in images]
        pictures = min(pictures, smaller, key=_size)
    return pictures


def _size(pictures: Sequence[str]) -> int:
    return sum(map(len, pictures))
