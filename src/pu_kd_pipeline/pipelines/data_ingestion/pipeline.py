"""The pipeline of the stage `data_ingestion`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.data_ingestion import nodes


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: sources in; four image stores, their duplicates and a report out."""
    parameters = ["params:data_ingestion", "params:teacher", "params:engine"]
    stores = {
        "labeled_images": nodes.plan_labeled_images,
        "pool_images": nodes.plan_pool_images,
        "test_images": nodes.plan_test_images,
        "teacher_training_images": nodes.plan_teacher_training_images,
    }
    ingestion = [
        Node(plan, inputs=parameters, outputs=store, name=f"ingest_{store}")
        for store, plan in stores.items()
    ]
    return Pipeline(
        [
            *ingestion,
            Node(
                nodes.search_near_copies,
                inputs=[*stores, "params:data_ingestion", "params:engine"],
                outputs="near_copies",
                name="find_near_copies",
            ),
            Node(
                nodes.search_duplicates,
                inputs=[*stores, "near_copies", "params:data_ingestion"],
                outputs="duplicates",
                name="find_duplicates",
            ),
            Node(
                nodes.report_ingestion,
                inputs=["labeled_images", "pool_images", "test_images", "duplicates"],
                outputs="ingestion_report",
                name="report_ingestion",
            ),
        ],
        namespace="data_ingestion",
        prefix_datasets_with_namespace=False,
        tags=["data"],
    )
