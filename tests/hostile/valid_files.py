"""Small valid files of every kind that the pipeline reads, for fuzzing and for hostile tests."""

from __future__ import annotations

import io
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable, fixed_size_list
from pu_kd_pipeline.storage.table import write_table

# --- images ---------------------------------------------------------------------------------------

_ORIENTATION_TAG = 0x0112
_DESCRIPTION_TAG = 0x010E


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Return random uint8 pixels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of an image file; the options are those of `Image.save`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise_png(seed: int = 0) -> bytes:
    """Return an 8 x 8 color PNG; the seed makes it different from the others."""
    # PNG is lossless: tests compare decoded pixels with this noise.
    image = Image.fromarray(noise(8, 8, 3, seed=seed))
    return encoded(image)


def _rgb(seed: int = 0) -> Image.Image:
    # Height and width differ, so that swapping them shows.
    return Image.fromarray(noise(9, 7, 3, seed=seed))


def _gray() -> Image.Image:
    return Image.fromarray(noise(9, 7))


def _gray_16_bit() -> Image.Image:
    # 255 x 257 = 65535: the whole range of 16 bits is used.
    pixels = noise(9, 7).astype(np.uint16) * 257
    return Image.fromarray(pixels)


def _rgba() -> Image.Image:
    return Image.fromarray(noise(9, 7, 4))


def _palette() -> Image.Image:
    return _rgb().convert("P")


def _black_and_white() -> Image.Image:
    return _rgb().convert("1")


def _animation(kind: str) -> bytes:
    return encoded(_rgb(0), kind, save_all=True, append_images=[_rgb(1), _rgb(2)])


def _exif() -> Image.Exif:
    exif = Image.Exif()
    # Turned by a quarter, so that height and width change places.
    exif[_ORIENTATION_TAG] = 6
    exif[_DESCRIPTION_TAG] = "a picture"
    return exif


def png_files() -> list[bytes]:
    """Return PNG files in several modes, with and without metadata."""
    return [
        encoded(_rgb()),
        encoded(_gray()),
        encoded(_rgba()),
        encoded(_gray_16_bit()),
        encoded(_black_and_white()),
        encoded(_palette(), transparency=3),
        _animation("PNG"),
        encoded(_rgb(), exif=_exif(), icc_profile=b"x" * 64),
    ]


def jpeg_files() -> list[bytes]:
    """Return JPEG files in several modes, with and without metadata."""
    return [
        encoded(_rgb(), "JPEG", exif=_exif(), comment=b"a picture"),
        encoded(_gray(), "JPEG"),
        encoded(_rgb().convert("CMYK"), "JPEG"),
        encoded(_rgb(), "JPEG", progressive=True),
        encoded(_rgb(), "JPEG", dpi=(9, 9)),
    ]


def gif_files() -> list[bytes]:
    """Return GIF files, one of them animated."""
    return [
        encoded(_palette(), "GIF", transparency=1),
        _animation("GIF"),
        encoded(_gray(), "GIF"),
    ]


def webp_files() -> list[bytes]:
    """Return WebP files: lossy, lossless, animated, with metadata."""
    return [
        encoded(_rgb(), "WEBP"),
        encoded(_rgba(), "WEBP", lossless=True),
        _animation("WEBP"),
        encoded(_rgb(), "WEBP", exif=_exif(), icc_profile=b"x" * 64),
    ]


def tiff_files() -> list[bytes]:
    """Return TIFF files with every compression and in every mode that is decoded, and float32."""
    files = []
    for compression in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        files.append(encoded(_rgb(), "TIFF", compression=compression))
    return [
        *files,
        encoded(_black_and_white(), "TIFF", compression="group4"),
        encoded(_gray_16_bit(), "TIFF"),
        encoded(_rgba(), "TIFF"),
        _animation("TIFF"),
        encoded(Image.fromarray(noise(9, 7).astype(np.float32)), "TIFF"),
        encoded(_rgb().convert("CMYK"), "TIFF"),
        encoded(_rgb().convert("YCbCr"), "TIFF"),
        encoded(_palette(), "TIFF"),
    ]


def bmp_files() -> list[bytes]:
    """Return BMP files in several modes."""
    return [
        encoded(_rgb(), "BMP"),
        encoded(_gray(), "BMP"),
        encoded(_palette(), "BMP"),
        encoded(_black_and_white(), "BMP"),
    ]


# --- sources of images ----------------------------------------------------------------------------


