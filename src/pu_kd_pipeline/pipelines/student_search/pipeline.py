"""The pipeline of the stage `student_search`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines import data_ingestion, feature_extraction, teacher
from pu_kd_pipeline.pipelines.student_search.nodes import judge_students, search_students

# The teacher is tested before anything is trained on it.
_OF_EXTRACTION = (
    "feature_extraction.extract_labeled_features",
    "feature_extraction.measure_teacher",
)

# Those of the run; a student overrides `distillation`.
_BLOCKS = (
    "params:pu_training",
    "params:subset_materialization",
    "params:class_weighting",
    "params:distillation",
    "params:relatedness",
)


def create_pipeline(**_: Any) -> Pipeline:
    """Return the search with what it needs: images, teacher, and the test of the teacher."""
    tested = feature_extraction.create_pipeline().only_nodes(*_OF_EXTRACTION)
    return data_ingestion.create_pipeline() + teacher.create_pipeline() + tested + _search()


def _search() -> Pipeline:
    return Pipeline(
        [
            Node(
                search_students,
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
                    "params:student_search",
                ],
                outputs="student_search_trials",
                name="search_students",
                tags=["gpu"],
            ),
            Node(
                judge_students,
                inputs=["student_search_trials", *_BLOCKS, "params:student_search"],
                outputs=["student_search", "student_parameters", "student_search_page"],
                name="judge_students",
                tags=["report"],
            ),
        ],
        namespace="student_search",
        prefix_datasets_with_namespace=False,
    )
