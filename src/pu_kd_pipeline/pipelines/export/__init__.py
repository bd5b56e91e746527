"""Stage `export`: the evaluated student as files that are deployed without this project."""

from pu_kd_pipeline.pipelines.export.pipeline import create_pipeline

__all__ = ["create_pipeline"]
