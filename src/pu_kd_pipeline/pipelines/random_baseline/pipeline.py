"""The pipeline of the stage `random_baseline`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines import class_weighting, distillation
from pu_kd_pipeline.pipelines.random_baseline.nodes import (
    distill_whole_pool_student,
    draw_random_subset,
)

STAGE = "random_baseline"


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: the manifest's size, the pool and the teacher in, the random student out.

    The control differs from the selection in the images alone, so class weights and student come
    from the same stages, with other datasets. The second control, the whole pool, is trained only
    where `random_baseline.whole_pool` asks for it.
    """
    return _random_subset() + _random_weights() + _random_student() + _whole_pool_student()


def _random_subset() -> Pipeline:
    return Pipeline(
        [
            Node(
                draw_random_subset,
                inputs=[
                    "manifest",
                    "pool_scores",
                    "labeled_images",
                    "pool_images",
                    "class_prior",
                    "held_out_ranks",
                    "duplicates",
                    "yardstick",
                    "params:subset_materialization",
                ],
                outputs="random_manifest",
                name="draw_random_subset",
                tags=["data"],
            )
        ],
        namespace=STAGE,
        prefix_datasets_with_namespace=False,
    )


def _random_weights() -> Pipeline:
    return Pipeline(
        class_weighting.create_pipeline(stage=STAGE),
        inputs={"manifest": "random_manifest"},
        outputs={
            "class_weights": "random_class_weights",
            "weight_vectors": "random_weight_vectors",
        },
    )


def _random_student() -> Pipeline:
    return Pipeline(
        distillation.create_pipeline(stage=STAGE),
        inputs={"manifest": "random_manifest", "weight_vectors": "random_weight_vectors"},
        outputs={
            "student_model": "random_student_model",
            "distillation_history": "random_distillation_history",
        },
    )


def _whole_pool_student() -> Pipeline:
    return Pipeline(
        [
            Node(
                distill_whole_pool_student,
                inputs=[
                    "manifest",
                    "pool_scores",
                    "labeled_images",
                    "pool_images",
                    "class_prior",
                    "held_out_ranks",
                    "duplicates",
                    "yardstick",
                    "labeled_features",
                    "pool_features",
                    "teacher_model",
                    "params:subset_materialization",
                    "params:class_weighting",
                    "params:distillation",
                    "params:random_baseline",
                ],
                outputs=["whole_pool_student_model", "whole_pool_distillation_history"],
                name="distill_whole_pool_student",
            )
        ],
        namespace=STAGE,
        prefix_datasets_with_namespace=False,
        tags=["gpu"],
    )
