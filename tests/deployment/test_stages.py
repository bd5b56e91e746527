"""The stages as containers: the committed files are up to date, and as Docker and Argo expect."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pu_kd_pipeline.deployment.stages import Stage, argo_workflow, compose_file, with_direct_needs

PROJECT = Path(__file__).resolve().parents[2]
DOCKER = PROJECT / "docker"
SERVERS = {"postgres", "mlflow", "kedro_viz"}
SERVICES = {*SERVERS, "tracking_run"}

# Facts about the stages, read in another process, because Kedro keeps one project per process.
SURVEY = """
import json
from pathlib import Path
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

bootstrap_project(Path.cwd())
full = pipelines["full"]
needs = {}
stage_of = {}
for group in full.group_nodes_by("namespace"):
    needs[group.name] = sorted(group.dependencies)
    for node in group.nodes:
        stage_of[node] = group.name
writers = {}
for node in full.nodes:
    for dataset in node.outputs:
        writers[dataset] = stage_of[node.name]
crossing = set()
gpu = set()
for node in full.nodes:
    stage = stage_of[node.name]
    if "gpu" in node.tags:
        gpu.add(stage)
    for dataset in node.inputs:
        if writers.get(dataset, stage) != stage:
            crossing.add(dataset)
types = {}
saved = set()
with KedroSession.create(env="base") as session:
    catalog = session.load_context().catalog
    # Entries of dataset factories exist once they are asked for by name.
    for name in {*writers, *catalog.keys()}:
        dataset = catalog[name]
        types[name] = type(dataset).__name__
        if getattr(dataset, "_filepath", None) or getattr(dataset, "filepath", None):
            saved.add(name)
survey = {"needs": needs, "gpu": sorted(gpu), "crossing": sorted(crossing)}
print(json.dumps({**survey, "saved": sorted(saved), "types": types}))
"""


@pytest.fixture(scope="module")
def survey() -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-c", SURVEY], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def everything_before(needs: dict[str, list[str]], name: str) -> set[str]:
    """Return all stages that must have finished before one, however indirectly."""
    found = set(needs[name])
    for need in needs[name]:
        found |= everything_before(needs, need)
    return found


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["compose"], "compose.yaml"),
        (["compose", "--gpu"], "compose.gpu.yaml"),
        (["argo"], "argo-workflow.yaml"),
    ],
)
def test_committed_files_are_those_of_the_pipeline(
    arguments: list[str], file: str, tmp_path: Path
) -> None:
    made = tmp_path / file
    command = [sys.executable, "-m", "kedro", "containers", *arguments, f"--out={made}"]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    committed = DOCKER / file
    assert made.read_text() == committed.read_text(), f"run `make manifests`: {file} is outdated"


def test_only_saved_datasets_cross_a_stage(survey: dict[str, Any]) -> None:
    assert len(survey["crossing"]) > 15
    assert set(survey["crossing"]) <= set(survey["saved"])
    for name in survey["crossing"]:
        assert "Memory" not in survey["types"][name], name


# --- the order ----------------------------------------------------------------------------------


@st.composite
def stages_without_cycles(draw: st.DrawFn) -> list[Stage]:
    """Return stages that need only stages before them."""
    stages: list[Stage] = []
    for number in range(draw(st.integers(1, 9))):
        needs: set[str] = set()
        if stages:
            earlier = [stage.name for stage in stages]
            needs = draw(st.sets(st.sampled_from(earlier)))
        stages.append(Stage(f"s{number}", tuple(sorted(needs))))
    return stages


def needs_of(stages: list[Stage]) -> dict[str, list[str]]:
    return {stage.name: list(stage.needs) for stage in stages}


@given(stages=stages_without_cycles())
def test_direct_needs_imply_all_needs_and_none_is_redundant(stages: list[Stage]) -> None:
    given_needs = needs_of(stages)
    direct_needs = needs_of(with_direct_needs(reversed(stages)))
    assert direct_needs.keys() == given_needs.keys()
    for name, needs in direct_needs.items():
        implied = everything_before(direct_needs, name)
        assert implied == everything_before(given_needs, name)
        for need in needs:
            others = [other for other in needs if other != need]
            assert everything_before({**direct_needs, name: others}, name) != implied


@given(stages=stages_without_cycles())
def test_stages_come_after_those_that_they_need(stages: list[Stage]) -> None:
    finished: set[str] = set()
    for stage in with_direct_needs(reversed(stages)):
        assert set(stage.needs) <= finished
        finished.add(stage.name)


def test_stages_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        with_direct_needs([Stage("a", ("b",)), Stage("b", ("a",))])


# --- Compose ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_compose_has_one_service_per_stage_that_waits_for_all_its_inputs(
    compose: dict[str, Any], survey: dict[str, Any]
) -> None:
    services = compose["services"]
    stages = set(services) - SERVICES
    assert stages == set(survey["needs"])
    needs: dict[str, list[str]] = {"tracking_run": []}
    for name in stages:
        needs[name] = list(services[name]["depends_on"])
    for name in stages:
        assert services[name]["command"].startswith(f"kedro run --pipeline={name} ")
        for dependency in services[name]["depends_on"].values():
            assert dependency["condition"] == "service_completed_successfully"
        before = everything_before(needs, name)
        # The MLflow run that all stages share is open.
        assert "tracking_run" in before
        assert set(survey["needs"][name]) <= before
    mlflow_is_healthy = {"mlflow": {"condition": "service_healthy"}}
    assert services["tracking_run"]["depends_on"] == mlflow_is_healthy


def test_every_service_is_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["init"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        expected = "on-failure:2"
        if name in SERVERS:
            expected = "unless-stopped"
        assert service["restart"] == expected, name
        # Nothing is reachable from other machines unless an operator sets the address.
        for port in service.get("ports", []):
            assert port.startswith("${BIND_ADDRESS:-127.0.0.1}:"), name
        assert not service["image"].endswith(":latest"), name
    assert compose["networks"]["database"] == {"internal": True}


def test_stages_share_the_data_and_one_run(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in set(services) - SERVICES:
        assert "data:/app/data" in services[name]["volumes"], name
        run_id_file = services[name]["environment"]["PU_KD_RUN_ID_FILE"]
        assert run_id_file in services["tracking_run"]["command"]


def test_a_gpu_is_given_to_the_stages_tagged_gpu(survey: dict[str, Any]) -> None:
    override = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
    assert sorted(override["services"]) == survey["gpu"]
    for service in override["services"].values():
        [device] = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


def test_the_mirror_changes_only_how_images_are_built(compose: dict[str, Any]) -> None:
    override = yaml.safe_load((DOCKER / "compose.mirror.yaml").read_text())
    built = [name for name, service in compose["services"].items() if "build" in service]
    assert set(override["services"]) == set(built)
    for service in override["services"].values():
        assert list(service) == ["build"]


def test_no_secret_is_in_the_files() -> None:
    password = re.compile(r"password\s*[:=]\s*[\"']?\w", flags=re.IGNORECASE)
    for path in DOCKER.glob("*.y*ml"):
        assert not password.search(path.read_text()), path
    assert "/docker/secrets/" in (PROJECT / ".gitignore").read_text()


def test_another_pipeline_makes_another_file(compose: dict[str, Any]) -> None:
    two = [Stage("one", ()), Stage("two", ("one",), frozenset({"gpu"}))]
    services = yaml.safe_load(compose_file(two))["services"]
    assert set(services) == {"one", "two", *SERVICES}
    assert list(services["one"]["depends_on"]) == ["tracking_run"]
    for name in SERVICES:
        assert services[name] == compose["services"][name]


# --- Argo ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workflow() -> Any:
    """The committed workflow, checked against Argo's types."""
    from hera.workflows.models import Workflow

    return Workflow.model_validate(yaml.safe_load((DOCKER / "argo-workflow.yaml").read_text()))


