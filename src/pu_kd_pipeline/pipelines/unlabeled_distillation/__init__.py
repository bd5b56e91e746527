"""Stage `unlabeled_distillation`: a student from the pool alone, drawn by relatedness."""

from pu_kd_pipeline.pipelines.unlabeled_distillation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
