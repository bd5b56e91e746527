"""Commands that write the files which run each stage in its own container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

import click

from pu_kd_pipeline.cli.errors import exit_with_message

if TYPE_CHECKING:
    from pu_kd_pipeline.deployment.stages import Stage


OUT = click.option(
    "--out", type=click.File("w", lazy=True, atomic=True), default="-", help="File; - prints it."
)


@click.group()
def containers() -> None:
    """Write the files that run each stage in its own container."""


@containers.command()
@click.option("--gpu", is_flag=True, help="What is laid over it on a machine with an NVIDIA GPU.")
@OUT
def compose(gpu: bool, out: TextIO) -> None:
    """Write the Compose file: a service a stage."""
    from pu_kd_pipeline.deployment.stages import compose_file, compose_gpu_file

    out.write((compose_gpu_file if gpu else compose_file)(_stages()))


@containers.command()
@click.option(
    "--image", default="pu-kd-pipeline:cpu", show_default=True, help="Image of all stages."
)
@click.option(
    "--mlflow",
    default="http://mlflow:5000",
    show_default=True,
    help="Address of the tracking server.",
)
@click.option(
    "--claim",
    default="pu-kd-data",
    show_default=True,
    help="Persistent volume claim for all outputs.",
)
@click.option("--cpus", default="2", show_default=True, help="Asked for each stage.")
@click.option(
    "--memory", default="4Gi", show_default=True, help="Asked for each stage, and its limit."
)
@click.option(
    "--gpus", default=1, show_default=True, type=click.IntRange(0), help="For stages tagged gpu."
)
@click.option(
    "--gpu-memory", default="16Gi", show_default=True, help="Like --memory, for stages tagged gpu."
)
@OUT
def argo(out: TextIO, **options: Any) -> None:
    """Write a workflow for Argo: a pod a stage."""
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
            config, environment = tracking_config(context), context.env or "local"
            run_id = open_shared_run(
                config, project_path=context.project_path, environment=environment
            )
    except Exception as error:
        exit_with_message(error)
    out.write(f"{run_id}\n")


def _stages() -> list[Stage]:
    """Return the stages of `full`: its nodes grouped by namespace."""
    from kedro.framework.project import pipelines

    from pu_kd_pipeline.deployment.stages import Stage, with_direct_needs

    full = pipelines["full"]
    tags = {node.name: node.tags for node in full.nodes}
    return with_direct_needs(
        Stage(
            group.name,
            tuple(group.dependencies),
            frozenset[str]().union(*(tags[name] for name in group.nodes)),
        )
        for group in full.group_nodes_by("namespace")
    )
