"""What it costs to distribute many shards: the scheduler alone, with shards that take no time.

python -m benchmarks.many_shards [--shards 20000] [--kinds local processes ray] [--workers 2]

Each engine writes a table of so many shards of one row, each a file of its own, as those of a
large pool are. A second run finds them all; a third one opens the table. Every measurement is made
in a process of its own. CPU time is that of all processes; memory is that of the process that
distributes.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.engines import KINDS, CpuSampler
from benchmarks.no_work import NoWork
from benchmarks.scaling_stage import MemoryWatch
from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.storage.sharded_table import ShardedTable


@dataclass(frozen=True)
class Cost:
    """What one step took.

    Attributes:
        cpu_s: CPU seconds of all processes.
        clock_s: seconds.
        memory_mb: by how much the anonymous memory of this process grew, 10^6 bytes.
    """

    cpu_s: float
    clock_s: float
    memory_mb: float


def cost_of(step: Callable[[], object]) -> Cost:
    """Return what a step takes in this process and those that it starts."""
    started = time.monotonic()
    sampler = CpuSampler()
    before_s = sampler.so_far()
    with MemoryWatch() as memory:
        step()
    cpu_s = sampler.total() - before_s
    return Cost(cpu_s, time.monotonic() - started, memory.peak_mb - memory.start_mb)


def write(kind: str, n_workers: int, n_shards: int, folder: Path) -> ShardedTable:
    """Write the table by an engine, or find it."""
    arguments = {f"{number:05d}-{number:012x}": number for number in range(n_shards)}
    engine = LOCAL.model_copy(update={"kind": kind, "n_workers": n_workers})
    return ShardedTable.write(folder, ShardMakers(NoWork(), arguments).on(engine))


def report(kind: str, n_workers: int, n_shards: int, folder: Path) -> None:
    """Print the cost of the three steps as JSON."""
    logging.disable(logging.INFO)
    steps: dict[str, Callable[[], object]] = {
        "write": lambda: write(kind, n_workers, n_shards, folder),
        "again": lambda: write(kind, n_workers, n_shards, folder),
        "open": lambda: ShardedTable.open(folder),
    }
    costs = {name: asdict(cost_of(step)) for name, step in steps.items()}
    n_written = len(list(folder.glob("*.parquet")))
    assert n_written == n_shards, f"{n_written} of {n_shards} shards were written"
    print(json.dumps(costs))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_shards")
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.report:
        report(given.kinds[0], given.workers, given.shards, Path(given.report))
        return
    print(
        "| engine | writing, CPU ms a shard | shards a second | memory, MB "
        "| finding them again, CPU ms a shard | opening, CPU s |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind in given.kinds:
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["--shards", str(given.shards), "--workers", str(given.workers)]
            arguments += ["--kinds", kind, "--report", folder]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.many_shards", *arguments],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        costs = {
            name: Cost(**cost) for name, cost in json.loads(done.stdout.splitlines()[-1]).items()
        }
        first, again = costs["write"], costs["again"]
        ms = 1000 / given.shards
        print(
            f"| `{kind}` | {first.cpu_s * ms:.2f} | {given.shards / first.clock_s:.0f} "
            f"| {first.memory_mb:.0f} | {again.cpu_s * ms:.2f} | {costs['open'].cpu_s:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
