"""Experiment tracking with MLflow; the only package that imports it."""
