"""What it costs to start an engine, and what an image costs then: CPU seconds of all processes.

python -m benchmarks.engines [--kinds local processes ray] [--workers 2] [--repeats 1]

Each engine computes the features of a small and of a larger store of random images, each time in
a process of its own. The images of the larger store cost the difference; what is left is the
start: of the interpreter, of torch and of the engine. Waiting for a busy machine does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams
from pu_kd_pipeline.params.teacher import InputSpec
from pu_kd_pipeline.storage.sharded_table import ShardedTable

KINDS = ("local", "processes", "ray")
IMAGES_PER_SHARD = 500
N_SHARDS = (2, 12)  # of the small and of the larger store
SECONDS_BETWEEN_SAMPLES = 0.1
SIZE_PX = 28
COMPUTE = ComputeParams(
    device="cpu", precision="float32", n_threads=1, resident_limit_gb=1, inference_batch_size=None
)


@dataclass(frozen=True)
class Cost:
    """CPU seconds of all processes, and seconds on the clock."""

    cpu_s: float
    clock_s: float


class CpuSampler:
    """Adds up the CPU time of this process and of all that it started, also of those that ended.

    What a process computes between the last sample and its end is missed.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, float], float] = {}
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def total(self) -> float:
        """Stop, and return the CPU seconds."""
        self._has_ended.set()
        self._thread.join()
        return self.so_far()

    def so_far(self) -> float:
        """Return the CPU seconds until now; before the sampler was made, those of this process."""
        self._sample()
        return sum(self._seconds.values())

    def _run(self) -> None:
        while not self._has_ended.wait(SECONDS_BETWEEN_SAMPLES):
            self._sample()

    def _sample(self) -> None:
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            try:
                times = process.cpu_times()
                key = (process.pid, process.create_time())
            except psutil.Error:
                continue  # it has just ended
            self._seconds[key] = times.user + times.system


def random_store(folder: Path, n_shards: int) -> ImageStore:
    """Write a store of random gray images."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = []
    for _ in range(n_shards * IMAGES_PER_SHARD):
        pixels = rng.integers(0, 256, (SIZE_PX, SIZE_PX), dtype=np.uint8)
        file = pa.BufferOutputStream()
        Image.fromarray(pixels).save(file, "PNG")
        images.append(file.getvalue().to_pybytes())
    path = folder / "images.parquet"
    pq.write_table(pa.table({"id": list(map(str, range(len(images)))), "image": images}), path)
    source = ImageSource.model_validate({"type": "parquet", "path": str(path), "labels": "ignore"})
    store = ImageStoreParams(
        kind="packed",
        packed_max_size_px=64,
        disk_budget_gb=1,
        shard_size=IMAGES_PER_SHARD,
        n_workers=1,
        max_image_pixels=10_000,
        max_quarantined_share=0.5,
    )
    plan = IngestionPlan("pool", (source,), SIZE_PX, 1, ("a", "b"), store, seed=0)
    return write_store(plan, folder / "store")


def extract(kind: str, n_workers: int, store: Path, features: Path) -> Cost:
    """Compute the features of a store in this process and those that the engine starts."""
    started = time.monotonic()
    sampler = CpuSampler()
    spec = InputSpec(size_px=SIZE_PX, channels=1, mean=(0.5,), std=(0.5,))
    options = {"width": 32}
    card = ModelCard(
        architecture="digits_cnn", architecture_options=options, classes=("a", "b"), input=spec
    )
    with seeded(0):
        teacher = Model(build_network("digits_cnn", 2, 1, options).eval(), card)
    engine = LOCAL.model_copy(update={"kind": kind, "n_workers": n_workers})
    makers = feature_shards(ImageStore.open(store), teacher, COMPUTE)
    ShardedTable.write(features, makers.on(engine))
    return Cost(sampler.total(), time.monotonic() - started)


def measure(kind: str, n_workers: int, store: Path, features: Path) -> Cost:
    """Return what `extract` costs in a process of its own."""
    arguments = [kind, str(n_workers), str(store), str(features)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engines", "--extract", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--extract", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.extract:
        kind, n_workers, store, features = given.extract
        cost = extract(kind, int(n_workers), Path(store), Path(features))
        print(json.dumps(vars(cost)))
        return
    n_more = (N_SHARDS[1] - N_SHARDS[0]) * IMAGES_PER_SHARD
    print("| engine | start, CPU s | an image, CPU ms | start, clock s |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        stores = []
        for n_shards in N_SHARDS:
            store_folder = Path(folder) / str(n_shards)
            random_store(store_folder, n_shards)
            stores.append(store_folder)
        for kind in given.kinds:
            rows = []
            for repeat in range(given.repeats):
                small, large = (
                    measure(kind, given.workers, store, store.parent / f"{kind}{repeat}")
                    for store in stores
                )
                per_image = (large.cpu_s - small.cpu_s) / n_more
                n_small = N_SHARDS[0] * IMAGES_PER_SHARD
                rows.append((small.cpu_s - per_image * n_small, per_image, small.clock_s))
            start_s, image_s, clock_s = map(statistics.median, zip(*rows, strict=True))
            print(f"| `{kind}` | {start_s:.1f} | {1000 * image_s:.2f} | {clock_s:.0f} |")


if __name__ == "__main__":
    main()
