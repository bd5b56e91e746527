"""The pipelines that `kedro run --pipeline=…` knows: one per package in `pipelines/`."""

from __future__ import annotations

import pkgutil

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline

from pu_kd_pipeline import pipelines as pipeline_packages

DEFAULT = "__default__"


def registered_names() -> list[str]:
    """Return every name that `kedro run --pipeline=…` accepts, without importing a pipeline."""
    packages = pkgutil.iter_modules(pipeline_packages.__path__)
    return sorted([DEFAULT, *(package.name for package in packages)])


def register_pipelines() -> dict[str, Pipeline]:
    """Return the pipelines by name; if one was requested, Kedro imports only that one."""
    pipelines = find_pipelines(raise_errors=True)
    # Kedro's default would be the sum of all pipelines, also of those that exclude each other.
    if DEFAULT in pipelines:
        pipelines[DEFAULT] = pipelines["full"]
    # Kedro finds them in the order of a set; lists of them are the same every time.
    return dict(sorted(pipelines.items()))
