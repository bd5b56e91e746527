"""The pipelines that `kedro run --pipeline=…` knows: one per package in `pipelines/`."""

from __future__ import annotations

import pkgutil

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline

from pu_kd_pipeline import pipelines as rooms


def registered_names() -> list[str]:
    """Return every name that `kedro run --pipeline=…` takes, without importing a stage."""
    return sorted(
        ["__default__", *(module.name for module in pkgutil.iter_modules(rooms.__path__))]
    )


def register_pipelines() -> dict[str, Pipeline]:
    """Return the pipelines by name; asked for one of them, Kedro has only that one imported."""
    pipelines = find_pipelines(raise_errors=True)
    if "__default__" in pipelines:
        pipelines["__default__"] = pipelines["full"]
    return pipelines
