"""Runs of processes that ended without closing them, as after `kill -9` or a power failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pu_kd_pipeline.tracking.processes import ProcessIdentity, is_known_dead
from pu_kd_pipeline.tracking.stages import STAGE_TAG, overall_status

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROCESS_TAG = "process."
MAX_RUNS = 200


def close_left_behind(client: MlflowClient, experiment_id: str) -> None:
    """Set runs to KILLED whose processes are known to have ended.

    A run that several stages share stays open while one of them runs, or cannot be judged.
    """
    running = client.search_runs(
        [experiment_id], "attributes.status = 'RUNNING'", max_results=MAX_RUNS
    )
    for run in running:
        run_id = run.info.run_id
        tags = dict(run.data.tags)
        dead_stages = _dead_stages(tags)
        for stage in dead_stages:
            tags[STAGE_TAG + stage] = "KILLED"
            client.set_tag(run_id, STAGE_TAG + stage, "KILLED")
        if dead_stages and overall_status(tags) != "RUNNING":
            client.set_terminated(run_id, overall_status(tags))


def _dead_stages(tags: Mapping[str, str]) -> list[str]:
    dead = []
    for key, text in tags.items():
        if not key.startswith(PROCESS_TAG):
            continue
        stage = key.removeprefix(PROCESS_TAG)
        identity = ProcessIdentity.from_text(text)
        is_open = tags.get(STAGE_TAG + stage) == "RUNNING"
        if is_open and identity is not None and is_known_dead(identity):
            dead.append(stage)
    return dead
