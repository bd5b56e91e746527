"""The pipeline `full`: every stage, connected by the datasets that they read and write.

It has its own package because Kedro, given the name of one pipeline, imports only the package of
that name.
"""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline

from pu_kd_pipeline.pipelines import (
    class_weighting,
    data_ingestion,
    distillation,
    evaluation,
    feature_extraction,
    pool_scoring,
    pu_training,
    random_baseline,
    reporting,
    subset_materialization,
    teacher,
)

STAGES = (
    data_ingestion,
    teacher,
    feature_extraction,
    pu_training,
    pool_scoring,
    subset_materialization,
    class_weighting,
    distillation,
    random_baseline,
    evaluation,
    reporting,
)


def create_pipeline(**_: Any) -> Pipeline:
    """Return all stages as one pipeline."""
    return sum((stage.create_pipeline() for stage in STAGES), start=Pipeline([]))
