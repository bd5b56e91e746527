"""The stages as containers: files for Compose and Argo Workflows, written from a pipeline's stages.

The templates next to this file hold what every service or pod has. Which stages exist, what each
waits for and which need a GPU comes from the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

GPU_TAG = "gpu"
COMPOSE = "compose.yaml.jinja"
COMPOSE_GPU = "compose.gpu.yaml.jinja"
ARGO = "argo-workflow.yaml.jinja"


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
    def task(self) -> str:
        """The name for systems that do not allow underscores."""
        return self.name.replace("_", "-")


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


def argo_workflow(
    stages: Sequence[Stage],
    *,
    image: str,
    mlflow: str,
    claim: str,
    cpus: str,
    memory: str,
    gpus: int,
    gpu_memory: str,
) -> str:
    """Return an Argo workflow with one task per stage.

    Args:
        stages: stages as `with_direct_needs` returns them.
        image: container image of all stages.
        mlflow: address of the tracking server.
        claim: name of the persistent volume claim that is mounted as the folder of all outputs.
        cpus: CPUs requested per pod, such as "2" or "500m".
        memory: memory requested per pod, and its limit, such as "4Gi".
        gpus: GPUs per stage tagged `gpu`; 0 on clusters without any.
        gpu_memory: like `memory`, for the stages tagged `gpu`.
    """
    return _rendered(
        ARGO,
        stages,
        image=image,
        mlflow=mlflow,
        claim=claim,
        cpus=cpus,
        memory=memory,
        gpus=gpus,
        gpu_memory=gpu_memory,
    )


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
