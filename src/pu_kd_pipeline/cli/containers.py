"""Commands that write the files which run each stage in its own container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

import click

from pu_kd_pipeline.cli.errors import errors_as_exit_codes
from pu_kd_pipeline.errors import FINAL_EXIT_CODES

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
@_argo_option("--service-account", "pu-kd-pipeline", "Service account of the pods.")
@_argo_option("--config-map", "pu-kd-conf", "ConfigMap with the environment `cluster`.")
@_argo_option("--secret", "pu-kd-credentials", "Secret with environment variables.")
@_argo_option("--cpus", "2", "CPUs requested per stage.")
@_argo_option("--memory", "4Gi", "Memory requested per stage, and its limit.")
@_argo_option("--data-cpus", "2", "Like --cpus, for stages tagged data.")
@_argo_option("--data-memory", "4Gi", "Like --memory, for stages tagged data.")
@_argo_option("--gpus", 1, "GPUs per stage tagged gpu.", type=click.IntRange(0))
@_argo_option("--gpu-cpus", "2", "Like --cpus, for stages tagged gpu.")
@_argo_option("--gpu-memory", "16Gi", "Like --memory, for stages tagged gpu.")
@_argo_option(
    "--deadline-hours", 168, "Hours after which a workflow is stopped.", type=click.IntRange(1)
)
@click.option(
    "--artifacts/--no-artifacts",
    default=True,
    show_default=True,
    help="Save report and certificate in Argo's artifact repository, which has to exist.",
)
@OUT
def argo(
    out: TextIO,
    *,
    image: str,
    mlflow: str,
    claim: str,
    service_account: str,
    config_map: str,
    secret: str,
    cpus: str,
    memory: str,
    data_cpus: str,
    data_memory: str,
    gpus: int,
    gpu_cpus: str,
    gpu_memory: str,
    deadline_hours: int,
    artifacts: bool,
) -> None:
    """Write a WorkflowTemplate for Argo, with one pod per stage."""
    from pu_kd_pipeline.deployment.stages import Cluster, Resources, workflow_template

    cluster = Cluster(
        resources={
            "cpu": Resources(cpus, memory),
            "data": Resources(data_cpus, data_memory),
            "gpu": Resources(gpu_cpus, gpu_memory, gpus),
        },
        claim=claim,
        service_account=service_account,
        config_map=config_map,
        secret=secret,
        deadline_s=deadline_hours * 3600,
        with_artifacts=artifacts,
    )
    text = workflow_template(
        _stages(), cluster, image=image, mlflow=mlflow, final_exit_codes=FINAL_EXIT_CODES
    )
    out.write(text)


@containers.command()
@click.option("--env", "-e", envvar="KEDRO_ENV", help="Kedro's configuration environment.")
@OUT
def open_run(env: str | None, out: TextIO) -> None:
    """Open an MLflow run for stages to share, and write its identifier (for MLFLOW_RUN_ID)."""
    from kedro.framework.session import KedroSession

    from pu_kd_pipeline.hooks.tracking import tracking_config
    from pu_kd_pipeline.tracking.run import open_shared_run

    with errors_as_exit_codes():
        session: Any = KedroSession.create(env=env)
        with session:
            context = session.load_context()
            run_id = open_shared_run(
                tracking_config(context),
                project_path=context.project_path,
                environment=context.env or "local",
            )
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
