"""Stage `data_ingestion`: image sources become image stores; every image is decoded once."""

from pu_kd_pipeline.pipelines.data_ingestion.pipeline import create_pipeline

__all__ = ["create_pipeline"]
