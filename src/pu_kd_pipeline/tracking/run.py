"""The run that stages in separate processes share."""

from __future__ import annotations

import atexit
import logging
from pathlib import Path

from pu_kd_pipeline.tracking.client import Tracker
from pu_kd_pipeline.tracking.config import TrackingConfig
from pu_kd_pipeline.tracking.outbox import quiet_mlflow, short_reason

logger = logging.getLogger(__name__)


def open_shared_run(config: TrackingConfig, *, project_path: Path, environment: str) -> str:
    """Create a run that stages in separate processes share, and return its identifier.

    The first stage that logs something sets it RUNNING, and the last that ends closes it. An
    unreachable MLflow costs a warning; the identifier is then "".
    """
    tracker = Tracker(
        config, project_path=project_path, stage="full", environment=environment, parameters={}
    )
    # The run stays open when this process ends; its stages have not started yet.
    atexit.unregister(tracker.end)
    try:
        with quiet_mlflow():
            return tracker.create_run()
    except Exception as error:
        logger.warning(
            "MLflow at %s failed, there is no run to share: %s", tracker.uri, short_reason(error)
        )
        return ""
