"""Stage `unlabeled_distillation`: a student from the whole pool, drawn by relatedness, without any original image."""

from pu_kd_pipeline.pipelines.unlabeled_distillation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
