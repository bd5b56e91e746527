"""Extracts features and computes a comparison on a Ray cluster of three nodes, of which one is
removed hard on the way, each time.

Run by a process of its own, so that the test can end it: such a fault shows as a hang. It prints
how often each shard was started.
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
N_NODES = 3


@dataclass(frozen=True)
class SlowWork:
    """The work of a stage, so slow that nodes can be removed while it is done."""

    work: TableWork
    folder: Path

    def __call__(self, argument: Any) -> pa.Table:
        """Return the table of a shard, and leave a trace."""
        # Shards of images have a name, and cells a position.
        name = getattr(argument, "name", None) or argument.position
        with (self.folder / name).open("a") as file:
            file.write(f"{os.environ['RAY_RAYLET_PID']} {os.getpid()}\n")
        # Nobody finishes before every node has begun: then one of them is removed.
        deadline = time.monotonic() + SECONDS_TO_START
        while len(raylets(self.folder)) < N_NODES and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(SECONDS_PER_SHARD)
        return self.work(argument)

    def facts(self) -> Mapping[str, str]:
        """Return those of the stage."""
        return self.work.facts()


def main(folder: Path) -> None:
    """Make two tables twice, in this process and on the cluster, and print what happened."""
    from ray.cluster_utils import Cluster

    from pu_kd_pipeline.comparison.cells import comparison_shards
    from pu_kd_pipeline.features.extraction import feature_shards
    from tests.comparison.builders import BASE, demo_inputs, grid
    from tests.features.made_files import COMPUTE, MadeFiles
    from tests.images.numbered_images import numbered_store

    made = MadeFiles.in_folder(folder)
    pool = numbered_store(folder / "large", range(90))
    variants = {"all": {"rule": "all"}, "random": {"rule": "random", "budget": "all"}}
    cells = grid(labeled_per_class=[2], seeds=[0, 1], variants=variants)
    tables = {
        "features": feature_shards(pool, made.teacher, COMPUTE),
        "comparison": comparison_shards(demo_inputs(folder / "inputs"), BASE, cells),
    }

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(N_NODES - 1)]
    cluster.wait_for_nodes()
    n_starts = {}
    for name, makers in tables.items():
        ShardedTable.write(folder / "local" / name, makers)
        traces = folder / "traces" / name
        traces.mkdir(parents=True)
        node = nodes.pop()
        threading.Thread(target=remove, args=(cluster, node, traces), daemon=True).start()
        engine = engine_of("ray", address=cluster.address, n_workers=N_NODES)
        slow = ShardMakers(SlowWork(makers.work, traces), makers.arguments, engine=engine)
        ShardedTable.write(folder / "ray" / name, slow)
        assert len(raylets(traces)) == N_NODES
        n_starts[name] = [len(file.read_text().splitlines()) for file in traces.iterdir()]
        # For the next one.
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
    print(json.dumps(n_starts))


def remove(cluster: Any, node: Any, traces: Path) -> None:
    """Remove a node once every node makes a shard."""
    while len(raylets(traces)) < N_NODES:
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)


def raylets(traces: Path) -> set[str]:
    """Return the nodes that have started a shard."""
    found = set()
    for file in traces.iterdir():
        for line in file.read_text().splitlines():
            found.add(line.split()[0])
    return found
