"""The stages as services of Docker Compose."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pu_kd_pipeline.deployment.stages import Stage, compose_file
from tests.deployment.builders import (
    DOCKER,
    PROJECT,
    SERVERS,
    SERVICES,
    everything_before,
    read_yaml,
)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read_yaml("compose.yaml")


def test_compose_has_one_service_per_stage(compose: dict[str, Any], survey: dict[str, Any]) -> None:
    services = compose["services"]
    stages = set(services) - SERVICES
    assert stages == set(survey["needs"])
    for name in stages:
        command = services[name]["command"]
        assert command.startswith(f"kedro run --pipeline={name} ")


def test_a_service_waits_for_all_its_inputs(
    compose: dict[str, Any], survey: dict[str, Any]
) -> None:
    services = compose["services"]
    stages = set(services) - SERVICES
    needs: dict[str, list[str]] = {"tracking_run": []}
    for name in stages:
        needs[name] = list(services[name]["depends_on"])

    for name in stages:
        for dependency in services[name]["depends_on"].values():
            # A stage that only started has not written anything yet.
            assert dependency["condition"] == "service_completed_successfully"
        before = everything_before(needs, name)
        # The MLflow run that all stages share is open.
        assert "tracking_run" in before
        needed = set(survey["needs"][name])
        assert needed <= before

    mlflow_is_healthy = {"mlflow": {"condition": "service_healthy"}}
    assert services["tracking_run"]["depends_on"] == mlflow_is_healthy


def test_every_service_is_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        # A program that is taken over can neither change its files nor gain rights.
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
    assert compose["networks"]["database"] == {"internal": True}


def test_no_service_is_reachable_from_other_machines_by_default(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        # An operator may set the address.
        for port in service.get("ports", []):
            assert port.startswith("${BIND_ADDRESS:-127.0.0.1}:"), name


def test_every_service_has_a_fixed_version_and_restarts_as_fits_it(
    compose: dict[str, Any],
) -> None:
    for name, service in compose["services"].items():
        # Servers always run. `once` restarts stages: Docker would also repeat user errors.
        expected = "no"
        if name in SERVERS:
            expected = "unless-stopped"
        assert service["restart"] == expected, name
        # Without an init process a container may ignore the signal to stop.
        assert service["init"], name
        assert not service["image"].endswith(":latest"), name


def test_stages_share_the_data_and_one_run(compose: dict[str, Any]) -> None:
    services = compose["services"]
    opening_command = services["tracking_run"]["command"]
    stages = set(services) - SERVICES
    for name in stages:
        service = services[name]
        assert "data:/app/data" in service["volumes"], name
        run_id_file = service["environment"]["PU_KD_RUN_ID_FILE"]
        assert run_id_file in opening_command
        assert service["entrypoint"] == ["once", "/app/data/.finished_containers"]
        assert service["environment"]["RETRIES"] == "${STAGE_RETRIES:-2}"


def test_an_empty_variable_leaves_the_extras_out(compose: dict[str, Any]) -> None:
    setting = compose["x-build"]["args"]["EXTRAS"]
    # A shell replaces `${…}` by the same rules as Compose.
    for prefix, expected in [("unset EXTRAS", "export"), ("EXTRAS=", ""), ("EXTRAS=viz", "viz")]:
        command = ["sh", "-c", f'{prefix}; printf %s "{setting}"']
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("https://ada:password@example.org/project.git", "https://example.org/project.git"),
        ("git@example.org:ada/project.git", "git@example.org:ada/project.git"),
        ("ssh://git@example.org/project.git", "ssh://example.org/project.git"),
        # Names of this machine would be in every image.
        ("/home/ada/project", ""),
        ("file:///home/ada/project", ""),
    ],
)
def test_the_label_of_the_source_is_an_address_without_credentials(
    tmp_path: Path, origin: str, expected: str
) -> None:
    for arguments in (["init", "--quiet"], ["remote", "add", "origin", origin]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    more = tmp_path / "more.mk"
    more.write_text("print:\n\t@echo '$(IMAGE_SOURCE)'\n")
    command = ["make", "--silent", f"--makefile={PROJECT / 'Makefile'}", f"--makefile={more}"]
    done = subprocess.run(
        [*command, "print"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


def test_a_gpu_is_given_to_the_stages_tagged_gpu(survey: dict[str, Any]) -> None:
    override = read_yaml("compose.gpu.yaml")
    services = override["services"]
    assert sorted(services) == survey["gpu"]
    for service in services.values():
        reservations = service["deploy"]["resources"]["reservations"]
        [device] = reservations["devices"]
        assert device["capabilities"] == ["gpu"]


def test_the_mirror_changes_only_how_images_are_built(compose: dict[str, Any]) -> None:
    override = read_yaml("compose.mirror.yaml")
    built = set()
    for name, service in compose["services"].items():
        # The others are pulled as they are.
        if "build" in service:
            built.add(name)
    services = override["services"]
    # Of a file that need not be used: without its profile, Compose ignores it.
    head = services.pop("ray_head")
    assert head.keys() == {"profiles", "build"}
    assert head["profiles"] == ["cluster"]
    assert set(services) == built
    for service in services.values():
        assert list(service) == ["build"]
        assert service["build"].items() <= head["build"].items()


def test_the_machines_of_a_cluster_are_confined_and_share_the_data_alone(
    compose: dict[str, Any],
) -> None:
    override = read_yaml("compose.cluster.yaml")
    machines = override["services"]
    assert set(machines) == {"ray_head", "ray_worker"}
    assert machines["ray_worker"]["deploy"]["replicas"] == 2
    stage = compose["services"]["distillation"]
    for name, machine in machines.items():
        # `docker compose up` starts the stages alone, also with this file.
        assert machine["profiles"] == ["cluster"], name
        assert machine["read_only"], name
        assert machine["cap_drop"] == ["ALL"], name
        assert machine["security_opt"] == ["no-new-privileges:true"], name
        assert machine["mem_limit"], name
        assert machine["volumes"] == stage["volumes"], name
        assert "ports" not in machine, name
        # Whoever can connect to Ray can run any code.
        assert machine["environment"]["RAY_AUTH_MODE"] == "token", name
        assert machine["secrets"] == ["ray_token"], name


def test_the_images_of_the_stages_are_without_ray() -> None:
    targets = re.split(r"^FROM ", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    with_ray = [target.split()[:3] for target in targets if "[ray]" in target]
    assert with_ray == [["stages", "AS", "cluster"]]
    # An image without a named target is that of the stages.
    assert targets[-1].strip() == "stages"


def test_no_secret_is_in_the_files() -> None:
    password = re.compile(r"password\s*[:=]\s*[\"']?\w", flags=re.IGNORECASE)
    for path in DOCKER.rglob("*.y*ml"):
        content = path.read_text()
        assert not password.search(content), path
    # Git must not see the folder where operators put their secrets.
    ignored = (PROJECT / ".gitignore").read_text()
    assert "/docker/secrets/" in ignored


def test_another_pipeline_makes_another_file(compose: dict[str, Any]) -> None:
    first = Stage("one", ())
    second = Stage("two", ("one",), frozenset({"gpu"}))
    text = compose_file([first, second])
    content = yaml.safe_load(text)
    services = content["services"]
    assert set(services) == {"one", "two", *SERVICES}
    needed_by_first = services["one"]["depends_on"]
    assert list(needed_by_first) == ["tracking_run"]

    # What surrounds the stages does not depend on them.
    committed = compose["services"]
    for name in SERVICES:
        assert services[name] == committed[name]
