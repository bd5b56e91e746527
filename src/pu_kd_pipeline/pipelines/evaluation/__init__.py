"""Stage `evaluation`: the only use of the test images."""

from pu_kd_pipeline.pipelines.evaluation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
