"""Trackers that write to a store in the folder of a test."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pu_kd_pipeline.tracking.client import Tracker
from pu_kd_pipeline.tracking.config import TrackingConfig
from pu_kd_pipeline.tracking.run_log import RunLog
from pu_kd_pipeline.tracking.worker import Worker, result_of
from pu_kd_pipeline.tracking.worker_loop import answer


class LocalWorker(Worker):
    """Makes the calls in this process, because starting another one takes seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.log: RunLog | None = None

    def call(
        self, method: str, *args: Any, limit_s: float, **options: Any
    ) -> tuple[Any, list[str]]:
        if self.log is None:
            self.log = RunLog(os.getpid())
            self.is_running = True
            self.n_starts += 1
        return result_of(*answer(self.log, method, args, options))

    def kill(self) -> None:
        self.log = None
        self.is_running = False


@pytest.fixture
def config():
    return TrackingConfig(
        enabled=True,
        tracking_uri=None,
        folder="mlflow",
        data="data/a",
        experiment="tests",
        registered_model="student",
        system_metrics_interval_s=None,
        max_wait_s=60,
    )


@pytest.fixture
def new_tracker(config, folder):
    """A function that makes the tracker of a stage, with calls made in this process."""

    def make(stage: str = "full", *, worker: Worker | None = None, **parameters: object) -> Tracker:
        return Tracker(
            config,
            project_path=folder,
            stage=stage,
            environment="base",
            parameters=parameters,
            worker=worker or LocalWorker(),
        )

    return make


@pytest.fixture
def new_model():
    """A function that makes a classifier of the given network, for gray square images."""
    from pu_kd_pipeline.models.cards import ModelCard
    from pu_kd_pipeline.models.model import Model
    from pu_kd_pipeline.params.teacher import InputSpec

    def make(network, size_px: int, n_classes: int, **spec: object) -> Model:
        facts = {"size_px": size_px, "channels": 1, "mean": [0.3], "std": [0.4], **spec}
        card = ModelCard(
            architecture="toy",
            classes=tuple(f"class {index}" for index in range(n_classes)),
            input=InputSpec.model_validate(facts),
            origin={"teacher": "0123", "weights": "/home/me/weights.pt"},
        )
        return Model(network, card)

    return make
