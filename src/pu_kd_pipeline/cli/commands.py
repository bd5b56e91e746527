"""`kedro run`, told plainly: what a user can mend is one sentence and exit code 1; a traceback is a fault of ours."""

from __future__ import annotations

import copy
import functools
import logging
import signal
import sys
import warnings
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run

from pu_kd_pipeline.cli.containers import containers
from pu_kd_pipeline.cli.errors import exit_with_message, in_words
from pu_kd_pipeline.errors import InputError

RUNNERS = "pu_kd_pipeline.incremental.runner"


@functools.wraps(kedro_run.callback)  # type: ignore[arg-type]
def _run(**options: Any) -> Any:
    warnings.filterwarnings("ignore", message="Option '--pipeline' is deprecated")
    warnings.filterwarnings(
        "ignore", module="PIL"
    )  # of damaged metadata; what cannot be decoded is told in the report
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
    try:
        _refuse_unknown_pipelines(
            [*filter(None, [options.get("pipeline")]), *(options.get("pipelines") or [])]
        )
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
        exit_with_message(error)


def _with_runner(
    *, runner: str | None, runner_params: dict[str, Any], force: bool = False, **options: Any
) -> dict[str, Any]:
    """Return Kedro's options, with the runner that skips what is up to date where none is named."""
    if force and runner:
        raise InputError(
            f"--force belongs to the default runner, and --runner names {runner}: leave one of them out"
        )
    params = {**runner_params, "force": True} if force else runner_params
    return {**options, "runner": runner or f"{RUNNERS}.IncrementalRunner", "runner_params": params}


run = copy.copy(kedro_run)  # Kedro's own command with all its options, and another body
run.callback = _run
run.params = [
    *kedro_run.params,
    click.Option(
        ["--force"], is_flag=True, help="Run every node, also those whose outputs are up to date."
    ),
]


@functools.wraps(kedro_run.callback)  # type: ignore[arg-type]
def _explain(**options: Any) -> Any:
    for talkative in ("kedro", "kedro_viz"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    return _run(**{**options, "runner": f"{RUNNERS}.ExplainingRunner"})


explain = copy.copy(kedro_run)
explain.callback = _explain
explain.name, explain.help = (
    "explain",
    "Print which nodes a run with the same options would run, and why.",
)


@click.group(name="pu_kd_pipeline")
def cli() -> None:
    """Commands of this project."""


cli.add_command(run)
cli.add_command(explain)
cli.add_command(containers)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop what Kedro logs on its way out of an error that is about to be told in one sentence."""
    error = sys.exc_info()[1]
    return not (
        record.levelno >= logging.WARNING
        and record.name.startswith(("kedro.", RUNNERS))
        and error
        and in_words(error)
    )


def _refuse_unknown_pipelines(names: list[str]) -> None:
    from pu_kd_pipeline.params.validation import unknown_name
    from pu_kd_pipeline.pipeline_registry import registered_names

    known = registered_names()
    for name in names:
        if name not in known:
            raise InputError(unknown_name(f"the pipeline `{name}`", name, known))
