"""Fuzz targets: for each kind of file, valid examples and a function that reads a damaged one.

A reader gets the bytes and an empty folder of its own. Whatever the bytes, it returns or raises
`InputError`, and leaves nothing half-written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Decoder, Unusable
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.source_reports import read_reports
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table
from tests.hostile import valid_files
from tests.hostile.mutations import damaged_bytes, damaged_json
from tests.hostile.valid_files import file_ending_with, noise_png, plan_of

DECODER = Decoder(channels=3, size_px=8, max_image_pixels=1_000_000)
Reader = Callable[[bytes, Path], object]


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        name: name of the target, and prefix of its files in the corpus.
        valid_files: makes the files that are damaged.
        read: reads one damaged file in an empty folder.
        damage: makes the strategy that damages the valid files.
    """

    name: str
    valid_files: Callable[[], list[bytes]]
    read: Reader
    damage: Callable[[list[bytes]], st.SearchStrategy[bytes]] = damaged_bytes


# --- images and their sources ---------------------------------------------------------------------


def decode(data: bytes, folder: Path) -> object:
    """Decode one image; returns its pixels, or the reason why it is unusable."""
    pixels = DECODER.decode(data)
    if isinstance(pixels, Unusable):
        return str(pixels.reason)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8
    return pixels


def _ingest(source: dict[str, Any], folder: Path, **store: Any) -> ImageStore:
    """Ingest into a folder, and check that it holds a whole store or finished shards only."""
    out = folder / "store"
    try:
        written = write_store(plan_of(source, **store), out)
    except InputError:
        assert not (out / "store.json").exists()
        raise
    finally:
        # Temporary files are hidden; none may outlive the run, however it ends.
        hidden_files = list(out.glob(".*"))
        assert not hidden_files, hidden_files

    reopened = ImageStore.open(out)
    assert reopened.fingerprint == written.fingerprint

    n_images = len(reopened)
    pixels = reopened.read(np.arange(n_images))
    assert pixels.shape == (n_images, 3, 8, 8)

    n_quarantined = sum(reopened.quarantine_counts.values())
    assert len(reopened.quarantine) == n_quarantined
    return reopened


def ingest_folder(data: bytes, folder: Path) -> object:
    """Ingest a folder of two good images and a damaged one, under the name of another format."""
    images = folder / "images"
    images.mkdir()
    for number in range(2):
        good_image = images / f"{number}.png"
        good_image.write_bytes(noise_png(number))
    (images / "odd.tif").write_bytes(data)
    source = {"type": "folder", "path": str(images)}
    store = _ingest(source, folder, kind="encoded")

    # No image is lost: each is in the store, or its reason is.
    n_accounted_for = len(store) + len(store.quarantine)
    assert n_accounted_for == 3
    return store


def ingest_parquet(data: bytes, folder: Path) -> object:
    """Ingest a damaged Parquet file."""
    file = folder / "a.parquet"
    file.write_bytes(data)
    source = {"type": "parquet", "path": str(file)}
    return _ingest(source, folder)


# --- models ---------------------------------------------------------------------------------------


def load_weights(name: str, data: bytes, folder: Path) -> object:
    """Load damaged weights from a file of that name, whose suffix decides the format."""
    # torch takes seconds to import, which fuzzing images does not need.
    from pu_kd_pipeline.models.factory import new_teacher
    from pu_kd_pipeline.params.teacher import TeacherParams

    file = folder / name
    file.write_bytes(data)
    block = {**valid_files.CARD, "classes": 3, "weights": str(file), "taps": None}
    params = TeacherParams.model_validate(block)
    return new_teacher(params)


def load_card(data: bytes, folder: Path) -> object:
    """Load a model with good weights and a damaged card."""
    from pu_kd_pipeline.models.model import load_model

    # An architecture with a colon, `module:function`, is the user's own code and is imported.
    # Fuzzing must not import arbitrary modules.
    before_options, _, _ = data.partition(b"architecture_options")
    _, _, after_key = before_options.partition(b'"architecture"')
    _, _, architecture = after_key.partition(b":")
    if b":" in architecture:
        raise InputError("a factory")

    weights = valid_files.safetensors_files()[0]
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "card.json").write_bytes(data)
    model = load_model(folder)
    return model.extractor()


# --- stores and tables ----------------------------------------------------------------------------


def store_file(kind: str, ending: str) -> list[bytes]:
    """Return the valid content of the file of a store whose name ends so."""
    files = valid_files.store_files(kind)
    name = file_ending_with(files, ending)
    return [files[name]]


def _write_damaged_store(kind: str, ending: str, data: bytes, folder: Path) -> None:
    files = valid_files.store_files(kind)
    damaged_name = file_ending_with(files, ending)
    for name, content in files.items():
        if name == damaged_name:
            content = data
        (folder / name).write_bytes(content)


