"""Lets several workers train a network together: on this machine, or on those of a Ray cluster."""

from __future__ import annotations

import logging
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pu_kd_pipeline.devices import arithmetic, prepare_device
from pu_kd_pipeline.engines.current import current_engine
from pu_kd_pipeline.engines.ray_cluster import kept_exit_codes
from pu_kd_pipeline.params.compute import ComputeParams, TrainingWorkersParams
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint
from pu_kd_pipeline.training.checkpoints import checkpoint_settings
from pu_kd_pipeline.training.worker_actors import actor_members
from pu_kd_pipeline.training.worker_files import (
    TASK_FILE,
    Task,
    check_code_is_known,
    packed,
    task_folder,
)
from pu_kd_pipeline.training.worker_group import LostWorkerError, check_device
from pu_kd_pipeline.training.worker_members import EndedWorkerError
from pu_kd_pipeline.training.worker_processes import Team, process_members

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# How many teams a training may have on a Ray cluster, if workers are lost.
_MAX_TEAMS = 3


def by_workers(
    function: Callable[P, T],
    params: TrainingWorkersParams,
    compute: ComputeParams,
    name: str,
) -> Callable[P, T]:
    """Return a function that lets several workers train together, and returns their result.

    What the first of them logs and publishes on the channels of `progress` is logged and published
    here. On a Ray cluster, others take the place of workers that are lost, and resume from the last
    checkpoint.

    Args:
        function: of a module; trains by `worker_group.current_workers`.
        params: number of workers; with one, `function` itself is returned.
        compute: device of the training.
        name: of the training, for messages.

    Returns:
        A function that raises InputError for what a user can fix, and where workers have ended.
    """
    if params.n == 1:
        return function

    def start_and_wait(*args: P.args, **kwargs: P.kwargs) -> T:
        engine = current_engine()
        check_device(compute, params.n, 0 if engine.kind == "ray" else params.n)
        check_code_is_known(function, params.n, name)
        task = Task(
            function=function,
            args=args,
            kwargs=kwargs,
            code=maker_fingerprint(function),
            compute=compute,
            arithmetic=arithmetic(compute, prepare_device(compute)),
            timeout_s=params.timeout_s,
            checkpoints=_absolute_checkpoints(),
            log_level=logging.getLogger("pu_kd_pipeline").getEffectiveLevel(),
        )
        result: T = _result(task, params, engine, name)
        return result

    return start_and_wait


def _result(task: Task, params: TrainingWorkersParams, engine: EngineParams, name: str) -> Any:
    """Let workers carry out a task, and return its result."""
    if engine.kind != "ray":
        logger.info("%s: %d workers train together", name, params.n)
        with task_folder() as folder:
            _write(task, folder)
            members = process_members(params.n, task.compute, folder)
            with Team(members, name) as team:
                return pickle.loads(team.result())

    logger.info("%s: %d workers train together on the Ray cluster", name, params.n)
    device = prepare_device(task.compute).type
    n_threads = task.compute.n_threads
    for n_lost in range(_MAX_TEAMS):
        # A folder for each: workers of a machine that is only cut off may still write to theirs,
        # also while it is removed.
        shared = _shared_folder(task)
        with tempfile.TemporaryDirectory(
            prefix=".workers-", dir=shared, ignore_cleanup_errors=True
        ) as shared_name:
            folder = Path(shared_name)
            _write(task, folder)
            try:
                with kept_exit_codes():
                    members = actor_members(
                        params.n, device, n_threads, engine, folder, params.timeout_s
                    )
                    with Team(members, name) as team:
                        return pickle.loads(team.result())
            except (EndedWorkerError, LostWorkerError) as error:
                if n_lost == _MAX_TEAMS - 1:
                    raise
                what = error.what if isinstance(error, EndedWorkerError) else str(error)
                logger.warning("all workers start again from the last checkpoint: %s", what)
    raise AssertionError("every team has returned a result or raised an error")


def _absolute_checkpoints() -> tuple[Path, float] | None:
    """Return the settings of checkpoints, for processes in other folders."""
    settings = checkpoint_settings()
    if settings is None:
        return None
    folder, every_s = settings
    return folder.absolute(), every_s


def _shared_folder(task: Task) -> Path | None:
    """Return the folder of the checkpoints, which all machines share; None: this machine's own."""
    if task.checkpoints is None:
        return None
    folder, _ = task.checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(task: Task, folder: Path) -> None:
    (folder / TASK_FILE).write_bytes(packed(task, folder))
