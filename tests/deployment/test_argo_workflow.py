"""The stages as an Argo workflow."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from pu_kd_pipeline.deployment.stages import Stage, argo_workflow
from tests.deployment.builders import (
    DOCKER,
    everything_before,
    read_yaml,
)


@pytest.fixture(scope="module")
def workflow() -> Any:
    """The committed workflow, checked against Argo's types."""
    from hera.workflows.models import Workflow

    content = read_yaml("argo-workflow.yaml")
    return Workflow.model_validate(content)


@pytest.fixture(scope="module")
def templates(workflow: Any) -> dict[str, Any]:
    by_name = {}
    for template in workflow.spec.templates:
        by_name[template.name] = template
    return by_name


def names_of(entries: Any) -> set[str]:
    return {entry.name for entry in entries}


def tasks_by_stage(templates: dict[str, Any]) -> dict[str, Any]:
    """Return the task of each stage; the one that opens the MLflow run has no stage."""
    tasks = {}
    for task in templates["full"].dag.tasks:
        if task.name == "open-run":
            continue
        [pipeline] = [each for each in task.arguments.parameters if each.name == "pipeline"]
        tasks[pipeline.value] = task
    return tasks


def test_names_in_the_workflow_are_those_that_kubernetes_allows(templates: dict[str, Any]) -> None:
    # Lowercase letters, digits and hyphens, as in host names.
    allowed = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
    tasks = names_of(templates["full"].dag.tasks)
    names = [*templates, *tasks]
    for name in names:
        assert allowed.fullmatch(name), name


def test_the_workflow_has_one_task_per_stage_with_the_parameters_of_its_template(
    templates: dict[str, Any], survey: dict[str, Any]
) -> None:
    tasks = tasks_by_stage(templates)
    assert set(tasks) == set(survey["needs"])
    for stage, task in tasks.items():
        template = templates[task.template]
        assert names_of(task.arguments.parameters) == names_of(template.inputs.parameters)
        # Only these stages wait for a machine with a GPU.
        expected = "stage"
        if stage in survey["gpu"]:
            expected = "gpu-stage"
        assert task.template == expected


def test_a_task_waits_for_all_its_inputs(templates: dict[str, Any], survey: dict[str, Any]) -> None:
    needs = {}
    for task in templates["full"].dag.tasks:
        needs[task.name] = re.findall(r"[-\w]+", task.depends or "")

    tasks = tasks_by_stage(templates)
    for stage, task in tasks.items():
        before = everything_before(needs, task.name)
        # The MLflow run that all stages share is open.
        assert "open-run" in before
        for need in survey["needs"][stage]:
            # Kubernetes allows no underscore in a name.
            assert need.replace("_", "-") in before


def test_the_workflow_refers_only_to_parameters_that_it_has(
    workflow: Any, templates: dict[str, Any]
) -> None:
    known = set()
    for name in names_of(workflow.spec.arguments.parameters):
        known.add(f"workflow.parameters.{name}")
    for name in names_of(templates["stage"].inputs.parameters):
        known.add(f"inputs.parameters.{name}")
    for name in names_of(templates["open-run"].outputs.parameters):
        known.add(f"tasks.open-run.outputs.parameters.{name}")

    # Argo resolves a reference only when it runs the workflow, too late to notice a typo.
    text = (DOCKER / "argo-workflow.yaml").read_text()
    referred = re.findall(r"{{(.+?)}}", text)
    assert set(referred) == known


def test_without_gpus_the_workflow_requests_none() -> None:
    options = {
        "image": "r/i:1",
        "mlflow": "http://m",
        "claim": "c",
        "cpus": "1",
        "memory": "2Gi",
        "gpu_memory": "3Gi",
    }
    gpu_stage = Stage("one", (), frozenset({"gpu"}))
    text = argo_workflow([gpu_stage], gpus=0, **options)
    assert "nvidia.com/gpu" not in text
    arguments = yaml.safe_load(text)["spec"]["arguments"]
    assert arguments["parameters"][0] == {"name": "image", "value": "r/i:1"}


def test_pods_have_limits_and_retries(workflow: Any, templates: dict[str, Any]) -> None:
    cpu_limits = templates["stage"].container.resources.limits
    gpu_limits = templates["gpu-stage"].container.resources.limits
    assert "nvidia.com/gpu" not in cpu_limits
    assert gpu_limits["nvidia.com/gpu"].root == "1"

    retry_strategy = workflow.spec.template_defaults.retry_strategy
    assert retry_strategy.limit.root == "2"


def test_every_volume_is_mounted_and_every_mount_is_a_volume(
    workflow: Any, templates: dict[str, Any]
) -> None:
    mounted = set()
    for template in templates.values():
        # The template of the graph runs nothing itself.
        if template.container:
            mounted |= names_of(template.container.volume_mounts)
    assert mounted == names_of(workflow.spec.volumes)
