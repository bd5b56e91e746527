"""One stage in a process of its own, which reports its peak memory and CPU time as JSON.

`python -m benchmarks.scaling_stage STAGE STORE WORK`
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import torch

from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.features.scoring import score_shards
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import load_model, load_pu_classifier
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable

PROJECT = Path(__file__).resolve().parents[1]
STAGES = ("extraction", "scoring")
SAMPLING_INTERVAL_S = 0.005
COMPUTE = ComputeParams(
    device="cpu", precision="float32", n_threads=1, resident_limit_gb=4, inference_batch_size=None
)


@dataclass(frozen=True)
class StageCost:
    """What one run of a stage took.

    Attributes:
        stage: extraction or scoring.
        n_images: size of the pool.
        peak_mb: largest anonymous memory, 10^6 bytes.
        start_mb: anonymous memory before the stage: Python and its libraries.
        peak_resident_mb: largest resident memory, including pages of mapped files.
        cpu_seconds: CPU time of the stage, without start-up.
    """

    stage: str
    n_images: int
    peak_mb: float
    start_mb: float
    peak_resident_mb: float
    cpu_seconds: float


def memory_mb(name: str) -> float:
    """Return what the kernel reports for this process's memory, in 10^6 bytes.

    Args:
        name: `RssAnon` for memory that no file backs, `VmHWM` for the peak of all. Unlike
            `ru_maxrss`, the latter does not start with the peak of the parent process.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            kibibytes = int(line.split()[1])
            return kibibytes * 1024 / 1e6
    raise OSError(f"this kernel does not report {name}: Linux 4.5 or later is needed")


class MemoryWatch:
    """Samples the anonymous memory of this process; `peak_mb` is the largest sample.

    The kernel keeps no peak of it, as it does of the resident memory.
    """

    def __init__(self) -> None:
        self.start_mb = memory_mb("RssAnon")
        self.peak_mb = self.start_mb
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._is_over.wait(SAMPLING_INTERVAL_S):
            self.peak_mb = max(self.peak_mb, memory_mb("RssAnon"))


def run_stage(stage: str, store: Path, work: Path) -> StageCost:
    """Run extraction or scoring of a store as the pipeline does, and return the cost."""
    torch.set_num_threads(1)
    features = work / f"features_{store.name}"
    scores = work / f"scores_{store.name}"
    # Modules that are imported on first use are part of start-up, and not of the stage.
    importlib.import_module("pandas")
    teacher = load_model(work / "teacher")
    classifier = load_pu_classifier(work / "classifier")
    # Imports and builds what extraction needs, whatever the size of the pool.
    teacher.extractor()
    with MemoryWatch() as memory:
        # Opening the store belongs to the stage: its index grows with the pool.
        start = time.process_time()
        images = ImageStore.open(store)
        if stage == "extraction":
            ShardedTable.write(features, feature_shards(images, teacher, COMPUTE))
        else:
            table = ShardedTable.open(features)
            ShardedTable.write(scores, score_shards(table, images, classifier, COMPUTE))
        seconds = time.process_time() - start
    resident_mb = memory_mb("VmHWM")
    return StageCost(stage, len(images), memory.peak_mb, memory.start_mb, resident_mb, seconds)


def run_in_process(stage: str, store: Path, work: Path) -> StageCost:
    """Run a stage in a new process; what it wrote in an earlier run is removed first."""
    shutil.rmtree(work / f"scores_{store.name}", ignore_errors=True)
    if stage == "extraction":
        shutil.rmtree(work / f"features_{store.name}", ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.scaling_stage", stage, str(store), str(work)]
    # stderr is not captured, so that a failure shows.
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return StageCost(**json.loads(done.stdout))


if __name__ == "__main__":
    cost = run_stage(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    print(json.dumps(asdict(cost)))
