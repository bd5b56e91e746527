"""Stage `subset_materialization`: the manifest of images that the student learns from."""

from pu_kd_pipeline.pipelines.subset_materialization.pipeline import create_pipeline

__all__ = ["create_pipeline"]