def plan_of(source: dict[str, Any], **store: Any) -> IngestionPlan:
    """Return the plan of a store of 8 x 8 color images from one source."""
    settings = {
        "kind": "packed",
        "packed_max_size_px": 64,
        "disk_budget_gb": 1.0,
        "shard_size": 2,
        "n_workers": 1,
        "max_image_pixels": 1_000_000,
        # Every image may be unusable: what becomes of each is what the tests look at.
        "max_quarantined_share": 1.0,
    }
    return IngestionPlan(
        name="pool",
        sources=(ImageSource.model_validate(source),),
        size_px=8,
        channels=3,
        class_names=("cat", "dog", "owl"),
        store=ImageStoreParams.model_validate(settings | store),
        seed=0,
    )


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def parquet_files() -> list[bytes]:
    """Return Parquet files of three images, with every form of image, id and label column."""
    images = pa.array([noise_png(seed) for seed in range(3)])
    paths = pa.array(["a", "b", None])
    # The format of Hugging Face data sets.
    structs = pa.StructArray.from_arrays([images, paths], ["bytes", "path"])
    numbered = pa.table({"id": ["a", "b", "c"], "image": images, "label": [0, 1, 2]})
    nested = pa.table({"image": structs, "label": ["cat", "dog", "owl"]})
    named = pa.table({"image": images, "label_name": ["cat", None, "owl"]})
    numeric_ids = pa.table({"image": images, "id": [1, 2, 3], "label": [0.0, 1.0, None]})
    # Several encodings, since damage reaches another part of the reader in each.
    return [
        parquet_bytes(numbered),
        parquet_bytes(nested, compression="none", row_group_size=1),
        parquet_bytes(named, compression="zstd", version="1.0"),
        parquet_bytes(numeric_ids, use_dictionary=False),
    ]


# --- models ---------------------------------------------------------------------------------------

INPUT = {"size_px": 8, "channels": 1, "mean": [0.3], "std": [0.4]}
CARD = {
    "architecture": "digits_cnn",
    "architecture_options": {"width": 2},
    "classes": ["a", "b", "c"],
    "input": INPUT,
}


@cache
def state_dict() -> dict[str, Any]:
    """Return the weights of the network that `CARD` describes; shared, so copy before a change."""
    # torch takes seconds to import, which fuzzing images does not need.
    import torch

    from pu_kd_pipeline.learning.networks.build import build_network

    # The caller's random numbers must not change.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network("digits_cnn", 3, 1, {"width": 2})
    return dict(network.state_dict())


def safetensors_files() -> list[bytes]:
    """Return weights in the safetensors format, without and with metadata."""
    from safetensors.torch import save

    return [save(state_dict()), save(state_dict(), {"format": "pt", "origin": "a test"})]


def torch_files() -> list[bytes]:
    """Return weights saved by torch: as a zip archive, and in the format before torch 1.6."""
    import torch

    zip_archive = io.BytesIO()
    torch.save(state_dict(), zip_archive)
    old_format = io.BytesIO()
    content = {"state_dict": state_dict()}
    torch.save(content, old_format, _use_new_zipfile_serialization=False)
    return [zip_archive.getvalue(), old_format.getvalue()]


def card_files() -> list[bytes]:
    """Return model cards without and with named taps."""
    files = []
    for taps in (None, ["block1"]):
        card = {**CARD, "taps": taps, "origin": {"rule": "nnpu"}}
        files.append(json.dumps(card).encode())
    return files


# --- stores and tables ----------------------------------------------------------------------------


@cache
def store_files(kind: str) -> dict[str, bytes]:
    """Return the files of a small image store by their names."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = folder / "a.parquet"
        file.write_bytes(parquet_files()[0])
        source = {"type": "parquet", "path": str(file), "labels": "classes"}
        write_store(plan_of(source, kind=kind), folder / "store")
        return _contents(folder / "store")


def file_ending_with(files: dict[str, bytes], ending: str) -> str:
    """Return the first name with that ending: shards are named by their content."""
    return next(name for name in files if name.endswith(ending))


@cache
def table_files() -> dict[str, bytes]:
    """Return a manifest and a sharded table of two shards by their file names."""
    manifest = pd.DataFrame(
        {
            "id": ["a", "b"],
            "origin": ["labeled", "pool"],
            "row": [0, 1],
            "pu_score": [None, 0.5],
            "shard": ["x", "y"],
        }
    )
    manifest.attrs = {"rule": "nnpu", "threshold": 0.0}
    descriptors = fixed_size_list(noise(2, 4).astype(np.float16))
    features = pa.table({"id": ["a", "b"], "descriptor": descriptors})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_table(manifest, folder / "manifest.parquet")
        ShardedTable.write(folder / "features", {"s0": lambda: features, "s1": lambda: features})
        return _contents(folder)


def _contents(folder: Path) -> dict[str, bytes]:
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            files[file.name] = file.read_bytes()
    return files
