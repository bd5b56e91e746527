"""Stage `class_weighting`: class weights of the subset and their perturbations."""

from pu_kd_pipeline.pipelines.class_weighting.pipeline import create_pipeline

__all__ = ["create_pipeline"]
