"""The run that stages in separate processes share."""

from __future__ import annotations

import atexit
import logging
from pathlib import Path

from pu_kd_pipeline.tracking.client import Tracker, quiet_mlflow
from pu_kd_pipeline.tracking.config import TrackingConfig

logger = logging.getLogger(__name__)


def open_shared_run(config: TrackingConfig, *, project_path: Path, environment: str) -> str:
    """Open a run that stages in separate processes share, and return its identifier; "" where MLflow cannot be reached.

    The first stage that logs something sets it RUNNING, and the last that ends closes it.
    """
    tracker = Tracker(
        config, project_path=project_path, stage="full", environment=environment, parameters={}
    )
    atexit.unregister(tracker.end)
    try:
        with quiet_mlflow():
            return tracker._create_run()
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:300]
        logger.warning("MLflow at %s failed, there is no run to share: %s", tracker.uri, reason)
        return ""
