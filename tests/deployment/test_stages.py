"""The stages as containers: the committed files are those of the pipeline, and say what Docker and Argo expect."""

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
SERVICES = {"postgres", "mlflow", "kedro_viz", "tracking_run"}

# What Kedro says of the stages, in a process of its own: it keeps one project per process.
SURVEY = """
import json
from pathlib import Path
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

bootstrap_project(Path.cwd())
full = pipelines["full"]
groups = {group.name: group for group in full.group_nodes_by("namespace")}
stage_of = {node: name for name, group in groups.items() for node in group.nodes}
written = {dataset: stage_of[node.name] for node in full.nodes for dataset in node.outputs}
with KedroSession.create(env="base") as session:
    catalog = session.load_context().catalog
    # Entries of dataset factories exist once they are asked for by name.
    names = sorted({*written, *catalog.keys()})
print(json.dumps({
    "needs": {name: sorted(group.dependencies) for name, group in groups.items()},
    "gpu": sorted({stage_of[node.name] for node in full.nodes if "gpu" in node.tags}),
    "crossing": sorted({
        dataset for node in full.nodes for dataset in node.inputs if written.get(dataset, stage_of[node.name])
        != stage_of[node.name]
    }),
    "kept": sorted(name for name in names if getattr(catalog[name], "_filepath", None)
        or getattr(catalog[name], "filepath", None)),
    "types": {name: type(catalog[name]).__name__ for name in names},
}))
"""


@pytest.fixture(scope="module")
def survey() -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-c", SURVEY], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def everything_before(needs: dict[str, list[str]], name: str) -> set[str]:
    return {*needs[name]}.union(*(everything_before(needs, need) for need in needs[name]))


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
    command = [
        str(Path(sys.executable).with_name("kedro")),
        "containers",
        *arguments,
        "--out",
        str(tmp_path / file),
    ]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    assert (tmp_path / file).read_text() == (DOCKER / file).read_text(), (
        f"run `make manifests`: docker/{file} is old"
    )


def test_only_what_is_kept_on_disk_crosses_a_stage(survey: dict[str, Any]) -> None:
    assert len(survey["crossing"]) > 15
    assert set(survey["crossing"]) <= set(survey["kept"])
    assert not [name for name in survey["crossing"] if "Memory" in survey["types"][name]]


# --- the order --------------------------------------------------------------------------------------------------------

graphs = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        *(st.sets(st.integers(0, i - 1)) if i else st.just(set()) for i in range(n))
    )
)


@given(graph=graphs)
def test_direct_needs_say_the_same_with_as_few_words_as_possible(
    graph: tuple[set[int], ...],
) -> None:
    stages = [
        Stage(f"s{i}", tuple(f"s{j}" for j in sorted(needs))) for i, needs in enumerate(graph)
    ]
    direct = with_direct_needs(reversed(stages))
    given, kept = ({stage.name: list(stage.needs) for stage in each} for each in (stages, direct))
    assert {name: everything_before(kept, name) for name in kept} == {
        name: everything_before(given, name) for name in given
    }
    for name, needs in kept.items():
        for need in needs:  # without any one of them something would be lost
            fewer = {**kept, name: [other for other in needs if other != need]}
            assert everything_before(fewer, name) != everything_before(kept, name)
    position = {stage.name: i for i, stage in enumerate(direct)}
    assert all(position[need] < position[stage.name] for stage in direct for need in stage.needs)


def test_stages_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        with_direct_needs([Stage("a", ("b",)), Stage("b", ("a",))])


# --- Compose ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_compose_has_a_service_a_stage_that_waits_for_all_it_reads(
    compose: dict[str, Any], survey: dict[str, Any]
) -> None:
    stages = {
        name: service for name, service in compose["services"].items() if name not in SERVICES
    }
    assert set(stages) == set(survey["needs"])
    needs = {name: list(service["depends_on"]) for name, service in stages.items()}
    for name, service in stages.items():
        assert service["command"].split()[:3] == ["kedro", "run", f"--pipeline={name}"]
        assert {each["condition"] for each in service["depends_on"].values()} == {
            "service_completed_successfully"
        }
        before = everything_before({**needs, "tracking_run": []}, name)
        assert "tracking_run" in before  # the one MLflow run is open
        assert {*survey["needs"][name]} <= before
    assert compose["services"]["tracking_run"]["depends_on"] == {
        "mlflow": {"condition": "service_healthy"}
    }


