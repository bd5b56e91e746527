"""Extracts features on a Ray cluster of three nodes, one of which is removed hard on the way.

Run by a process of its own, so that the test can end it: such a fault shows as a hang. It prints
how often each shard was started, and how long starting the cluster took.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pu_kd_pipeline.engines.tables import ShardMakers, TableWork
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from tests.engines.works import engine_of

SECONDS_PER_SHARD = 1.5
SECONDS_TO_START = 120


@dataclass(frozen=True)
class SlowWork:
    """The work of a stage, so slow that nodes can be removed while it is done."""

    work: TableWork
    folder: Path

    def __call__(self, argument: Any) -> pa.Table:
        """Return the table of a shard, and leave a trace."""
        with (self.folder / argument.name).open("a") as file:
            file.write(f"{os.environ['RAY_RAYLET_PID']} {os.getpid()}\n")
        # Nobody finishes before every node has begun: then one of them is removed.
        deadline = time.monotonic() + SECONDS_TO_START
        while len(raylets(self.folder)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(SECONDS_PER_SHARD)
        return self.work(argument)

    def facts(self) -> Mapping[str, str]:
        """Return those of the stage."""
        return self.work.facts()


def main(folder: Path) -> None:
    """Make the features twice, in this process and on the cluster, and print what happened."""
    from ray.cluster_utils import Cluster

    from pu_kd_pipeline.features.extraction import feature_shards
    from tests.features.made_files import COMPUTE, MadeFiles
    from tests.images.numbered_images import numbered_store

    made = MadeFiles.in_folder(folder)
    pool = numbered_store(folder / "large", range(90))
    makers = feature_shards(pool, made.teacher, COMPUTE)
    ShardedTable.write(folder / "local", makers)

    started = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    start_s = time.monotonic() - started

    traces = folder / "traces"
    traces.mkdir()

    def remove_a_node() -> None:
        # Once every node makes a shard.
        while len(raylets(traces)) < 3:
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)

    threading.Thread(target=remove_a_node, daemon=True).start()
    work = SlowWork(makers.work, traces)
    engine = engine_of("ray", address=cluster.address, n_workers=3)
    slow = ShardMakers(work, makers.arguments, engine=engine)
    ShardedTable.write(folder / "ray", slow)
    counts = [len(file.read_text().splitlines()) for file in traces.iterdir()]
    print(json.dumps({"n_starts": counts, "n_raylets": len(raylets(traces)), "start_s": start_s}))


def raylets(traces: Path) -> set[str]:
    """Return the nodes that have started a shard."""
    found = set()
    for file in traces.iterdir():
        for line in file.read_text().splitlines():
            found.add(line.split()[0])
    return found
