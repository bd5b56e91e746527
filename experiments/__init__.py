"""Experiments that run without Kedro and MLflow, for a machine with a GPU."""
