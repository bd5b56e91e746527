"""The pipeline of the stage `reporting`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.incremental.node_states import SHOWS_PARAMETERS
from pu_kd_pipeline.pipelines.reporting.nodes import report_run
from pu_kd_pipeline.reporting.figures import REPORT_FIGURES


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: reads what a run has saved, writes the figures and the report."""
    outputs = [*(figure.name for figure in REPORT_FIGURES), "report"]
    return Pipeline(
        [
            Node(
                report_run,
                inputs=[
                    "metrics",
                    "ingestion_report",
                    "class_prior",
                    "pool_scores",
                    "manifest",
                    "pool_images",
                    "labeled_images",
                    "test_images",
                    "test_predictions",
                    "certificate",
                    "student_model",
                    "duplicates",
                    "yardstick",
                    "pu_history",
                    "class_weights",
                    "distillation_history",
                    "random_distillation_history",
                    "params:data_ingestion",
                    "params:teacher",
                    "params:teacher_check",
                    "params:teacher_training",
                    "params:feature_extraction",
                    "params:yardstick",
                    "params:pu_training",
                    "params:pool_scoring",
                    "params:subset_materialization",
                    "params:class_weighting",
                    "params:distillation",
                    "params:random_baseline",
                    "params:evaluation",
                    "params:reporting",
                ],
                outputs={name: name for name in outputs},
                name="report_run",
                tags=[SHOWS_PARAMETERS],
            )
        ],
        namespace="reporting",
        prefix_datasets_with_namespace=False,
        tags=["report"],
    )
