"""The stages as containers: the files that Compose and Argo Workflows run, written from the stages of a pipeline.

What is in every service or pod is in the templates beside this file; which there are, what each waits for and which
need a GPU comes from the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

GPU_TAG = "gpu"
COMPOSE, COMPOSE_GPU, ARGO = (
    "compose.yaml.jinja",
    "compose.gpu.yaml.jinja",
    "argo-workflow.yaml.jinja",
)


@dataclass(frozen=True)
class Stage:
    """One container's work: `kedro run --pipeline=<name>`.

    Attributes:
        name: of the pipeline.
        needs: the stages that must have ended before; of `with_direct_needs` only those that no other one waits for.
        tags: of its nodes.
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
        """The name where underscores are not allowed."""
        return self.name.replace("_", "-")


def with_direct_needs(stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages, each after those that it needs, and without the needs that follow from its other needs."""
    from graphlib import TopologicalSorter

    given = {stage.name: stage for stage in stages}
    before: dict[str, set[str]] = {}  # all that must have ended, however indirectly
    order = list(
        TopologicalSorter({name: stage.needs for name, stage in given.items()}).static_order()
    )
    for name in order:
        needs = given[name].needs
        before[name] = {*needs}.union(*(before[need] for need in needs))
    return [
        Stage(
            name,
            tuple(
                need
                for need in sorted(given[name].needs)
                if not any(need in before[o] for o in given[name].needs)
            ),
            given[name].tags,
        )
        for name in order
    ]


def compose_file(stages: Sequence[Stage]) -> str:
    """Return docker/compose.yaml: a service a stage, the MLflow server, PostgreSQL and Kedro-Viz."""
    return _rendered(COMPOSE, stages)


def compose_gpu_file(stages: Sequence[Stage]) -> str:
    """Return docker/compose.gpu.yaml, laid over compose.yaml where there is a GPU."""
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
    """Return an Argo workflow with a task a stage.

    Args:
        stages: as `with_direct_needs` returns them.
        image: of all stages.
        mlflow: address of the tracking server.
        claim: name of the persistent volume claim that is mounted as the folder of all outputs.
        cpus: asked for a pod, such as "2" or "500m".
        memory: asked for a pod and its limit, such as "4Gi".
        gpus: for each stage tagged `gpu`; 0 on clusters without any.
        gpu_memory: like `memory`, for the stages tagged `gpu`.
    """
    options = {"image": image, "mlflow": mlflow, "claim": claim, "cpus": cpus, "memory": memory}
    return _rendered(ARGO, stages, **options, gpus=gpus, gpu_memory=gpu_memory)


def _rendered(template: str, stages: Sequence[Stage], **values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = files(__package__).joinpath("templates", template).read_text(encoding="utf-8")
    return environment.from_string(text).render(stages=stages, template=template, **values)