def read_store(kind: str, ending: str, data: bytes, folder: Path) -> object:
    """Read everything that a store with one damaged file holds: it is what was written."""
    _write_damaged_store(kind, ending, data, folder)
    store = ImageStore.open(folder)
    quarantine = store.quarantine
    n_images = len(store)
    assert store.index["id"].tolist() == ["a", "b", "c"]
    assert store.index["label"].tolist() == [0, 1, 2]

    images = store.read(np.arange(n_images))
    assert images.shape == (n_images, *store.image_shape)
    for number, image in enumerate(images):
        expected = DECODER.decode(noise_png(number))
        np.testing.assert_array_equal(image, expected)
    ids = [store.shard_ids(shard) for shard in store.shards]
    (report,) = read_reports(folder, n_images)
    assert report["n_selected"] == 3
    return images, quarantine, ids, report


def ingest_over(ending: str, data: bytes, folder: Path) -> object:
    """Ingest into a folder that holds a store with one damaged file: the store is repaired."""
    out = folder / "store"
    out.mkdir()
    file = folder / "a.parquet"
    file.write_bytes(valid_files.parquet_files()[0])
    _write_damaged_store("packed", ending, data, out)
    source = {"type": "parquet", "path": str(file), "labels": "classes"}
    store = write_store(plan_of(source), out)
    # Whatever was damaged, the result is the store of the source.
    assert store.index["id"].tolist() == ["a", "b", "c"]
    pixels = store.read(np.arange(3))
    for number, image in enumerate(pixels):
        expected = DECODER.decode(noise_png(number))
        np.testing.assert_array_equal(image, expected)
    return store


def table_file(name: str) -> list[bytes]:
    """Return the valid content of a file of the manifest or of the sharded table."""
    return [valid_files.table_files()[name]]


def read_manifest(data: bytes, folder: Path) -> object:
    """Read a damaged manifest: it is what was written."""
    file = folder / "manifest.parquet"
    file.write_bytes(data)
    manifest = read_table(file)
    assert manifest["id"].tolist() == ["a", "b"]
    assert manifest["origin"].tolist() == ["labeled", "pool"]
    assert manifest.attrs == {"rule": "nnpu", "threshold": 0.0}
    return manifest


def read_shards(damaged_name: str, data: bytes, folder: Path) -> object:
    """Read a sharded table with one damaged file: it is what was written."""
    for name in ("s0.parquet", "s1.parquet", "shards.json"):
        content = valid_files.table_files()[name]
        if name == damaged_name:
            content = data
        (folder / name).write_bytes(content)
    table = ShardedTable.open(folder)
    # Reading a part may fail where reading another does not.
    rows = table.to_pandas()
    descriptors = table.arrays("descriptor")
    assert table.names == ("s0", "s1")
    assert rows["id"].tolist() == ["a", "b", "a", "b"]
    expected = valid_files.noise(2, 4).astype(np.float16)
    np.testing.assert_array_equal(descriptors, np.concatenate([expected, expected]))
    return len(table), table.facts, rows, descriptors


# --- all targets ----------------------------------------------------------------------------------


def _folder_images() -> list[bytes]:
    return valid_files.png_files() + valid_files.gif_files() + valid_files.webp_files()


def _image_targets() -> Iterator[Target]:
    yield Target("png", valid_files.png_files, decode)
    yield Target("jpeg", valid_files.jpeg_files, decode)
    yield Target("gif", valid_files.gif_files, decode)
    yield Target("webp", valid_files.webp_files, decode)
    yield Target("tiff", valid_files.tiff_files, decode)
    yield Target("bmp", valid_files.bmp_files, decode)
    yield Target("image_folder", _folder_images, ingest_folder)
    yield Target("parquet_source", valid_files.parquet_files, ingest_parquet)


def _model_targets() -> Iterator[Target]:
    load_safetensors = partial(load_weights, "w.safetensors")
    load_torch = partial(load_weights, "w.pt")
    yield Target("safetensors", valid_files.safetensors_files, load_safetensors)
    yield Target("torch", valid_files.torch_files, load_torch)
    yield Target("card", valid_files.card_files, load_card)
    yield Target("card_values", valid_files.card_files, load_card, damaged_json)


def _store_targets() -> Iterator[Target]:
    for name, kind, ending in (
        ("store", "packed", "store.json"),
        ("index", "packed", ".index.parquet"),
        ("quarantine", "packed", "quarantine.parquet"),
        ("sources", "packed", "sources.json"),
        ("packed", "packed", ".npy"),
        ("encoded", "encoded", ".arrow"),
    ):
        files = partial(store_file, kind, ending)
        read = partial(read_store, kind, ending)
        yield Target(name, files, read)
        if ending.endswith(".json"):
            yield Target(f"{name}_values", files, read, damaged_json)
        if kind == "packed":
            yield Target(f"ingest_over_{name}", files, partial(ingest_over, ending))


def _table_targets() -> Iterator[Target]:
    list_of_shards = partial(table_file, "shards.json")
    read_list = partial(read_shards, "shards.json")
    first_shard = partial(table_file, "s0.parquet")
    yield Target("manifest", partial(table_file, "manifest.parquet"), read_manifest)
    yield Target("shards", list_of_shards, read_list)
    yield Target("shards_values", list_of_shards, read_list, damaged_json)
    yield Target("shard", first_shard, partial(read_shards, "s0.parquet"))


def _all_targets() -> Iterator[Target]:
    yield from _image_targets()
    yield from _model_targets()
    yield from _store_targets()
    yield from _table_targets()


TARGETS = {target.name: target for target in _all_targets()}
