"""Fuzzers: valid files of every kind that the program reads, broken byte by byte, and what may come of them.

A target reads one file. Whatever the bytes, it ends well or raises `InputError` within bounds of time and memory, and
leaves nothing half-written. The normal suite runs a few hundred cases of each (`test_fuzzing.py`); many more:

    python tests/hostile/fuzzing.py --minutes 10 [--targets png parquet_source …] [--seed 1]

A case that fails is made small and written to `tests/corpus`, which the suite replays ever after.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import multiprocessing
import os
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from PIL import Image

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Decoder, Unusable
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable, fixed_size_list
from pu_kd_pipeline.storage.table import read_table, write_table

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
MOST_SECONDS = (
    10.0  # for one case; the slowest takes milliseconds, and a loaded machine takes its time
)
MOST_MEMORY = 6 * 2**30  # address space of a process of the long form
DECODER = Decoder(channels=3, size_px=8, max_image_pixels=1_000_000)


# --- what is broken, and how ------------------------------------------------------------------------------------------

_ODD = [bytes(size) for size in (1, 2, 4, 8)] + [b"\xff" * size for size in (1, 2, 4, 8)]
_ODD += [
    struct.pack(kind, number)
    for number in (1, 0x7FFF, 0x7FFFFFFF, 0x80000000)
    for kind in ("<I", ">I")
]


@st.composite
def broken(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw one of the valid files and break it in one to six places."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        size = len(data)
        kind = draw(
            st.sampled_from(["bits", "odd", "cut", "drop", "double", "swap", "text", "insert"])
        )
        # places near either end, where headers and footers are, as often as anywhere
        near = (
            st.integers(0, min(64, size))
            | st.integers(max(0, size - 64), size)
            | st.integers(0, size)
        )
        place = draw(near)
        if kind == "bits" and place < size:
            data[place] ^= draw(st.integers(1, 255))
        elif kind == "odd":
            odd = draw(st.sampled_from(_ODD))
            data[place : place + len(odd)] = odd
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + draw(st.integers(1, 64))]
        elif kind == "double":
            data[place:place] = data[place : place + draw(st.integers(1, 64))]
        elif kind == "swap":
            other = draw(near)
            length = draw(st.integers(1, 16))
            data[place : place + length], data[other : other + length] = (
                data[other : other + length],
                data[place : place + length],
            )
        elif kind == "text":
            data[place : place + 1] = draw(
                st.sampled_from([b"-", b"9" * 30, b"null", b"[", b'"', b"{}", b"1e999", b".."])
            )
        else:
            data[place:place] = draw(st.binary(min_size=1, max_size=16))
    return bytes(data)


_VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "..",
    "../x",
    "/",
    "\0",
]
_VALUES += ["\ud800", "a" * 5_000, [], [None], [[]], {}, {"": 1}, {"a": {"b": []}}]


@st.composite
def broken_json(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw valid JSON with one to three values replaced, removed, or added: it reads well and says nonsense."""
    value = json.loads(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        holders = [each for each in _holders(value) if len(each)]
        if not holders:
            break
        holder = draw(st.sampled_from(holders))
        key = draw(
            st.sampled_from(
                sorted(holder) if isinstance(holder, dict) else list(range(len(holder)))
            )
        )
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        new = copy.deepcopy(draw(st.sampled_from(_VALUES)))
        if kind == "replace":
            holder[key] = new
        elif kind == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(["surprise", "", "n"]))] = new
        else:
            holder.append(new)
    return json.dumps(value).encode()


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from _holders(each)


# --- valid files ------------------------------------------------------------------------------------------------------


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    return exif


