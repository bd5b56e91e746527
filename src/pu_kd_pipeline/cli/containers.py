"""Commands that write the files which run each stage in its own container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

import click

from pu_kd_pipeline.cli.errors import exit_with_message

if TYPE_CHECKING:
    from pu_kd_pipeline.deployment.stages import Stage

OUT = click.option(
    "--out",
    type=click.File("w", lazy=True, atomic=True),
    default="-",
    help="File to write; - prints it.",
)


@click.group()
def containers() -> None:
    """Write the files that run each stage in its own container."""


@containers.command()
@click.option(
    "--gpu", is_flag=True, help="The file that overrides it on a machine with an NVIDIA GPU."
)
@OUT
def compose(gpu: bool, out: TextIO) -> None:
    """Write the Compose file, with one service per stage."""
    from pu_kd_pipeline.deployment.stages import compose_file, compose_gpu_file

    stages = _stages()
    if gpu:
        out.write(compose_gpu_file(stages))
    else:
        out.write(compose_file(stages))


def _argo_option(name: str, default: Any, help_text: str, **settings: Any) -> Any:
    return click.option(name, default=default, show_default=True, help=help_text, **settings)


@containers.command()
@_argo_option("--image", "pu-kd-pipeline:cpu", "Image of all stages.")
@_argo_option("--mlflow", "http://mlflow:5000", "Address of the tracking server.")
@_argo_option("--claim", "pu-kd-data", "Persistent volume claim for all outputs.")
@_argo_option("--cpus", "2", "CPUs requested per stage.")
@_argo_option("--memory", "4Gi", "Memory requested per stage, and its limit.")
@_argo_option("--gpus", 1, "GPUs per stage tagged gpu.", type=click.IntRange(0))
@_argo_option("--gpu-memory", "16Gi", "Like --memory, for stages tagged gpu.")
@OUT
def argo(out: TextIO, **options: Any) -> None:
    """Write a workflow for Argo, with one pod per stage."""
    from pu_kd_pipeline.deployment.stages import argo_workflow

    out.write(argo_workflow(_stages(), **options))


@containers.command()
@click.option("--env", "-e", envvar="KEDRO_ENV", help="Kedro's configuration environment.")
@OUT
def open_run(env: str | None, out: TextIO) -> None:
    """Open an MLflow run for stages to share, and write its identifier (for MLFLOW_RUN_ID)."""
    from kedro.framework.session import KedroSession

    from pu_kd_pipeline.hooks.tracking import tracking_config
    from pu_kd_pipeline.tracking.run import open_shared_run

    try:
        session: Any = KedroSession.create(env=env)
        with session:
            context = session.load_context()
            run_id = open_shared_run(
                tracking_config(context),
                project_path=context.project_path,
                environment=context.env or "local",
            )
    except Exception as error:
        exit_with_message(error)
    out.write(f"{run_id}\n")


def _stages() -> list[Stage]:
    """Return the stages of `full`: its nodes grouped by namespace."""
    from kedro.framework.project import pipelines

    from pu_kd_pipeline.deployment.stages import Stage, with_direct_needs

    full = pipelines["full"]
    tags_of_nodes = {node.name: node.tags for node in full.nodes}
    stages = []
    for group in full.group_nodes_by("namespace"):
        tags: set[str] = set()
        for node in group.nodes:
            tags |= tags_of_nodes[node]
        stages.append(Stage(group.name, tuple(group.dependencies), frozenset(tags)))
    return with_direct_needs(stages)
