"""The stages as a WorkflowTemplate of Argo."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from pu_kd_pipeline.deployment.stages import (
    Cluster,
    Resources,
    Stage,
    workflow_template,
)
from pu_kd_pipeline.errors import ExitCode
from tests.deployment.builders import (
    DOCKER,
    everything_before,
    read_yaml,
)

FILE = "kustomize/base/workflow-template.yaml"
CLUSTER = Cluster(
    resources={
        "cpu": Resources("1", "2Gi"),
        "data": Resources("3", "4Gi"),
        "gpu": Resources("5", "6Gi", gpus=2),
    },
    claim="c",
    service_account="s",
    config_map="m",
    secret="p",
    deadline_s=60,
    with_artifacts=True,
)


def checked(content: dict[str, Any]) -> Any:
    """Return a WorkflowTemplate in Argo's types; a field that they do not have is an error."""
    from hera.workflows.models import WorkflowTemplate

    workflow = WorkflowTemplate.model_validate(content)
    # The types leave out what they do not know, as a misspelled field, and Argo refuses it.
    known = workflow.model_dump(by_alias=True, exclude_unset=True, mode="json")
    assert known == content
    return workflow


def made(stages: list[Stage], **changes: Any) -> Any:
    """Return the workflow of some stages."""
    from dataclasses import replace

    cluster = replace(CLUSTER, **changes)
    text = workflow_template(
        stages, cluster, image="r/i:1", mlflow="http://m", final_exit_codes=[1]
    )
    content = yaml.safe_load(text)
    return checked(content)


@pytest.fixture(scope="module")
def workflow() -> Any:
    """The committed workflow, checked against Argo's types."""
    return checked(read_yaml(FILE))


@pytest.fixture(scope="module")
def templates(workflow: Any) -> dict[str, Any]:
    by_name = {}
    for template in workflow.spec.templates:
        by_name[template.name] = template
    return by_name


def entry_names(entries: Any) -> set[str]:
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
    tasks = entry_names(templates["full"].dag.tasks)
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
        assert entry_names(task.arguments.parameters) == entry_names(template.inputs.parameters)
        # Only these stages wait for a machine with a GPU.
        assert (task.template == "gpu-stage") == (stage in survey["gpu"])
    assert tasks["data_ingestion"].template == "data-stage"
    assert tasks["reporting"].template == "last-stage"


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
    for name in entry_names(workflow.spec.arguments.parameters):
        known.add(f"workflow.parameters.{name}")
    for name in entry_names(templates["gpu-stage"].inputs.parameters):
        known.add(f"inputs.parameters.{name}")
    for name in entry_names(templates["open-run"].outputs.parameters):
        known.add(f"tasks.open-run.outputs.parameters.{name}")

    # Argo resolves a reference only when it runs the workflow, too late to notice a typo.
    text = (DOCKER / FILE).read_text()
    referred = re.findall(r"{{(.+?)}}", text)
    assert set(referred) == known


def test_a_field_that_argo_does_not_have_is_found() -> None:
    content = read_yaml(FILE)
    stage = content["spec"]["templates"][-1]
    stage["container"]["memory"] = "4Gi"
    with pytest.raises(AssertionError):
        checked(content)


def test_pods_request_what_the_tags_of_their_stage_ask_for() -> None:
    stages = [
        Stage("plain", ()),
        Stage("images", ("plain",), frozenset({"data"})),
        Stage("training", ("images",), frozenset({"data", "gpu"})),
        Stage("page", ("training",), frozenset({"report"})),
    ]
    requested = {}
    workflow = made(stages)
    templates = {template.name: template for template in workflow.spec.templates}
    for stage, task in tasks_by_stage(templates).items():
        resources = templates[task.template].container.resources
        limits = {name: value.root for name, value in resources.limits.items()}
        assert resources.requests["memory"].root == limits["memory"]
        requested[stage] = (resources.requests["cpu"].root, *limits.values())
    assert requested == {
        "plain": ("1", "2Gi"),
        "images": ("3", "4Gi"),
        "training": ("5", "6Gi", "2"),
        "page": ("1", "2Gi"),
    }


