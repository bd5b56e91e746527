"""Compress an image classifier with a handful of its images and a large unlabeled pool."""

# First, because it remembers the source of each module that is imported after it.
from pu_kd_pipeline.provenance import loaded_code as _loaded_code  # noqa: F401

__version__ = "0.1.0"
