"""The stages as containers: files for Compose and Argo Workflows, written from a pipeline's stages.

The templates next to this file hold what every service or pod has. Which stages exist, what each
waits for and which need a GPU comes from the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

GPU_TAG = "gpu"
# Stages that read and write images, without a GPU.
DATA_TAG = "data"
COMPOSE = "compose.yaml.jinja"
COMPOSE_GPU = "compose.gpu.yaml.jinja"
ARGO = "workflow-template.yaml.jinja"


@dataclass(frozen=True)
class Stage:
    """The work of one container: `kedro run --pipeline=<name>`.

    Attributes:
        name: name of the pipeline.
        needs: stages that must have finished before this one starts.
        tags: tags of its nodes.
    """

    name: str
    needs: tuple[str, ...]
    tags: frozenset[str] = frozenset()

    @property
    def uses_gpu(self) -> bool:
        """Whether any of its nodes is tagged `gpu`."""
        return GPU_TAG in self.tags

    @property
    def kind(self) -> str:
        """The kind of machine that it needs: "gpu", "data" or "cpu"."""
        if self.uses_gpu:
            return GPU_TAG
        if DATA_TAG in self.tags:
            return DATA_TAG
        return "cpu"

    @property
    def task(self) -> str:
        """The name for systems that do not allow underscores."""
        return self.name.replace("_", "-")


@dataclass(frozen=True)
class Resources:
    """What a pod requests, in Kubernetes' notation.

    Attributes:
        cpus: CPUs, such as "2" or "500m".
        memory: memory, and its limit, such as "4Gi".
        gpus: number of GPUs.
    """

    cpus: str
    memory: str
    gpus: int = 0


@dataclass(frozen=True)
class Pod:
    """The pods of some stages: a template of the workflow.

    Attributes:
        name: name of the template.
        kind: `kind` of the stages.
        resources: what a pod requests.
        has_artifacts: whether report and certificate are saved when it has finished.
    """

    name: str
    kind: str
    resources: Resources
    has_artifacts: bool


@dataclass(frozen=True)
class Cluster:
    """Settings of the Argo workflow that cannot be parameters of a submission.

    Attributes:
        resources: kind of a stage -> what its pods request; each `Stage.kind` has an entry.
        claim: persistent volume claim that is mounted as the folder of all outputs.
        service_account: account of the pods.
        config_map: ConfigMap with the files of the environment `cluster`; it need not exist.
        secret: secret with environment variables, such as MLflow's password; it need not exist.
        deadline_s: seconds after which a workflow is stopped.
        with_artifacts: whether the last stage saves report and certificate in Argo's artifact
            repository, which not every cluster has.
    """

    resources: Mapping[str, Resources]
    claim: str
    service_account: str
    config_map: str
    secret: str
    deadline_s: int
    with_artifacts: bool


def with_direct_needs(stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages in order of work, each with only its direct needs.

    A need that follows from another need is left out, so that the files show a plain graph.
    """
    from graphlib import TopologicalSorter

    by_name = {}
    needs_of = {}
    for stage in stages:
        by_name[stage.name] = stage
        needs_of[stage.name] = stage.needs
    sorter = TopologicalSorter(needs_of)
    order = list(sorter.static_order())
    # All stages that must have finished before one, however indirectly.
    predecessors: dict[str, set[str]] = {}
    reduced_stages = []
    for name in order:
        stage = by_name[name]
        needs = set(stage.needs)
        indirect_needs: set[str] = set()
        for need in needs:
            indirect_needs |= predecessors[need]
        predecessors[name] = needs | indirect_needs
        # Sorted, so that the same stages always give the same file.
        direct_needs = sorted(needs - indirect_needs)
        reduced_stage = replace(stage, needs=tuple(direct_needs))
        reduced_stages.append(reduced_stage)
    return reduced_stages


def compose_file(stages: Sequence[Stage]) -> str:
    """Return docker/compose.yaml: one service per stage, MLflow, PostgreSQL and Kedro-Viz."""
    return _rendered(COMPOSE, stages)


def compose_gpu_file(stages: Sequence[Stage]) -> str:
    """Return docker/compose.gpu.yaml, which overrides compose.yaml on machines with a GPU."""
    return _rendered(COMPOSE_GPU, stages)


def workflow_template(
    stages: Sequence[Stage],
    cluster: Cluster,
    *,
    image: str,
    mlflow: str,
    final_exit_codes: Sequence[int],
) -> str:
    """Return a WorkflowTemplate for Argo with one task per stage.

    Args:
        stages: stages as `with_direct_needs` returns them.
        cluster: what the workflow finds on the cluster.
        image: default of the parameter `image`, the container image of all stages.
        mlflow: default of the parameter `mlflow`, the address of the tracking server.
        final_exit_codes: exit codes of a stage that is not tried again.
    """
    pod_of = _pods(stages, cluster)
    pods = sorted(set(pod_of.values()), key=lambda pod: pod.name)
    return _rendered(
        ARGO,
        stages,
        cluster=cluster,
        pods=pods,
        pod_of=pod_of,
        final_exit_codes=[int(code) for code in final_exit_codes],
        image=image,
        mlflow=mlflow,
    )


def _pods(stages: Sequence[Stage], cluster: Cluster) -> dict[str, Pod]:
    """Return name of a stage -> its pod; stages of the same kind have the same."""
    needed: set[str] = set()
    for stage in stages:
        needed.update(stage.needs)
    last = [stage.name for stage in stages if stage.name not in needed]
    pods = {}
    for stage in stages:
        # Several last stages would save the same files several times.
        has_artifacts = cluster.with_artifacts and last == [stage.name]
        name = "last-stage" if has_artifacts else f"{stage.kind}-stage"
        pods[stage.name] = Pod(name, stage.kind, cluster.resources[stage.kind], has_artifacts)
    return pods


def _rendered(template: str, stages: Sequence[Stage], **values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    # Strict: a misspelled name in a template is an error, not an empty text.
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    package_files = files(__package__)
    path = package_files.joinpath("templates", template)
    text = path.read_text(encoding="utf-8")
    compiled = environment.from_string(text)
    # Each file names its template in its header.
    return compiled.render(stages=stages, template=template, **values)
