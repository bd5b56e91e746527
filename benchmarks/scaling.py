"""Extraction and scoring of 64 thousand to 1 million images, target 4: memory stays flat, and time is linear.

    python -m benchmarks.scaling --plot FILE [--series memory.json] [--work FOLDER]

Each stage runs in a process of its own, as it does in a pipeline, and reports its peak memory and CPU time. The network
is tiny, so that what is seen is the cost of everything around it. Memory is judged by its anonymous part, `RssAnon`:
the resident size (`VmHWM`) counts pages of memory-mapped files too, which the kernel keeps as long as nobody else
needs the memory, and takes back at no cost.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Measurement, ratio
from pu_kd_pipeline.images.shard_files import index_file, index_schema, pixel_file
from pu_kd_pipeline.images.store import QUARANTINE_FILE, ImageStore
from pu_kd_pipeline.images.store_file import FORMAT, STORE_FILE
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.teacher import InputSpec

PROJECT = Path(__file__).resolve().parents[1]
SIZES = (64_000, 256_000, 1_000_000)
REPEATS = {64_000: 3}  # the other sizes run once
SHARD_SIZE = 50_000  # as conf/base/parameters_data_ingestion.yml has it
N_CHANNELS, SIZE_PX = 1, 16
CLASSES = tuple("0123456789")
STAGES = ("extraction", "scoring")
REDUCTION = 16  # as conf/base/parameters_pu_training.yml has it
SECONDS_BETWEEN_LOOKS = 0.005
COMPUTE = ComputeParams(
    device="cpu", precision="float32", n_threads=1, resident_limit_gb=4, inference_batch_size=None
)


@dataclass(frozen=True)
class Seen:
    """What one run of a stage took.

    Attributes:
        stage: extraction or scoring.
        n_images: in the pool.
        peak_mb: most anonymous memory, 10^6 bytes.
        start_mb: anonymous memory before the stage: Python and its libraries.
        peak_resident_mb: most resident memory, with the pages of mapped files.
        cpu_seconds: of the stage, without start-up.
    """

    stage: str
    n_images: int
    peak_mb: float
    start_mb: float
    peak_resident_mb: float
    cpu_seconds: float


# --- the pool ---------------------------------------------------------------------------------------------------------


def write_shard(folder: Path, number: int, n: int) -> str:
    """Write a shard of random images in the format of a packed store, and return its name."""
    name = f"{number:05d}-{n:012x}"
    rng = np.random.default_rng([number, n])
    pixels = rng.integers(0, 256, (n, N_CHANNELS, SIZE_PX, SIZE_PX), dtype=np.uint8)
    np.save(pixel_file(folder, name, "packed"), pixels)
    index = {
        "id": [f"pool/{number:05d}/{row:08d}" for row in range(n)],
        "source": ["pool"] * n,
        "label": [None] * n,
        "relevant": [None] * n,
        "sha256": [rng.bytes(32).hex() for _ in range(n)],
        "status": ["ok"] * n,
        "version": [None] * n,
        "row": range(n),
    }
    pq.write_table(pa.table(index, schema=index_schema()), index_file(folder, name))
    return name


def link_store(shards: Sequence[tuple[str, int]], origin: Path, folder: Path) -> ImageStore:
    """Make a folder the store of some shards of another folder, whose files it shares."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, _ in shards:
        for file in (pixel_file(origin, name, "packed"), index_file(origin, name)):
            if not (folder / file.name).exists():
                os.link(file, folder / file.name)
    specification = {
        "kind": "packed",
        "channels": N_CHANNELS,
        "size_px": SIZE_PX,
        "max_image_pixels": 10**6,
    }
    about = {
        "specification": {**specification, "format": FORMAT},
        "n_images": sum(n for _, n in shards),
        "shards": [{"name": name, "n": n} for name, n in shards],
        "quarantine": {},
        "class_names": list(CLASSES),
    }
    nothing = {name: pa.array([], pa.string()) for name in ("id", "source", "status", "version")}
    pq.write_table(pa.table(nothing), folder / QUARANTINE_FILE)
    (folder / STORE_FILE).write_text(json.dumps(about))
    return ImageStore.open(folder)


def write_models(work: Path) -> None:
    """Write an untrained network and a PU classifier on what it says, as the stages before would."""
    from pu_kd_pipeline.learning.loop import seeded
    from pu_kd_pipeline.learning.pu_classifier import make_head
    from pu_kd_pipeline.models.cards import PUClassifierCard
    from pu_kd_pipeline.models.factory import new_teacher
    from pu_kd_pipeline.models.model import PUClassifier, save_model
    from pu_kd_pipeline.params.teacher import TeacherParams

    params = TeacherParams(
        architecture="digits_cnn",
        architecture_options={"width": 2},
        weights=None,
        classes=CLASSES,
        input=InputSpec(size_px=SIZE_PX, channels=N_CHANNELS, mean=(0.5,), std=(0.25,)),
        taps=None,
    )
    with seeded(0):
        teacher = new_teacher(params)
        size = teacher.extractor().descriptor_size
        head = make_head(size, "both", REDUCTION)
    card = PUClassifierCard(
        backbone="frozen",
        features="both",
        descriptor_size=size,
        attention_reduction=REDUCTION,
        class_prior=0.5,
        teacher=teacher.card,
        teacher_fingerprint=teacher.fingerprint(),
    )
    save_model(teacher, work / "teacher")
    save_model(PUClassifier(head.eval(), card), work / "classifier")