def test_without_gpus_the_workflow_requests_none() -> None:
    resources = {**CLUSTER.resources, "gpu": Resources("1", "3Gi")}
    gpu_stage = Stage("one", (), frozenset({"gpu"}))
    workflow = made([gpu_stage], resources=resources)
    assert "nvidia.com/gpu" not in workflow.spec.templates[-1].container.resources.limits
    assert workflow.spec.arguments.parameters[0].value == "r/i:1"


def test_only_what_may_succeed_the_next_time_is_tried_again(workflow: Any) -> None:
    retry = workflow.spec.template_defaults.retry_strategy
    assert retry.limit.root == "2"
    # Also pods that were evicted, which have no exit code.
    assert retry.retry_policy == "Always"
    condition = r"asInt\(lastRetry\.exitCode\) not in \[([\d, ]+)\]"
    matched = re.fullmatch(condition, retry.expression)
    assert matched
    final = {int(code) for code in matched[1].split(",")}
    assert final == {ExitCode.LIMIT_MISSED, ExitCode.USAGE, ExitCode.USER_ERROR}


def test_workflows_end_and_write_to_a_volume_one_after_the_other(workflow: Any) -> None:
    spec = workflow.spec
    assert spec.active_deadline_seconds > 0
    assert spec.ttl_strategy.seconds_after_failure > spec.ttl_strategy.seconds_after_success
    assert spec.pod_gc.strategy == "OnPodSuccess"
    [claim] = [each.persistent_volume_claim for each in spec.volumes if each.name == "data"]
    [mutex] = spec.synchronization.mutexes
    assert mutex.name == claim.claim_name


def test_machines_are_chosen_by_parameters(workflow: Any, templates: dict[str, Any]) -> None:
    defaults = {each.name: each.value for each in workflow.spec.arguments.parameters}
    selectors = {**defaults, "node-selector": "{pool: cheap}", "gpu-node-selector": "{pool: fast}"}
    for name, template in templates.items():
        if not template.container:
            continue
        patch = template.pod_spec_patch
        for parameter, value in selectors.items():
            patch = patch.replace(f"{{{{workflow.parameters.{parameter}}}}}", value)
        patched = yaml.safe_load(patch)
        is_gpu = name == "gpu-stage"
        assert patched["nodeSelector"] == {"pool": "fast" if is_gpu else "cheap"}
        assert bool(patched["tolerations"]) == is_gpu


def test_report_and_certificate_are_artifacts_of_the_last_stage(templates: dict[str, Any]) -> None:
    files = {}
    for artifact in templates["last-stage"].outputs.artifacts:
        folder, _, file = artifact.path.rpartition("/")
        assert folder == "/app/{{workflow.parameters.outputs}}/08_reporting"
        # Packed files could not be opened in Argo's pages.
        assert artifact.archive.none is not None
        files[artifact.name] = file
    catalog = read_yaml("../conf/base/catalog/reporting.yml")
    for name in ("report", "certificate", "certificate_page"):
        path = catalog[name]["filepath"]
        assert path.endswith(f"/08_reporting/{files[name.replace('_', '-')]}")


def test_without_one_last_stage_or_a_repository_there_are_no_artifacts() -> None:
    one = Stage("one", ())
    workflow = made([one], with_artifacts=False)
    names = entry_names(workflow.spec.templates)
    assert names == {"full", "open-run", "cpu-stage"}
    assert "outputs" not in entry_names(workflow.spec.arguments.parameters)
    both = made([one, Stage("two", ())])
    assert entry_names(both.spec.templates) == names


def test_every_volume_is_mounted_and_every_mount_is_a_volume(
    workflow: Any, templates: dict[str, Any]
) -> None:
    mounted = set()
    for template in templates.values():
        # The template of the graph runs nothing itself.
        if template.container:
            mounted |= entry_names(template.container.volume_mounts)
    assert mounted == entry_names(workflow.spec.volumes)