def image_seeds(kind: str) -> list[bytes]:
    """Return small images of a format, of several modes and with what the format allows beside pixels."""
    rgb, gray = Image.fromarray(noise(9, 7, 3)), Image.fromarray(noise(9, 7))
    alpha = Image.fromarray(noise(9, 7, 4))
    frames = [Image.fromarray(noise(9, 7, 3, seed=seed)) for seed in range(3)]
    palette = rgb.convert("P")
    animated = {"save_all": True, "append_images": frames[1:]}
    deep = Image.fromarray(noise(9, 7).astype(np.uint16) * 257)
    return {
        "png": lambda: [
            encoded(rgb), encoded(gray), encoded(alpha), encoded(deep), encoded(rgb.convert("1")),
            encoded(palette, transparency=3), encoded(frames[0], **animated),
            encoded(rgb, exif=_exif(), icc_profile=b"x" * 64),
        ],
        "jpeg": lambda: [
            encoded(rgb, "JPEG", exif=_exif(), comment=b"a picture"), encoded(gray, "JPEG"),
            encoded(rgb.convert("CMYK"), "JPEG"), encoded(rgb, "JPEG", progressive=True),
            encoded(rgb, "JPEG", dpi=(9, 9)),
        ],
        "gif": lambda: [
            encoded(palette, "GIF", transparency=1), encoded(frames[0], "GIF", **animated), encoded(gray, "GIF"),
        ],
        "webp": lambda: [
            encoded(rgb, "WEBP"), encoded(alpha, "WEBP", lossless=True), encoded(frames[0], "WEBP", **animated),
            encoded(rgb, "WEBP", exif=_exif(), icc_profile=b"x" * 64),
        ],
        "tiff": lambda: [
            *(encoded(rgb, "TIFF", compression=how) for how in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
            encoded(rgb.convert("1"), "TIFF", compression="group4"), encoded(deep, "TIFF"), encoded(alpha, "TIFF"),
            encoded(frames[0], "TIFF", **animated), encoded(Image.fromarray(noise(9, 7).astype(np.float32)), "TIFF"),
            encoded(rgb.convert("CMYK"), "TIFF"), encoded(rgb.convert("YCbCr"), "TIFF"), encoded(palette, "TIFF"),
        ],
        "bmp": lambda: [
            encoded(rgb, "BMP"), encoded(gray, "BMP"), encoded(palette, "BMP"), encoded(rgb.convert("1"), "BMP"),
        ],
    }[kind]()  # fmt: skip


def plan_of(source: dict[str, Any], **store: Any) -> IngestionPlan:
    """Return the plan of a store of 8 x 8 color images from one source."""
    known = {
        "kind": "packed",
        "packed_max_size_px": 64,
        "disk_budget_gb": 1.0,
        "shard_size": 2,
        "n_workers": 1,
    }
    known |= {"max_image_pixels": 1_000_000, "max_quarantined_share": 1.0}
    return IngestionPlan(
        name="pool",
        sources=(ImageSource.model_validate(source),),
        size_px=8,
        channels=3,
        class_names=("cat", "dog", "owl"),
        store=ImageStoreParams.model_validate(known | store),
        seed=0,
    )


def parquet_seeds() -> list[bytes]:
    images = pa.array(
        [encoded(Image.fromarray(noise(8, 8, 3, seed=seed))) for seed in range(3)], pa.binary()
    )
    structs = pa.StructArray.from_arrays([images, pa.array(["a", "b", None])], ["bytes", "path"])
    tables = [
        (pa.table({"id": ["a", "b", "c"], "image": images, "label": [0, 1, 2]}), {}),
        (
            pa.table({"image": structs, "label": ["cat", "dog", "owl"]}),
            {"compression": "none", "row_group_size": 1},
        ),
        (
            pa.table({"image": images, "label_name": ["cat", None, "owl"]}),
            {"compression": "zstd", "version": "1.0"},
        ),
        (
            pa.table({"image": images, "id": [1, 2, 3], "label": [0.0, 1.0, None]}),
            {"use_dictionary": False},
        ),
    ]
    files = []
    for table, options in tables:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, **options)
        files.append(buffer.getvalue())
    return files


