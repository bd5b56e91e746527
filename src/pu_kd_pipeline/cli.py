"""`kedro run`, told plainly: what a user can mend is one sentence and exit code 1; a traceback is a fault of ours."""

from __future__ import annotations

import copy
import errno
import functools
import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click
from kedro.config import MissingConfigException
from kedro.framework.cli.project import run as kedro_run
from kedro.io.core import DatasetError
from kedro.validation.exceptions import ParameterValidationError
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pu_kd_pipeline.errors import InputError

if TYPE_CHECKING:
    from pu_kd_pipeline.infra.containers import Stage

# An error of these types, or raised by these modules of Kedro, is about what the user wrote.
CONFIGURATION_ERRORS = (MissingConfigException, ParameterValidationError, OmegaConfBaseException, YAMLError)
RUNNERS = "pu_kd_pipeline.runner"
DEFINING_DATASETS = ("from_config", "parse_dataset_definition", "_load_obj", "_resolve_credentials")
_MOST_LETTERS = 20_000  # of what is told: a list of faults may be long, a file's content is not told
CHECKING_MODULES = ("kedro.config", "kedro.pipeline.pipeline", "kedro.runner.runner", "kedro.utils")


@functools.wraps(kedro_run.callback)  # type: ignore[arg-type]
def _run(**options: Any) -> Any:
    warnings.filterwarnings("ignore", message="Option '--pipeline' is deprecated")
    warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata; what cannot be decoded is told in the report
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
    try:
        _refuse_unknown_pipelines([*filter(None, [options.get("pipeline")]), *(options.get("pipelines") or [])])
        return kedro_run.callback(**_with_runner(**options))  # type: ignore[misc]
    except KeyboardInterrupt:
        click.echo("Stopped by Ctrl-C; what finished nodes wrote is kept.", err=True)
        sys.exit(128 + signal.SIGINT)
    except SystemExit as stop:
        if isinstance(stop.code, int) and stop.code > 128:
            name = signal.Signals(stop.code - 128).name
            click.echo(f"Stopped by {name}; what finished nodes wrote is kept.", err=True)
        raise
    except Exception as error:
        _end_with_a_sentence(error)


def _with_runner(
    *, runner: str | None, runner_params: dict[str, Any], force: bool = False, **options: Any
) -> dict[str, Any]:
    """Return Kedro's options, with the runner that skips what is up to date where none is named."""
    if force and runner:
        raise InputError(f"--force belongs to the default runner, and --runner names {runner}: leave one of them out")
    params = {**runner_params, "force": True} if force else runner_params
    return {**options, "runner": runner or f"{RUNNERS}.IncrementalRunner", "runner_params": params}


def _end_with_a_sentence(error: Exception) -> NoReturn:
    """Tell what the user can mend and exit with code 1; raise what is a fault of ours."""
    sentence = in_words(error)
    if sentence is None:
        raise error
    click.echo(f"Error: {sentence}", err=True)
    sys.exit(1)


run = copy.copy(kedro_run)  # Kedro's own command with all its options, and another body
run.callback = _run
run.params = [
    *kedro_run.params,
    click.Option(["--force"], is_flag=True, help="Run every node, also those whose outputs are up to date."),
]


