"""Trackers that write to a store in the folder of a test."""

from __future__ import annotations

import pytest

from pu_kd_pipeline.tracking.client import Tracker
from pu_kd_pipeline.tracking.config import TrackingConfig


@pytest.fixture
def config():
    return TrackingConfig(
        enabled=True,
        tracking_uri=None,
        folder="mlflow",
        experiment="tests",
        registered_model="student",
        system_metrics_interval_s=None,
    )


@pytest.fixture
def new_tracker(config, folder):
    """A function that makes the tracker of a stage."""

    def make(stage: str = "full", **parameters: object) -> Tracker:
        return Tracker(
            config, project_path=folder, stage=stage, environment="base", parameters=parameters
        )

    return make
