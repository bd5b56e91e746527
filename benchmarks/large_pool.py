"""What each stage holds in memory for an image of the pool, and how long it works on it.

python -m benchmarks.large_pool [--sizes 200000 800000] [--work FOLDER] [--json FILE]

The pipeline `full` runs stage by stage, each in a process of its own, with the demo's teacher and
pools of random gray images of 8 x 8. The networks and the images are as small as they can be, and
the trainings are short, so that what is left is what every image costs, whatever the teacher: ids,
fingerprints, scores and rows of tables. The difference between two sizes is that of the images.
Memory is the peak of anonymous memory, which pages of mapped files are not part of.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from benchmarks.scaling_stage import PROJECT

STAGES = (
    "data_ingestion",
    "teacher",
    "feature_extraction",
    "pu_training",
    "pool_scoring",
    "subset_materialization",
    "class_weighting",
    "random_baseline",
    "distillation",
    "evaluation",
    "reporting",
)
SIZE_PX = 8
IMAGES_PER_ROW_GROUP = 10_000
SECONDS_BETWEEN_SAMPLES = 0.02
# Of the environment `large`: trainings are as short as the stages allow.
PARAMETERS = {
    "teacher_training": {"n_updates": 100, "record_every": 50},
    "pu_training": {
        "epochs": 2,
        "unlabeled_batch_size": 4096,
        "prior_estimation": {"n_folds": 2, "epochs": 2},
    },
    "student": {"n_updates": 100, "record_every": 50},
}


@dataclass(frozen=True)
class StageCost:
    """What a stage took.

    Attributes:
        stage: its name.
        n_images: of the pool.
        cpu_s: CPU seconds.
        peak_mb: largest anonymous memory, 10^6 bytes.
    """

    stage: str
    n_images: int
    cpu_s: float
    peak_mb: float


def write_images(file: Path, n_images: int) -> None:
    """Write random gray images as PNG to a Parquet file."""
    rng = np.random.default_rng(0)
    schema = pa.schema([("id", pa.string()), ("image", pa.binary())])
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, n_images, IMAGES_PER_ROW_GROUP):
            n = min(IMAGES_PER_ROW_GROUP, n_images - start)
            images = []
            for pixels in rng.integers(0, 256, (n, SIZE_PX, SIZE_PX), dtype=np.uint8):
                content = pa.BufferOutputStream()
                Image.fromarray(pixels).save(content, "PNG")
                images.append(content.getvalue().to_pybytes())
            ids = [f"{number:09d}" for number in range(start, start + n)]
            writer.write_table(pa.table({"id": ids, "image": images}, schema=schema))


def write_environment(folder: Path, images: Path) -> Path:
    """Copy the configuration, add the environment `large`, and return its folder."""
    conf = folder / "conf"
    shutil.copytree(PROJECT / "conf" / "base", conf / "base")
    large = conf / "large"
    large.mkdir()
    pool = {"type": "parquet", "path": str(images), "labels": "ignore"}
    student = PARAMETERS["student"]
    parameters = {**PARAMETERS, "data_ingestion": {"pool": [pool]}, "distillation": student}
    del parameters["student"]
    parameters["random_baseline"] = {}
    (large / "parameters.yml").write_text(yaml.safe_dump(parameters))
    (large / "globals.yml").write_text(yaml.safe_dump({"data": str(folder / "data")}))
    return conf


def run_stage(stage: str, n_images: int, conf: Path) -> StageCost:
    """Run a stage, and return what it took."""
    command = [sys.executable, "-m", "kedro", "run", f"--pipeline={stage}"]
    command += ["--env=large", f"--conf-source={conf}"]
    log = conf.parent / f"{stage}.log"
    with open(log, "w", encoding="utf-8") as file:
        process = psutil.Popen(
            command,
            cwd=PROJECT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        peak_mb = 0.0
        cpu_s = 0.0
        while process.poll() is None:
            try:
                peak_mb = max(peak_mb, _anonymous_mb(process.pid))
                times = process.cpu_times()
                cpu_s = times.user + times.system
            except (psutil.Error, OSError):
                pass  # it has just ended
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    if process.returncode:
        raise RuntimeError(f"{stage} failed: {log.read_text(encoding='utf-8')[-2000:]}")
    return StageCost(stage, n_images, cpu_s, peak_mb)


def _anonymous_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0  # it has just ended


def run_all(n_images: int, work: Path) -> list[StageCost]:
    """Run all stages with a pool of so many images."""
    folder = work / str(n_images)
    folder.mkdir(parents=True)
    images = folder / "images.parquet"
    write_images(images, n_images)
    conf = write_environment(folder, images)
    costs = []
    for stage in STAGES:
        cost = run_stage(stage, n_images, conf)
        print(f"{n_images:,} {stage}: {cost.cpu_s:.1f} s, {cost.peak_mb:.0f} MB", file=sys.stderr)
        costs.append(cost)
    return costs


def table(small: Sequence[StageCost], large: Sequence[StageCost]) -> str:
    """Return a table in Markdown of what the images cost, and what is there without any."""
    lines = [
        "| stage | CPU µs an image | bytes an image | without images, MB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for few, many in zip(small, large, strict=True):
        n_more = many.n_images - few.n_images
        cpu_us = (many.cpu_s - few.cpu_s) / n_more * 1e6
        n_bytes = (many.peak_mb - few.peak_mb) / n_more * 1e6
        rest_mb = few.peak_mb - n_bytes * few.n_images / 1e6
        lines.append(f"| {few.stage} | {cpu_us:.0f} | {n_bytes:,.0f} | {rest_mb:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_pool")
    parser.add_argument("--sizes", type=int, nargs=2, default=(200_000, 800_000))
    parser.add_argument("--work", type=Path, help="a new folder; default: a temporary one")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        small, large = (run_all(n_images, work) for n_images in given.sizes)
    if given.json:
        given.json.write_text(json.dumps([asdict(cost) for cost in (*small, *large)], indent=1))
    print(table(small, large))


if __name__ == "__main__":
    main()
