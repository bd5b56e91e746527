"""The pipeline of the stage `pilot`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines import data_ingestion, feature_extraction, teacher
from pu_kd_pipeline.pipelines.pilot.nodes import judge_trials, run_trials

# The teacher is tested before anything is trained on it.
_OF_EXTRACTION = (
    "feature_extraction.extract_labeled_features",
    "feature_extraction.measure_teacher",
)

# What candidates override.
_BLOCKS = (
    "params:pu_training",
    "params:subset_materialization",
    "params:class_weighting",
    "params:distillation",
    "params:relatedness",
)


def create_pipeline(**_: Any) -> Pipeline:
    """Return the pilot with what it needs: images, teacher, and the test of the teacher."""
    tested = feature_extraction.create_pipeline().only_nodes(*_OF_EXTRACTION)
    return data_ingestion.create_pipeline() + teacher.create_pipeline() + tested + _pilot()


def _pilot() -> Pipeline:
    return Pipeline(
        [
            Node(
                run_trials,
                inputs=[
                    "teacher_model",
                    "labeled_images",
                    "pool_images",
                    "test_images",
                    "duplicates",
                    "labeled_features",
                    "teacher_check",
                    *_BLOCKS,
                    "params:yardstick",
                    "params:pilot",
                ],
                outputs="pilot_trials",
                name="run_trials",
                tags=["gpu"],
            ),
            Node(
                judge_trials,
                inputs=["pilot_trials", *_BLOCKS, "params:pilot"],
                outputs=["pilot", "pilot_parameters", "pilot_page"],
                name="judge_trials",
                tags=["report"],
            ),
        ],
        namespace="pilot",
        prefix_datasets_with_namespace=False,
    )