def test_every_service_is_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["init"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        expected = (
            "unless-stopped" if name in {"postgres", "mlflow", "kedro_viz"} else "on-failure:2"
        )
        assert service["restart"] == expected, name
        assert all(
            port.startswith("${BIND_ADDRESS:-127.0.0.1}:") for port in service.get("ports", [])
        ), name
        assert not service["image"].endswith(":latest"), name
    assert compose["networks"]["database"] == {"internal": True}


def test_stages_share_the_data_and_one_run(compose: dict[str, Any]) -> None:
    for name in {*compose["services"]} - SERVICES:
        service = compose["services"][name]
        assert "data:/app/data" in service["volumes"], name
        assert (
            service["environment"]["PU_KD_RUN_ID_FILE"]
            in compose["services"]["tracking_run"]["command"]
        )


def test_a_gpu_is_given_to_the_stages_tagged_gpu(survey: dict[str, Any]) -> None:
    over = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
    assert sorted(over["services"]) == survey["gpu"]
    for service in over["services"].values():
        assert service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == [
            "gpu"
        ]


def test_the_mirror_changes_only_how_images_are_built(compose: dict[str, Any]) -> None:
    over = yaml.safe_load((DOCKER / "compose.mirror.yaml").read_text())
    assert {name for name, service in compose["services"].items() if "build" in service} == {
        *over["services"]
    }
    assert all([*service] == ["build"] for service in over["services"].values())


def test_no_secret_is_in_the_files() -> None:
    for path in DOCKER.glob("*.y*ml"):
        assert not re.search(
            r"password\s*[:=]\s*[\"']?\w", path.read_text(), flags=re.IGNORECASE
        ), path
    assert "/docker/secrets/" in (PROJECT / ".gitignore").read_text()


def test_another_pipeline_makes_another_file(compose: dict[str, Any]) -> None:
    two = [Stage("one", ()), Stage("two", ("one",), frozenset({"gpu"}))]
    services = yaml.safe_load(compose_file(two))["services"]
    assert {*services} == {"one", "two", *SERVICES}
    assert [*services["one"]["depends_on"]] == ["tracking_run"]
    assert {name: services[name] for name in SERVICES} == {
        name: compose["services"][name] for name in SERVICES
    }


# --- Argo -------------------------------------------------------------------------------------------------------------


def test_the_workflow_is_of_argos_types_and_refers_only_to_what_it_has(
    survey: dict[str, Any],
) -> None:
    from hera.workflows.models import Workflow

    text = (DOCKER / "argo-workflow.yaml").read_text()
    workflow = Workflow.model_validate(yaml.safe_load(text))
    templates = {template.name: template for template in workflow.spec.templates}
    tasks = {task.name: task for task in templates["full"].dag.tasks}
    assert all(
        re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) for name in [*templates, *tasks]
    )
    stages = {
        parameter.value: task
        for task in tasks.values()
        for parameter in (task.arguments.parameters if task.arguments else [])
        if parameter.name == "pipeline"
    }
    assert {*stages} == {*survey["needs"]}
    needs = {task.name: re.findall(r"[-\w]+", task.depends or "") for task in tasks.values()}
    for name, task in stages.items():
        assert {need.replace("_", "-") for need in survey["needs"][name]} <= everything_before(
            needs, task.name
        )
        assert "open-run" in everything_before(needs, task.name)
        assert task.template == ("gpu-stage" if name in survey["gpu"] else "stage")
        given = {parameter.name for parameter in task.arguments.parameters}
        assert given == {parameter.name for parameter in templates[task.template].inputs.parameters}

    known = {f"workflow.parameters.{each.name}" for each in workflow.spec.arguments.parameters}
    known |= {f"inputs.parameters.{each.name}" for each in templates["stage"].inputs.parameters}
    known |= {
        f"tasks.open-run.outputs.parameters.{each.name}"
        for each in templates["open-run"].outputs.parameters
    }
    assert {*re.findall(r"{{(.+?)}}", text)} == known
    limits = {name: templates[name].container.resources.limits for name in ("stage", "gpu-stage")}
    assert "nvidia.com/gpu" not in limits["stage"]
    assert limits["gpu-stage"]["nvidia.com/gpu"].root == "1"
    assert workflow.spec.template_defaults.retry_strategy.limit.root == "2"
    volumes = {volume.name for volume in workflow.spec.volumes}
    assert {
        m.name for t in templates.values() if t.container for m in t.container.volume_mounts
    } == volumes


def test_a_cluster_without_gpus_asks_for_none() -> None:
    options = {
        "image": "r/i:1",
        "mlflow": "http://m",
        "claim": "c",
        "cpus": "1",
        "memory": "2Gi",
        "gpu_memory": "3Gi",
    }
    text = argo_workflow([Stage("one", (), frozenset({"gpu"}))], gpus=0, **options)
    assert "nvidia.com/gpu" not in text
    assert yaml.safe_load(text)["spec"]["arguments"]["parameters"][0] == {
        "name": "image",
        "value": "r/i:1",
    }


# --- docker/once ------------------------------------------------------------------------------------------------------


def once(folder: Path, *command: str) -> subprocess.Popen[str]:
    arguments = [str(DOCKER / "once"), str(folder / "finished"), *command]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_container_does_its_work_once(tmp_path: Path) -> None:
    work = ["sh", "-c", f"echo done >> {tmp_path}/diary"]
    for _ in range(2):
        assert once(tmp_path, *work).wait(10) == 0
    assert (tmp_path / "diary").read_text() == "done\n"


def test_a_container_that_failed_tries_again(tmp_path: Path) -> None:
    for _ in range(2):
        assert once(tmp_path, "sh", "-c", f"echo tried >> {tmp_path}/diary; exit 3").wait(10) == 3
    assert (tmp_path / "diary").read_text() == "tried\n" * 2


def test_a_signal_reaches_the_work_which_ends_in_its_own_way(tmp_path: Path) -> None:
    script = f"trap 'sleep 0.3; echo closed > {tmp_path}/diary; exit 143' TERM; touch {tmp_path}/ready; sleep 20 & wait"
    process = once(tmp_path, "sh", "-c", script)
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert (tmp_path / "diary").read_text() == "closed\n"
    assert not (tmp_path / "finished").exists()
