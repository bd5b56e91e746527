"""Compress an image classifier with a handful of its images and a large unlabeled pool."""

__version__ = "0.1.0"