@functools.wraps(kedro_run.callback)  # type: ignore[arg-type]
def _explain(**options: Any) -> Any:
    for talkative in ("kedro", "kedro_viz"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    return _run(**{**options, "runner": f"{RUNNERS}.ExplainingRunner"})


explain = copy.copy(kedro_run)
explain.callback = _explain
explain.name, explain.help = "explain", "Print which nodes a run with the same options would run, and why."


@click.group(name="pu_kd_pipeline")
def cli() -> None:
    """Commands of this project."""


cli.add_command(run)
cli.add_command(explain)

OUT = click.option("--out", type=click.File("w", lazy=True, atomic=True), default="-", help="File; - prints it.")


@cli.group()
def containers() -> None:
    """Write the files that run each stage in its own container."""


@containers.command()
@click.option("--gpu", is_flag=True, help="What is laid over it on a machine with an NVIDIA GPU.")
@OUT
def compose(gpu: bool, out: TextIO) -> None:
    """Write the Compose file: a service a stage."""
    from pu_kd_pipeline.infra.containers import compose_file, compose_gpu_file

    out.write((compose_gpu_file if gpu else compose_file)(_stages()))


@containers.command()
@click.option("--image", default="pu-kd-pipeline:cpu", show_default=True, help="Image of all stages.")
@click.option("--mlflow", default="http://mlflow:5000", show_default=True, help="Address of the tracking server.")
@click.option("--claim", default="pu-kd-data", show_default=True, help="Persistent volume claim for all outputs.")
@click.option("--cpus", default="2", show_default=True, help="Asked for each stage.")
@click.option("--memory", default="4Gi", show_default=True, help="Asked for each stage, and its limit.")
@click.option("--gpus", default=1, show_default=True, type=click.IntRange(0), help="For stages tagged gpu.")
@click.option("--gpu-memory", default="16Gi", show_default=True, help="Like --memory, for stages tagged gpu.")
@OUT
def argo(out: TextIO, **options: Any) -> None:
    """Write a workflow for Argo: a pod a stage."""
    from pu_kd_pipeline.infra.containers import argo_workflow

    out.write(argo_workflow(_stages(), **options))


@containers.command()
@click.option("--env", "-e", envvar="KEDRO_ENV", help="Kedro's configuration environment.")
@OUT
def open_run(env: str | None, out: TextIO) -> None:
    """Open an MLflow run for stages to share, and write its identifier (for MLFLOW_RUN_ID)."""
    from kedro.framework.session import KedroSession

    from pu_kd_pipeline.hooks import tracking_config
    from pu_kd_pipeline.infra.tracking import open_shared_run

    try:
        session: Any = KedroSession.create(env=env)
        with session:
            context = session.load_context()
            config, environment = tracking_config(context), context.env or "local"
            run_id = open_shared_run(config, project_path=context.project_path, environment=environment)
    except Exception as error:
        _end_with_a_sentence(error)
    out.write(f"{run_id}\n")


def _stages() -> list[Stage]:
    """Return the stages of `full`: its nodes grouped by namespace."""
    from kedro.framework.project import pipelines

    from pu_kd_pipeline.infra.containers import Stage, with_direct_needs

    full = pipelines["full"]
    tags = {node.name: node.tags for node in full.nodes}
    return with_direct_needs(
        Stage(group.name, tuple(group.dependencies), frozenset[str]().union(*(tags[name] for name in group.nodes)))
        for group in full.group_nodes_by("namespace")
    )


def in_words(error: BaseException) -> str | None:
    """Return what to tell the user, or None where the error is a fault of ours and needs its traceback."""
    for each in _chain(error):
        if isinstance(each, InputError | ParameterValidationError):
            return _printable(str(each))
        if is_disk_full(each):
            return (
                f"There is no space left on the disk ({each}). Free some, or name another folder with "
                "--params=data=/another/folder; the same command then goes on, and what finished nodes wrote is kept."
            )
        if (file := _file_at_fault(each)) or isinstance(each, CONFIGURATION_ERRORS):
            return _printable(f"The configuration cannot be read.\n{_complaint(each, file)}")
        if isinstance(each, DatasetError) and _function_that_raised(each) in DEFINING_DATASETS:
            return _printable(f"The catalog cannot be used.\n{each}")
        if isinstance(each, ValueError | KeyError | AttributeError) and _raised_by(each).startswith(CHECKING_MODULES):
            return str(each.args[0] if each.args else each)
    return None


def is_disk_full(error: BaseException) -> bool:
    """Return whether a disk or a quota was exceeded; libraries in other languages say so in words alone."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def _file_at_fault(error: BaseException) -> str | None:
    """Return the configuration file that Kedro was reading when the error came, as far as it can be told."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_read_dir_configs":
            read = frame.f_locals.get("config_per_file", {})
            without_keys = [file for file, content in read.items() if not isinstance(content, DictConfig)]
            current = frame.f_locals.get("config_filepath")
            return next(map(str, without_keys), None if current is None or current in read else str(current))
    return None


def _complaint(error: BaseException, file: str | None) -> str:
    """Return what is wrong with a configuration file."""
    if file is None or file in str(error):
        return str(error)
    if isinstance(error, RecursionError):
        return f"{file} holds itself, or is nested too deeply"
    if isinstance(error, AttributeError | OmegaConfBaseException) and "attribute" in str(error):
        return f"{file} holds no keys with values"
    return f"{file}: {error}"


def _printable(text: str) -> str:
    """Return a text that any terminal takes, and of a long one the beginning."""
    text = text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"
    return text.encode("utf-8", "backslashreplace").decode()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it; of Kedro's own errors also what they were raised in the wake of."""
    current: BaseException | None = error
    while current is not None:
        yield current
        is_kedros = type(current).__module__.startswith("kedro.") and not current.__suppress_context__
        current = current.__cause__ or (current.__context__ if is_kedros else None)


def _raised_by(error: BaseException) -> str:
    """Return the module whose code raised the error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def _function_that_raised(error: BaseException) -> str:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_code.co_name if frames else ""


def _is_news(record: logging.LogRecord) -> bool:
    """Drop what Kedro logs on its way out of an error that is about to be told in one sentence."""
    error = sys.exc_info()[1]
    return not (
        record.levelno >= logging.WARNING and record.name.startswith(("kedro.", RUNNERS)) and error and in_words(error)
    )


def _refuse_unknown_pipelines(names: list[str]) -> None:
    from pu_kd_pipeline.infra.parameter_errors import unknown_name
    from pu_kd_pipeline.pipeline_registry import registered_names

    known = registered_names()
    for name in names:
        if name not in known:
            raise InputError(unknown_name(f"the pipeline `{name}`", name, known))
