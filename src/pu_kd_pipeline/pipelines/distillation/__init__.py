"""Stage `distillation`: the student learns from the teacher on the images of the manifest."""

from pu_kd_pipeline.pipelines.distillation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
