"""The pipeline of the stage `pool_audit`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines.pool_audit.nodes import (
    audit_selection,
    draw_audit,
    estimate_audit,
    show_audit,
    write_audit_page,
    write_audited_images,
)


def create_pipeline(**_: Any) -> Pipeline:
    """Return the stage: features, images and answers in; a page, the class prior by audit out."""
    return Pipeline(
        [
            Node(
                draw_audit,
                inputs=["pool_features", "pool_images", "teacher_model", "params:pool_audit"],
                outputs="audit_draw",
                name="draw_audit",
            ),
            Node(
                write_audit_page,
                inputs=["audit_draw", "pool_images", "labeled_images", "teacher_model"],
                outputs="audit_page",
                name="write_audit_page",
            ),
            Node(
                estimate_audit,
                inputs=[
                    "audit_draw",
                    "audit_page",
                    "pool_audit_answers",
                    "teacher_model",
                    "params:pool_audit",
                ],
                outputs="pool_audit",
                name="estimate_audit",
            ),
            Node(
                audit_selection,
                inputs=["audit_draw", "pool_audit", "audited_manifest", "pool_features"],
                outputs="audited_selection",
                name="audit_selection",
            ),
            Node(
                show_audit,
                inputs=["pool_audit", "audited_selection"],
                outputs="audit_result_page",
                name="show_audit",
            ),
            Node(
                write_audited_images,
                inputs=["pool_audit", "pool_images", "params:pool_audit"],
                outputs="audited_labeled",
                name="write_audited_images",
            ),
        ],
        namespace="pool_audit",
        prefix_datasets_with_namespace=False,
    )
