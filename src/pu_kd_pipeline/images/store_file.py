"""The file `store.json` of an image store: its specification and its list of shards."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.resizing import INTERPOLATIONS
from pu_kd_pipeline.images.shard_files import RUN_AGAIN
from pu_kd_pipeline.storage.checked_json import from_checked_json
from pu_kd_pipeline.storage.folders import Folder, read_text, shown

FORMAT = 2  # version of the files
STORE_FILE = "store.json"
SOURCES_FILE = "sources.json"  # what the sources held, for the ingestion report
_SAFE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,99}")
# Of keys that store.json did not have from the start
_DEFAULTS_OF_NEW_KEYS = {"shorter_side_px": None, "interpolation": "bilinear"}
_MAX_COUNT = 2**48  # larger numbers in store.json, of whatever kind, are damage


@dataclass(frozen=True)
class Specification:
    """What decides the content of a shard in addition to its images: any change makes it again.

    `shorter_side_px` and `interpolation` are those of `resizing.to_square`; stores that were
    written before these keys existed were made with their defaults.

    `maker` is a fingerprint of the code and the libraries that make shards. A store of another
    maker can be read, but its shards are not kept when images are ingested.
    """

    kind: Literal["packed", "encoded"]
    channels: int
    size_px: int
    max_image_pixels: int
    maker: str
    format: int = FORMAT
    shorter_side_px: int | None = None
    interpolation: str = "bilinear"

    def content_fields(self) -> dict[str, Any]:
        """Return all but the maker: two makers of the same pixels make the same content.

        Keys that were added later are left out at their default, so that the fingerprints of older
        stores, which had that default, stay what they were.
        """
        fields = asdict(self)
        del fields["maker"]
        for name, default in _DEFAULTS_OF_NEW_KEYS.items():
            if fields[name] == default:
                del fields[name]
        return fields


@dataclass(frozen=True)
class Shard:
    """A range of rows: `n` images from row `start` on.

    The name ends in a fingerprint of ids, labels and pixels.
    """

    name: str
    n: int
    start: int


def read_store_file(folder: Folder) -> tuple[Specification, tuple[Shard, ...], dict[str, int]]:
    """Return specification, shards and quarantine counts from the `store.json` of a folder.

    Raises:
        InputError: the file is missing, damaged, of another version, or names files elsewhere.
    """
    file = shown(folder, STORE_FILE)
    shards: list[Shard] = []
    quarantine_counts: dict[str, int] = {}
    try:
        text = read_text(folder, STORE_FILE)
        # Before the checksum, which other versions may write differently.
        if json.loads(text)["specification"]["format"] != FORMAT:
            raise InputError(
                f"{folder} was written by another version of this program: {RUN_AGAIN}"
            )
        about = from_checked_json(text)
        specification = _parse_specification(about["specification"])

        start = 0
        for entry in about["shards"]:
            shard = Shard(str(entry["name"]), _parse_count(entry["n"]), start)
            shards.append(shard)
            start += shard.n

        for reason, count in about["quarantine"].items():
            quarantine_counts[str(reason)] = _parse_count(count)
    except FileNotFoundError as exc:
        raise InputError(f"there is no image store at {folder}: {RUN_AGAIN}") from exc
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OSError) as exc:
        raise InputError(f"{file} is damaged ({exc!r}): delete it and {RUN_AGAIN}") from exc

    for shard in shards:
        # A tampered file must not make us read, or remove, what lies outside of the store.
        if not _SAFE_NAME.fullmatch(shard.name):
            raise InputError(
                f"{file} names a shard {shard.name!r}, which leads out of the store: {RUN_AGAIN}"
            )

    return specification, tuple(shards), quarantine_counts


def _parse_specification(about: dict[str, Any]) -> Specification:
    """Return the specification that store.json states.

    Raises:
        KeyError, TypeError, ValueError: it is not valid.
    """
    names = ("channels", "size_px", "max_image_pixels", "format")
    numbers = {name: _parse_count(about[name]) for name in names}
    kind = about["kind"]
    maker = about["maker"]
    keys = set(about) - set(_DEFAULTS_OF_NEW_KEYS)
    expected_keys = {"kind", "maker", *names}
    if keys != expected_keys or kind not in ("packed", "encoded"):
        raise ValueError(f"{about} is not a specification")

    channels = numbers["channels"]
    size_px = numbers["size_px"]
    # Checked here, because shapes made from other numbers fail in obscure ways later.
    if channels not in (1, 3) or not 0 < size_px < _MAX_COUNT:
        raise ValueError(f"there are no images of {channels} x {size_px} x {size_px}")
    resize: dict[str, Any] = {**_DEFAULTS_OF_NEW_KEYS}
    for name in set(resize) & set(about):
        resize[name] = about[name]
    if resize["interpolation"] not in INTERPOLATIONS:
        raise ValueError(f"there is no interpolation {resize['interpolation']!r}")
    shorter_side_px = resize["shorter_side_px"]
    if shorter_side_px is not None and _parse_count(shorter_side_px) < size_px:
        raise ValueError(f"there is no square of {size_px} in images of {shorter_side_px}")
    values: dict[str, Any] = {**numbers, **resize}
    return Specification(kind, maker=str(maker), **values)


def _parse_count(value: object) -> int:
    """Return a value of store.json that counts something.

    Raises:
        ValueError: it does not.
    """
    # `type` and not `isinstance`: True is an int, but counts nothing.
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise ValueError(f"{value!r:.50} is not a count")
    return value