# --- what reads them --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One kind of file: valid ones, how they are broken, and what reads one from an empty folder of its own."""

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], object]
    breaks: Callable[[list[bytes]], st.SearchStrategy[bytes]] = broken


def decode(data: bytes, folder: Path) -> object:
    pixels = DECODER.decode(data)
    if isinstance(pixels, Unusable):
        return str(pixels.reason)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8
    return pixels


def _ingested(source: dict[str, Any], folder: Path, **store: Any) -> ImageStore:
    """Ingest into a folder; whatever happens, it holds a whole store or finished shards, and nothing else."""
    out = folder / "store"
    try:
        written = write_store(plan_of(source, **store), out)
    except InputError:
        assert not (out / "store.json").exists()
        raise
    finally:
        left = [file.name for file in out.glob(".*")] if out.exists() else []
        assert not left, left
    again = ImageStore.open(out)
    assert again.fingerprint == written.fingerprint
    assert again.read(np.arange(len(again))).shape == (len(again), 3, 8, 8)
    assert len(again.quarantine) == sum(again.quarantine_counts.values())
    return again


def ingest_folder(data: bytes, folder: Path) -> object:
    images = folder / "images"
    images.mkdir()
    for number in range(2):
        (images / f"{number}.png").write_bytes(
            encoded(Image.fromarray(noise(8, 8, 3, seed=number)))
        )
    (images / "odd.tif").write_bytes(data)
    store = _ingested({"type": "folder", "path": str(images)}, folder, kind="encoded")
    assert len(store) + len(store.quarantine) == 3
    return store


def ingest_parquet(data: bytes, folder: Path) -> object:
    (folder / "a.parquet").write_bytes(data)
    return _ingested({"type": "parquet", "path": str(folder / "a.parquet")}, folder)


INPUT = {"size_px": 8, "channels": 1, "mean": [0.3], "std": [0.4]}


@cache
def _state() -> dict[str, Any]:
    import torch

    from pu_kd_pipeline.learning.networks.build import build_network

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(build_network("digits_cnn", 3, 1, {"width": 2}).state_dict())


def safetensors_seeds() -> list[bytes]:
    from safetensors.torch import save

    return [save(_state()), save(_state(), {"format": "pt", "origin": "a test"})]


def torch_seeds() -> list[bytes]:
    import torch

    files = []
    for content, options in (
        (_state(), {}),
        ({"state_dict": _state()}, {"_use_new_zipfile_serialization": False}),
    ):
        buffer = io.BytesIO()
        torch.save(content, buffer, **options)
        files.append(buffer.getvalue())
    return files


def _load(data: bytes, folder: Path, name: str) -> object:
    from pu_kd_pipeline.models.factory import new_teacher
    from pu_kd_pipeline.params.teacher import TeacherParams

    (folder / name).write_bytes(data)
    block = {
        "architecture": "digits_cnn",
        "architecture_options": {"width": 2},
        "weights": str(folder / name),
    }
    return new_teacher(
        TeacherParams.model_validate({**block, "classes": 3, "input": INPUT, "taps": None})
    )


def load_safetensors(data: bytes, folder: Path) -> object:
    return _load(data, folder, "w.safetensors")


def load_torch(data: bytes, folder: Path) -> object:
    return _load(data, folder, "w.pt")


def card_seeds() -> list[bytes]:
    card = {
        "architecture": "digits_cnn",
        "architecture_options": {"width": 2},
        "classes": ["a", "b", "c"],
        "input": INPUT,
    }
    return [
        json.dumps({**card, "taps": taps, "origin": {"rule": "nnpu"}}).encode()
        for taps in (None, ["block1"])
    ]


def load_card(data: bytes, folder: Path) -> object:
    from pu_kd_pipeline.models.model import load_model

    # a factory is the user's own code, of a card that the pipeline itself wrote: fuzzing would import anything
    if (
        b":"
        in data.partition(b"architecture_options")[0]
        .partition(b'"architecture"')[2]
        .partition(b":")[2]
    ):
        raise InputError("a factory")
    (folder / "weights.safetensors").write_bytes(safetensors_seeds()[0])
    (folder / "card.json").write_bytes(data)
    return load_model(folder).extractor()