# --- one stage, in a process of its own -------------------------------------------------------------------------------


class MemoryWatch:
    """Looks at the anonymous memory of this process every few milliseconds; `peak_mb` is the most that it saw."""

    def __init__(self) -> None:
        self.start_mb = self.peak_mb = memory_mb("RssAnon")
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(SECONDS_BETWEEN_LOOKS):
            self.peak_mb = max(self.peak_mb, memory_mb("RssAnon"))


def memory_mb(name: str) -> float:
    """Return what the kernel tells of this process's memory, 10^6 bytes.

    `RssAnon` is what no file backs, `VmHWM` the peak of all; unlike `ru_maxrss` it knows nothing of the parent process.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"this kernel does not tell {name}: Linux 4.5 or later is needed")


def run_stage(stage: str, store: Path, work: Path) -> Seen:
    """Run extraction or scoring of a store as the pipeline does, and return what it took."""
    import torch

    from pu_kd_pipeline.features.extraction import feature_shards
    from pu_kd_pipeline.features.scoring import score_shards
    from pu_kd_pipeline.models.model import load_model, load_pu_classifier
    from pu_kd_pipeline.storage.sharded_table import ShardedTable

    torch.set_num_threads(1)
    features = work / f"features_{store.name}"
    # what is imported when it is first needed is start-up, too
    importlib.import_module("pandas")
    teacher, classifier = load_model(work / "teacher"), load_pu_classifier(work / "classifier")
    teacher.extractor()
    with MemoryWatch() as memory:
        start = time.process_time()
        images = ImageStore.open(store)
        if stage == "extraction":
            ShardedTable.write(features, feature_shards(images, teacher, COMPUTE))
        else:
            makers = score_shards(ShardedTable.open(features), images, classifier, COMPUTE)
            ShardedTable.write(work / f"scores_{store.name}", makers)
        seconds = time.process_time() - start
    resident_mb = memory_mb("VmHWM")
    return Seen(stage, len(images), memory.peak_mb, memory.start_mb, resident_mb, seconds)


def _in_a_process(stage: str, store: Path, work: Path) -> Seen:
    for kind in ("scores",) if stage == "scoring" else ("scores", "features"):
        shutil.rmtree(work / f"{kind}_{store.name}", ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.scaling",
        "--stage",
        stage,
        "--store",
        store,
        "--work",
        work,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return Seen(**json.loads(done.stdout))


# --- measuring --------------------------------------------------------------------------------------------------------


def measure_series(pool: Path, shards: Sequence[tuple[str, int]], work: Path) -> list[Seen]:
    """Return what each stage took for pools of each size; the largest pool and its features are left there."""
    series = []
    for size in SIZES:
        n_whole, rest = divmod(size, SHARD_SIZE)
        chosen = list(shards[:n_whole])
        if rest:
            chosen.append((write_shard(pool, n_whole, rest), rest))
        store = work / f"pool_{size}"
        link_store(chosen, pool, store)
        for _ in range(REPEATS.get(size, 1)):
            series += [_in_a_process(stage, store, work) for stage in STAGES]
    return series


def _growth_rows(series: Sequence[Seen]) -> Iterator[Measurement]:
    for stage in STAGES:
        small, large = (
            [seen for seen in series if (seen.stage, seen.n_images) == (stage, n)]
            for n in SIZES[::2]
        )
        growth = sorted(100 * (a.peak_mb / b.peak_mb - 1) for a in large for b in small)
        peaks = [statistics.median(seen.peak_mb for seen in seens) for seens in (small, large)]
        resident = [max(seen.peak_resident_mb for seen in seens) for seens in (small, large)]
        yield Measurement(
            "4",
            f"peak memory of {stage}, 1 million images over 64 thousand, growth",
            statistics.median(growth),
            growth[0],
            growth[-1],
            "%",
            "<=",
            20.0,
            note=f"anonymous memory {peaks[0]:.0f} → {peaks[1]:.0f} MB, {small[0].start_mb:.0f} of them Python and "
            f"libraries; with pages of mapped files {resident[0]:.0f} → {resident[1]:.0f} MB",
        )
    for stage in STAGES:
        small, large = (
            [seen for seen in series if (seen.stage, seen.n_images) == (stage, n)]
            for n in SIZES[::2]
        )
        costs = [[seen.cpu_seconds / seen.n_images for seen in seens] for seens in (small, large)]
        times = sorted(a / b for a in costs[1] for b in costs[0])
        yield Measurement(
            "4",
            f"CPU time an image of {stage}, 1 million images over 64 thousand",
            statistics.median(times),
            times[0],
            times[-1],
            "x",
            "<=",
            1.2,
            note=f"{1e6 * statistics.median(costs[0]):.1f} → {1e6 * statistics.median(costs[1]):.1f} µs an image",
        )


def _new_shard_row(
    pool: Path, shards: Sequence[tuple[str, int]], work: Path, repeats: int = 7
) -> Measurement:
    """Return the cost of the extraction after a shard joined a pool of twenty, over that of a pool of that shard."""
    from pu_kd_pipeline.features.extraction import Makers, feature_shards
    from pu_kd_pipeline.models.model import load_model
    from pu_kd_pipeline.storage.sharded_table import ShardedTable

    grown = f"pool_{SIZES[-1]}"  # its twenty shards have been extracted
    link_store(shards, pool, work / grown)
    link_store(shards[-1:], pool, work / "alone")
    teacher = load_model(work / "teacher")
    made: list[str] = []

    def counted(makers: Makers) -> Makers:
        def counting(name: str) -> Callable[[], pa.Table]:
            return lambda: (made.append(name), makers[name]())[1]

        return {name: counting(name) for name in makers}

    def extract(store: str) -> ShardedTable:
        makers = feature_shards(ImageStore.open(work / store), teacher, COMPUTE)
        return ShardedTable.write(work / f"features_{store}", counted(makers))

    def again(store: str) -> Callable[[], None]:
        def extract_the_new_one() -> None:
            for file in (work / f"features_{store}").glob(f"{shards[-1][0]}-*.parquet"):
                file.unlink()
            made.clear()
            names = extract(store).names
            assert made == [names[-1]], f"{len(made)} shards were made for one that is new"

        return extract_the_new_one

    measured = ratio(again(grown), again("alone"), repeats)
    return Measurement(
        "4",
        f"extraction after one shard joined twenty, over that of a pool of this shard alone ({SHARD_SIZE:,} images)",
        measured.median,
        measured.low,
        measured.high,
        "x",
        "<=",
        1.5,
        note="each time exactly one shard was made",
    )


def measure(images: Path | None, work: Path) -> Iterator[Measurement]:
    """Yield the rows of target 4 and write `memory.json`; the images are random."""
    folder = work / "scaling"
    pool = folder / "pool"
    pool.mkdir(parents=True, exist_ok=True)
    try:
        write_models(folder)
        shards = [(write_shard(pool, number, SHARD_SIZE), SHARD_SIZE) for number in range(21)]
        series = measure_series(pool, shards[:-1], folder)
        (work / "memory.json").write_text(
            json.dumps([asdict(seen) for seen in series], indent=1), encoding="utf-8"
        )
        yield from _growth_rows(series)
        yield _new_shard_row(pool, shards, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def plot(path: Path, series: Sequence[Mapping[str, float | str]]) -> None:
    """Draw peak memory against the number of images, from the mappings of `memory.json`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    highest = 0.0
    for stage, color in zip(STAGES, ("#0072b2", "#e69f00"), strict=True):
        for key, style, name in (
            ("peak_mb", "-", stage),
            ("peak_resident_mb", ":", f"{stage}, with mapped files"),
        ):
            by_size: dict[float, list[float]] = {}
            for seen in series:
                if seen["stage"] == stage:
                    by_size.setdefault(float(seen["n_images"]), []).append(float(seen[key]))
            sizes = sorted(by_size)
            peaks = [statistics.median(by_size[size]) for size in sizes]
            highest = max(highest, *peaks)
            marker = "o" if style == "-" else None
            axes.plot(sizes, peaks, style, color=color, linewidth=1.6, marker=marker, label=name)
    sizes = sorted({float(seen["n_images"]) for seen in series})
    pixels = [size * N_CHANNELS * SIZE_PX**2 / 1e6 for size in sizes]
    axes.plot(sizes, pixels, "--", color="#7f7f7f", linewidth=1.2, label="the pool's pixels")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes], minor=False)
    axes.minorticks_off()
    axes.set_ylim(0, 1.35 * highest)
    axes.set_xlabel("images in the pool (16 × 16 pixels, gray)")
    axes.set_ylabel("peak memory of the process (MB)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run one stage for `measure`, or plot a series."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--plot", type=Path, help="where the plot goes")
    parser.add_argument(
        "--series", type=Path, help="a memory.json of an earlier run; without it, it is measured"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for 0.5 GB of images; default: a temporary one"
    )
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(asdict(run_stage(options.stage, options.store, options.work))))
        return
    if options.plot is None:
        parser.error("name the file of the plot by --plot")
    with tempfile.TemporaryDirectory() as temporary:
        file = options.series
        if file is None:
            work = options.work or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            for row in measure(None, work):
                print(
                    f"{row.verdict:7} {row.what}: {row.value} {row.unit}",
                    file=sys.stderr,
                    flush=True,
                )
            file = work / "memory.json"
        plot(options.plot, json.loads(file.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
