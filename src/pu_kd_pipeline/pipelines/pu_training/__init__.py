"""Stage `pu_training`: the class prior, and the classifier that finds related pool images."""

from pu_kd_pipeline.pipelines.pu_training.pipeline import create_pipeline

__all__ = ["create_pipeline"]
