"""Trains a student on a Ray cluster of three nodes, one of which is removed hard on the way.

Run by a process of its own, so that the test can end it: such a fault shows as a hang. It prints
how the students differ from that of two processes of this machine, and what was logged.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pu_kd_pipeline import progress
from pu_kd_pipeline.engines.current import set_engine
from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.params.compute import TrainingWorkersParams
from pu_kd_pipeline.training.checkpoints import set_checkpoint_folder
from pu_kd_pipeline.training.worker_teams import by_workers
from tests.engines.works import engine_of
from tests.training.scene import COMPUTE, Scene, make_scene
from tests.training.worker_trainings import student_and_node

TWO = TrainingWorkersParams(n=2, timeout_s=60)
N_UPDATES = 240  # so many that a node is gone before the last one


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def main(folder: Path) -> None:
    """Train three times: by processes, on the cluster, and on the cluster while it loses a node."""
    from ray.cluster_utils import Cluster

    scene = make_scene("digits", folder)
    log = Records()
    package = logging.getLogger("pu_kd_pipeline")
    package.setLevel(logging.INFO)
    package.addHandler(log)
    steps: list[int] = []

    expected = trained(scene, folder / "of processes", steps)
    expected_steps = list(steps)

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    set_engine(engine_of("ray", address=cluster.address))
    steps.clear()
    quiet = trained(scene, folder / "of the cluster", steps)
    assert steps == expected_steps

    steps.clear()
    remaining = [*nodes]

    def remove_a_node(name: str, step: int, record: Mapping[str, Any]) -> None:
        # One of those that train.
        if step == 8 and len(remaining) == 2:
            places = (folder / "places").read_text().split()
            for node in nodes:
                if str(raylet_of(node)) in places:
                    remaining.remove(node)
                    cluster.remove_node(node, allow_graceful=False)
                    break

    progress.records.add(remove_a_node)
    log.messages.clear()
    resumed = trained(scene, folder / "of a shrinking cluster", steps, folder / "places")
    set_engine(LOCAL)
    outcome = {
        "is_equal": equal(quiet, expected),
        "is_equal_after_the_loss": equal(resumed, expected),
        "n_lost": 2 - len(remaining),
        "steps": steps,
        "messages": log.messages,
    }
    print(json.dumps(outcome))


def trained(scene: Scene, checkpoints: Path, steps: list[int], places: Path | None = None) -> Any:
    """Return the history and the weights of a student of two workers, and collect its records."""

    def collect(name: str, step: int, record: Mapping[str, Any]) -> None:
        steps.append(step)

    progress.records.add(collect)
    set_checkpoint_folder(checkpoints, every_s=0)
    try:
        train = by_workers(student_and_node, TWO, COMPUTE, "student")
        return train(scene, N_UPDATES, places)
    finally:
        progress.records.remove(collect)


def raylet_of(node: Any) -> int:
    """Return the id of the process that manages a node."""
    [raylet] = node.all_processes["raylet"]
    return int(raylet.process.pid)


def equal(found: Any, expected: Any) -> bool:
    """Return whether two trainings gave the same bits."""
    history, state = found
    expected_history, expected_state = expected
    is_same = [torch.equal(value, expected_state[key]) for key, value in state.items()]
    return bool(history.equals(expected_history)) and all(is_same)
