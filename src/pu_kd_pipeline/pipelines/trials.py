"""What the pipelines of short trainings share: their inputs, and what runs before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.pipelines import data_ingestion, feature_extraction, teacher

# The teacher is tested before anything is trained on it.
_OF_EXTRACTION = (
    "feature_extraction.extract_labeled_features",
    "feature_extraction.measure_teacher",
)

# Those of the run, which candidates override.
_BLOCKS = (
    "params:pu_training",
    "params:subset_materialization",
    "params:class_weighting",
    "params:distillation",
    "params:relatedness",
)


def trial_pipeline(
    stage: str,
    run: Callable[..., Any],
    judge: Callable[..., Any],
    results: Sequence[str],
) -> Pipeline:
    """Return a stage of short trainings, with what it needs: images, teacher, and its test.

    Args:
        stage: its name, also of its block of parameters; `<stage>_trials` passes between its nodes.
        run: trains candidates; takes images, teacher and blocks in the order below.
        judge: takes the trials, blocks and parameters.
        results: what `judge` returns.
    """
    trials = f"{stage}_trials"
    own = Pipeline(
        [
            Node(
                run,
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
                    "params:engine",
                    f"params:{stage}",
                ],
                outputs=trials,
                name=run.__name__,
                tags=["gpu"],
            ),
            Node(
                judge,
                inputs=[trials, *_BLOCKS, f"params:{stage}"],
                outputs=list(results),
                name=judge.__name__,
                tags=["report"],
            ),
        ],
        namespace=stage,
        prefix_datasets_with_namespace=False,
    )
    tested = feature_extraction.create_pipeline().only_nodes(*_OF_EXTRACTION)
    return data_ingestion.create_pipeline() + teacher.create_pipeline() + tested + own
