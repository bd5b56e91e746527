"""The kustomize base and its example: complete, consistent, and valid configuration."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.validation import check_parameters
from tests.configuration import BLOCKS, kedro_parameters
from tests.deployment.builders import DOCKER, PROJECT

BASE = DOCKER / "kustomize" / "base"
EXAMPLE = DOCKER / "kustomize" / "example"
Documents = dict[str, dict[str, Any]]


def by_kind(text: str) -> Documents:
    """Return kind -> document; each kind occurs once."""
    documents: Documents = {}
    for document in yaml.safe_load_all(text):
        assert document["kind"] not in documents
        documents[document["kind"]] = document
    return documents


@pytest.fixture(scope="module")
def base() -> Documents:
    """The resources of the base as they are committed."""
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    texts = [(BASE / name).read_text() for name in listed["resources"]]
    used = {"kustomization.yaml", *listed["resources"], *listed["configurations"]}
    assert {path.name for path in BASE.iterdir()} == used
    return by_kind("\n---\n".join(texts))


def rendered_by_kustomize(folder: Path) -> Documents:
    """Return the resources of an overlay as kustomize writes them."""
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build"]
    else:
        pytest.skip("neither kubectl nor kustomize is installed")
    result = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return by_kind(result.stdout)


@pytest.fixture(scope="module")
def rendered() -> Documents:
    """The example as it is applied."""
    return rendered_by_kustomize(EXAMPLE)


def named_volumes(documents: Documents) -> dict[str, Any]:
    volumes = documents["WorkflowTemplate"]["spec"]["volumes"]
    return {volume["name"]: volume for volume in volumes}


def test_the_workflow_finds_its_volume_and_its_account(base: Documents) -> None:
    from hera.workflows.models import PersistentVolumeClaim

    claim = base["PersistentVolumeClaim"]
    checked = PersistentVolumeClaim.model_validate(claim)
    assert checked.model_dump(by_alias=True, exclude_unset=True, mode="json") == claim
    mounted = named_volumes(base)["data"]["persistentVolumeClaim"]["claimName"]
    assert mounted == claim["metadata"]["name"]

    account = base["WorkflowTemplate"]["spec"]["serviceAccountName"]
    assert account == base["ServiceAccount"]["metadata"]["name"]
    [subject] = base["RoleBinding"]["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": account}
    assert base["RoleBinding"]["roleRef"]["name"] == base["Role"]["metadata"]["name"]


def test_pods_are_allowed_only_to_report_their_outputs(base: Documents) -> None:
    [rule] = base["Role"]["rules"]
    assert rule == {
        "apiGroups": ["argoproj.io"],
        "resources": ["workflowtaskresults"],
        "verbs": ["create", "patch"],
    }


def test_the_example_changes_parameters_that_the_workflow_has(base: Documents) -> None:
    parameters = base["WorkflowTemplate"]["spec"]["arguments"]["parameters"]
    patches = yaml.safe_load((EXAMPLE / "kustomization.yaml").read_text())["patches"]
    [patch] = [each for each in patches if each["target"]["kind"] == "WorkflowTemplate"]
    assert patch["target"]["name"] == base["WorkflowTemplate"]["metadata"]["name"]
    tested = set()
    for operation in yaml.safe_load(patch["patch"]):
        *_, number, field = operation["path"].split("/")
        if operation["op"] == "test":
            # kustomize compares the name, too.
            assert parameters[int(number)][field] == operation["value"]
            tested.add(number)
        else:
            assert operation["op"] == "replace"
            assert field == "value"
            assert number in tested


def test_the_configuration_of_the_example_is_valid(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(PROJECT / "conf" / "base", conf / "base")
    shutil.copytree(EXAMPLE / "conf", conf / "cluster")
    parameters = kedro_parameters("cluster", conf)
    blocks = check_parameters(parameters, BLOCKS, files={}, given={})
    distillation = blocks["distillation"]
    assert isinstance(distillation, DistillationParams)
    assert distillation.compute.n_threads == 2


def test_kustomize_gives_the_workflow_the_configuration_of_its_time(rendered: Documents) -> None:
    name = rendered["ConfigMap"]["metadata"]["name"]
    # The hash of its files: a workflow that is running does not see other ones.
    assert name.startswith("pu-kd-conf-")
    conf = named_volumes(rendered)["conf"]["configMap"]
    assert conf == {"name": name, "optional": True}
    assert set(rendered["ConfigMap"]["data"]) == {"globals.yml"}


def test_kustomize_applies_all_changes_of_the_example(rendered: Documents) -> None:
    parameters = rendered["WorkflowTemplate"]["spec"]["arguments"]["parameters"]
    values = {each["name"]: each["value"] for each in parameters}
    assert values["image"] == "registry.example.org/pu-kd-pipeline:cu130"
    assert yaml.safe_load(values["gpu-node-selector"]) == {"nvidia.com/gpu.present": "true"}
    requests = rendered["PersistentVolumeClaim"]["spec"]["resources"]["requests"]
    assert requests == {"storage": "200Gi"}
    for document in rendered.values():
        assert document["metadata"]["namespace"] == "pu-kd"


def test_a_copy_under_another_name_has_its_own_volume_and_mutex(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "base")
    overlay = tmp_path / "second"
    overlay.mkdir()
    content = {"resources": ["../base"], "nameSuffix": "-2"}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(content))
    second = rendered_by_kustomize(overlay)
    spec = second["WorkflowTemplate"]["spec"]
    assert second["PersistentVolumeClaim"]["metadata"]["name"] == "pu-kd-data-2"
    claimed = named_volumes(second)["data"]["persistentVolumeClaim"]["claimName"]
    assert claimed == "pu-kd-data-2"
    assert spec["synchronization"]["mutexes"] == [{"name": claimed}]
    assert spec["serviceAccountName"] == second["ServiceAccount"]["metadata"]["name"]
