"""The pipeline `full_unlabeled`: all stages of a student without any original image (S3)."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline

from pu_kd_pipeline.pipelines import data_ingestion, relatedness, teacher, unlabeled_distillation

STAGES = (data_ingestion, teacher, relatedness, unlabeled_distillation)


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stages as one pipeline; without positives, there are no PU stages."""
    return sum((stage.create_pipeline() for stage in STAGES), start=Pipeline([]))
