"""Faults of conf/base/mlflow.yml are found before the first node."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node, pipeline

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.tracking import TrackingHooks, tracking_config

BASE = Path(__file__).resolve().parents[2] / "conf" / "base" / "mlflow.yml"


def context_with(**changes: Any) -> Any:
    """Return a context whose configuration of tracking is that of conf/base, with changes."""
    values = yaml.safe_load(BASE.read_text())
    values = {**values, "enabled": True, "folder": "mlflow", **changes}
    return SimpleNamespace(config_loader={"mlflow": values})


@pytest.mark.parametrize("name", ["", " ", ".", "..", "team/student", "student:1"])
def test_a_name_that_no_registered_model_can_have_is_refused(name):
    with pytest.raises(InputError, match="registered_model.* is no name of a registered model"):
        tracking_config(context_with(registered_model=name))


@pytest.mark.parametrize("name", ["pu_kd_student", "catalog.schema.model", "étudiant 2", None])
def test_other_names_are_accepted(name):
    assert tracking_config(context_with(registered_model=name)).registered_model == name


def test_mlflow_refuses_the_same_names():
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_model_name

    for name in ("", " ", ".", "..", "team/student", "student:1"):
        with pytest.raises(MlflowException):
            _validate_model_name(name)


def test_an_input_example_that_the_catalog_does_not_have_is_refused_before_the_first_node():
    hooks = TrackingHooks()
    hooks.after_context_created(context_with(input_example="pool_imagse"))
    student = MemoryDataset(metadata={"mlflow": "model"})
    catalog = DataCatalog({"pool_images": MemoryDataset(), "student_model": student})
    trained = pipeline([node(lambda: None, None, "student_model", name="train")])
    with pytest.raises(InputError, match="the catalog has no entry 'pool_imagse'"):
        hooks.before_pipeline_run({"runner": "SequentialRunner", "env": None}, trained, catalog)
