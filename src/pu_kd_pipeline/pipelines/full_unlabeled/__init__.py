"""All stages of a student without any original image, from sources to metrics."""

from pu_kd_pipeline.pipelines.full_unlabeled.pipeline import create_pipeline

__all__ = ["create_pipeline"]
