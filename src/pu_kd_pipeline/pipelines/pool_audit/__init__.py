"""Stage `pool_audit`: a page of pool images, and the class prior that a person's answers give."""

from pu_kd_pipeline.pipelines.pool_audit.pipeline import create_pipeline

__all__ = ["create_pipeline"]
