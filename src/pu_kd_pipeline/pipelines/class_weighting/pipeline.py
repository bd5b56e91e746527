"""The pipeline of the stage `class_weighting`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.class_weighting.nodes import weigh_subset_classes


def create_pipeline(stage: str = "class_weighting", **_: Any) -> Pipeline:
    """Return the stage: manifest and features in, class weights and weight vectors out.

    Args:
        stage: namespace of the nodes; a control that reuses this stage has a name of its own.
    """
    return Pipeline(
        [
            Node(
                weigh_subset_classes,
                inputs=[
                    "manifest",
                    "labeled_features",
                    "pool_features",
                    "teacher_model",
                    "params:class_weighting",
                ],
                outputs=["class_weights", "weight_vectors"],
                name="weigh_subset_classes",
            )
        ],
        namespace=stage,
        prefix_datasets_with_namespace=False,
        tags=["data"],
    )
