"""The run that stages in separate processes share."""

from __future__ import annotations

import atexit
import logging
from pathlib import Path

from pu_kd_pipeline.tracking.client import SECONDS_TO_LOAD, Tracker
from pu_kd_pipeline.tracking.config import TrackingConfig
from pu_kd_pipeline.tracking.worker import WorkerError

logger = logging.getLogger(__name__)


def open_shared_run(
    config: TrackingConfig, *, project_path: Path, environment: str, limit_s: float = 60.0
) -> str:
    """Create a run that stages in separate processes share, and return its identifier.

    The first stage that logs something sets it RUNNING, and the last that ends closes it. An
    unreachable MLflow costs a warning; the identifier is then "".

    Args:
        config: where to log.
        project_path: folder that relative paths start from.
        environment: Kedro's configuration environment.
        limit_s: the most that MLflow may take.
    """
    tracker = Tracker(
        config, project_path=project_path, stage="full", environment=environment, parameters={}
    )
    # The run stays open when this process ends; its stages have not started yet.
    atexit.unregister(tracker.end)
    try:
        tracker.worker.call("load", limit_s=SECONDS_TO_LOAD)
        run_id, warnings = tracker.worker.call("open_shared", tracker.settings, limit_s=limit_s)
    except WorkerError as error:
        logger.warning("MLflow at %s failed, there is no run to share: %s", tracker.address, error)
        return ""
    finally:
        tracker.worker.kill()
    for warning in warnings:
        logger.warning("%s", warning)
    return str(run_id)