@cache
def _store_files(kind: str) -> dict[str, bytes]:
    """Return the files of a small store, by the end of their names."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.parquet").write_bytes(parquet_seeds()[0])
        _ingested(
            {"type": "parquet", "path": str(folder / "a.parquet"), "labels": "classes"},
            folder,
            kind=kind,
        )
        return {file.name: file.read_bytes() for file in sorted((folder / "store").iterdir())}


def _read_store(
    kind: str, ending: str
) -> tuple[Callable[[], list[bytes]], Callable[[bytes, Path], object]]:
    def seeds() -> list[bytes]:
        return [next(data for name, data in _store_files(kind).items() if name.endswith(ending))]

    def read(data: bytes, folder: Path) -> object:
        replaced = next(name for name in _store_files(kind) if name.endswith(ending))
        for name, content in _store_files(kind).items():
            (folder / name).write_bytes(data if name == replaced else content)
        store = ImageStore.open(folder)
        index, quarantine = store.index, store.quarantine
        assert len(index) == len(store)
        images = store.read(np.arange(len(store)))
        assert images.shape == (len(store), *store.image_shape)
        return images, quarantine, [store.ids_of(shard) for shard in store.shards]

    return seeds, read


def _ingest_over(ending: str) -> Callable[[bytes, Path], object]:
    """Return what ingests where a damaged store lies: it is repaired."""

    def read(data: bytes, folder: Path) -> object:
        out = folder / "store"
        out.mkdir()
        (folder / "a.parquet").write_bytes(parquet_seeds()[0])
        replaced = next(name for name in _store_files("packed") if name.endswith(ending))
        for name, content in _store_files("packed").items():
            (out / name).write_bytes(data if name == replaced else content)
        source = {"type": "parquet", "path": str(folder / "a.parquet"), "labels": "classes"}
        store = write_store(plan_of(source), out)
        assert sorted(store.index["id"]) == ["a", "b", "c"]
        assert store.read(np.arange(3)).shape == (3, 3, 8, 8)
        return store

    return read


@cache
def _table_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
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
        write_table(manifest, folder / "manifest.parquet")
        features = pa.table(
            {"id": ["a", "b"], "descriptor": fixed_size_list(noise(2, 4).astype(np.float16))}
        )
        ShardedTable.write(folder / "features", {"s0": lambda: features, "s1": lambda: features})
        return {
            file.name: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
        }


def read_manifest(data: bytes, folder: Path) -> object:
    (folder / "manifest.parquet").write_bytes(data)
    return read_table(folder / "manifest.parquet")


def _read_shards(replaced: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        for name in ("s0.parquet", "s1.parquet", "shards.json"):
            (folder / name).write_bytes(data if name == replaced else _table_files()[name])
        table = ShardedTable.open(folder)
        return len(table), table.facts, table.to_pandas(), table.arrays("descriptor")

    return read


def _targets() -> Iterator[Target]:
    for kind in ("png", "jpeg", "gif", "webp", "tiff", "bmp"):
        yield Target(kind, lambda kind=kind: image_seeds(kind), decode)
    yield Target(
        "image_folder",
        lambda: image_seeds("png") + image_seeds("gif") + image_seeds("webp"),
        ingest_folder,
    )
    yield Target("parquet_source", parquet_seeds, ingest_parquet)
    yield Target("safetensors", safetensors_seeds, load_safetensors)
    yield Target("torch", torch_seeds, load_torch)
    yield Target("card", card_seeds, load_card)
    yield Target("card_values", card_seeds, load_card, broken_json)
    for name, kind, ending in (
        ("store", "packed", "store.json"),
        ("index", "packed", ".index.parquet"),
        ("quarantine", "packed", "quarantine.parquet"),
        ("packed", "packed", ".npy"),
        ("encoded", "encoded", ".arrow"),
    ):
        seeds, read = _read_store(kind, ending)
        yield Target(name, seeds, read)
        if ending == "store.json":
            yield Target("store_values", seeds, read, broken_json)
        if kind == "packed":
            yield Target(f"ingest_over_{name}", seeds, _ingest_over(ending))
    yield Target("manifest", lambda: [_table_files()["manifest.parquet"]], read_manifest)
    yield Target("shards", lambda: [_table_files()["shards.json"]], _read_shards("shards.json"))
    yield Target(
        "shards_values",
        lambda: [_table_files()["shards.json"]],
        _read_shards("shards.json"),
        broken_json,
    )
    yield Target("shard", lambda: [_table_files()["s0.parquet"]], _read_shards("s0.parquet"))


TARGETS = {target.name: target for target in _targets()}


# --- running them -----------------------------------------------------------------------------------------------------


def run_case(target: Target, data: bytes, trace: Path | None = None) -> str:
    """Read one broken file and return what became of it: `good`, `refused`, or why an image is unusable."""
    if trace is not None:
        trace.write_bytes(data)  # what a crash leaves behind
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    started = time.process_time()  # whatever else the machine does
    try:
        result = target.read(data, folder)
        outcome = result if isinstance(result, str) else "good"
    except InputError as refusal:
        str(refusal).encode()  # can be printed
        outcome = "refused" if str(refusal) else "refused without a reason"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.process_time() - started
    assert seconds < MOST_SECONDS, f"{seconds:.1f} s for {len(data)} bytes"
    return outcome


def run_many(
    target: Target, n_cases: int, seed: int | None = None, trace: Path | None = None
) -> dict[str, int]:
    """Run so many cases and return how many ended how; without a seed they are the same every time."""
    outcomes: dict[str, int] = {}

    @settings(
        max_examples=n_cases,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=target.breaks(target.seeds()))
    def cases(data: bytes) -> None:
        outcome = run_case(target, data, trace)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    (cases if seed is None else with_seed(seed)(cases))()
    return outcomes


@contextmanager
def _kept(trace: Path, target: str) -> Iterator[None]:
    """Keep the last case of a failure in the corpus: it is the smallest that hypothesis found."""
    try:
        yield
    except BaseException:
        name = f"{target}-{zlib.crc32(trace.read_bytes()):08x}.bin"
        shutil.copy(trace, CORPUS / name)
        print(f"kept as {CORPUS / name}", flush=True)
        raise


def _work(name: str, seed: int, n_cases: int, trace: Path) -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    with _kept(trace, name):
        print(name, seed, run_many(TARGETS[name], n_cases, seed, trace), flush=True)


def main() -> None:
    """Fuzz until the time is over, each round of a target in a process of its own, so that a crash is a finding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--targets", nargs="*", default=sorted(TARGETS), choices=sorted(TARGETS))
    parser.add_argument(
        "--cases", type=int, default=500, help="of one target before the next has its turn"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    seed, failed = arguments.seed, set()
    trace = Path(tempfile.mkdtemp()) / "last.bin"
    while time.monotonic() < end and len(failed) < len(arguments.targets):
        for name in arguments.targets:
            if name in failed or time.monotonic() >= end:
                continue
            process = multiprocessing.get_context("fork").Process(
                target=_work, args=(name, seed, arguments.cases, trace)
            )
            process.start()
            process.join()
            if process.exitcode:
                failed.add(name)
                print(f"FAILED {name} (exit code {process.exitcode})", flush=True)
                if process.exitcode < 0:
                    shutil.copy(
                        trace, CORPUS / f"{name}-crash-{zlib.crc32(trace.read_bytes()):08x}.bin"
                    )
        seed += 1
    sys.exit(f"failed: {', '.join(sorted(failed))}" if failed else 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
