"""Stage `feature_extraction`: one backbone pass over every image gives descriptor and logits."""

from pu_kd_pipeline.pipelines.feature_extraction.pipeline import create_pipeline

__all__ = ["create_pipeline"]