@pytest.fixture(scope="module")
def templates(workflow: Any) -> dict[str, Any]:
    return {template.name: template for template in workflow.spec.templates}


def names_of(entries: Any) -> set[str]:
    return {entry.name for entry in entries}


def test_names_in_the_workflow_are_those_that_kubernetes_allows(templates: dict[str, Any]) -> None:
    tasks = names_of(templates["full"].dag.tasks)
    for name in [*templates, *tasks]:
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)


def test_the_workflow_has_one_task_per_stage_that_waits_for_all_its_inputs(
    templates: dict[str, Any], survey: dict[str, Any]
) -> None:
    tasks = {}
    needs = {}
    for task in templates["full"].dag.tasks:
        needs[task.name] = re.findall(r"[-\w]+", task.depends or "")
        if task.name == "open-run":
            continue
        arguments = {parameter.name: parameter.value for parameter in task.arguments.parameters}
        tasks[arguments["pipeline"]] = task
        assert set(arguments) == names_of(templates[task.template].inputs.parameters)
    assert set(tasks) == set(survey["needs"])
    for stage, task in tasks.items():
        before = everything_before(needs, task.name)
        # The MLflow run that all stages share is open.
        assert "open-run" in before
        for need in survey["needs"][stage]:
            assert need.replace("_", "-") in before
        expected = "stage"
        if stage in survey["gpu"]:
            expected = "gpu-stage"
        assert task.template == expected


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
    text = (DOCKER / "argo-workflow.yaml").read_text()
    assert set(re.findall(r"{{(.+?)}}", text)) == known


def test_pods_have_limits_retries_and_volumes(workflow: Any, templates: dict[str, Any]) -> None:
    cpu_limits = templates["stage"].container.resources.limits
    gpu_limits = templates["gpu-stage"].container.resources.limits
    assert "nvidia.com/gpu" not in cpu_limits
    assert gpu_limits["nvidia.com/gpu"].root == "1"
    assert workflow.spec.template_defaults.retry_strategy.limit.root == "2"
    mounted = set()
    for template in templates.values():
        if template.container:
            mounted |= names_of(template.container.volume_mounts)
    assert mounted == names_of(workflow.spec.volumes)


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


# --- docker/once --------------------------------------------------------------------------------


def once(folder: Path, *command: str) -> subprocess.Popen[str]:
    arguments = [str(DOCKER / "once"), str(folder / "finished"), *command]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_container_does_its_work_once(tmp_path: Path) -> None:
    work = ["sh", "-c", f"echo done >> {tmp_path}/diary"]
    for _ in range(2):
        assert once(tmp_path, *work).wait(10) == 0
    assert (tmp_path / "diary").read_text() == "done\n"


def test_a_container_that_failed_tries_again(tmp_path: Path) -> None:
    work = ["sh", "-c", f"echo tried >> {tmp_path}/diary; exit 3"]
    for _ in range(2):
        assert once(tmp_path, *work).wait(10) == 3
    assert (tmp_path / "diary").read_text() == "tried\n" * 2


def test_a_signal_reaches_the_work_which_may_clean_up(tmp_path: Path) -> None:
    on_signal = f"sleep 0.3; echo closed > {tmp_path}/diary; exit 143"
    script = f"trap '{on_signal}' TERM; touch {tmp_path}/ready; sleep 20 & wait"
    process = once(tmp_path, "sh", "-c", script)
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert (tmp_path / "diary").read_text() == "closed\n"
    assert not (tmp_path / "finished").exists()
