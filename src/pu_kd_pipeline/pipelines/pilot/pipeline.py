"""The pipeline of the stage `pilot`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline

from pu_kd_pipeline.pipelines.pilot.nodes import judge_trials, run_trials
from pu_kd_pipeline.pipelines.trials import trial_pipeline


def create_pipeline(**_: Any) -> Pipeline:
    """Return the pilot with what it needs: images, teacher, and the test of the teacher."""
    results = ["pilot", "pilot_parameters", "pilot_page"]
    return trial_pipeline("pilot", run_trials, judge_trials, results)
