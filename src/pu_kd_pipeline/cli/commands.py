"""`kedro run` with messages: an error that a user can fix shows no traceback, a bug does."""

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
from pu_kd_pipeline.cli.errors import SIGNAL_EXIT_CODE, errors_as_exit_codes, user_message
from pu_kd_pipeline.cli.new_env import new_env
from pu_kd_pipeline.cli.options import command_options, with_pipeline
from pu_kd_pipeline.cli.reference import reference
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.log_lines import write_plain_lines_without_terminal

RUNNERS = "pu_kd_pipeline.incremental.runner"
KEPT = "; what finished nodes wrote is kept"


@functools.wraps(kedro_run.callback)  # type: ignore[arg-type]
def _run(**options: Any) -> Any:
    warnings.filterwarnings("ignore", message="Option '--pipeline' is deprecated")
    # PIL warns of damaged metadata; images that cannot be decoded are in the ingestion report.
    warnings.filterwarnings("ignore", module="PIL")
    write_plain_lines_without_terminal()
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_worth_logging)
    with errors_as_exit_codes(KEPT):
        try:
            _refuse_unknown_pipelines(options)
            options = with_pipeline(options)
            return kedro_run.callback(**_with_runner(**options))  # type: ignore[misc]
        except SystemExit as stop:
            if isinstance(stop.code, int) and stop.code > SIGNAL_EXIT_CODE:
                name = signal.Signals(stop.code - SIGNAL_EXIT_CODE).name
                click.echo(f"Stopped by {name}{KEPT}.", err=True)
            raise


def _with_runner(
    *,
    runner: str | None,
    runner_params: dict[str, Any],
    force: bool = False,
    is_explained: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Return Kedro's options; the default runner is the one that skips up-to-date nodes."""
    if force and runner:
        raise InputError(
            f"--force belongs to the default runner, and --runner names {runner}: "
            "leave one of them out"
        )
    if force:
        runner_params = {**runner_params, "force": True}
    own_runner = f"{RUNNERS}.IncrementalRunner"
    runner = runner or own_runner
    if is_explained:
        # Kedro looks for a name without a module among its own.
        if runner != own_runner:
            runner_params = {"instead_of": runner}
        runner = f"{RUNNERS}.ExplainingRunner"
    return {**options, "runner": runner, "runner_params": runner_params}


# Kedro's own command with all its options, and another body.
run = copy.copy(kedro_run)
run.callback = _run
force_option = click.Option(
    ["--force"], is_flag=True, help="Run every node, also those whose outputs are up to date."
)
run.params = [*command_options(), force_option]


@functools.wraps(kedro_run.callback)  # type: ignore[arg-type]
def _explain(**options: Any) -> Any:
    for name in ("kedro", "kedro_viz"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return _run(**options, is_explained=True)


explain = copy.copy(kedro_run)
explain.callback = _explain
explain.params = command_options()
explain.name = "explain"
explain.help = (
    "Print which nodes a run with the same options would run, why, and how long they take."
)
explain.params = run.params


@click.group(name="pu_kd_pipeline")
def cli() -> None:
    """Commands of this project."""


cli.add_command(run)
cli.add_command(explain)
cli.add_command(containers)
cli.add_command(new_env)
cli.add_command(reference)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Drop Kedro's log of an error whose message is about to be printed for the user."""
    error = sys.exc_info()[1]
    is_serious = record.levelno >= logging.WARNING
    is_kedros = record.name.startswith(("kedro.", RUNNERS))
    if error is None or not (is_serious and is_kedros):
        return True
    return not user_message(error)


def _refuse_unknown_pipelines(options: dict[str, Any]) -> None:
    from pu_kd_pipeline.params.validation import unknown_name
    from pu_kd_pipeline.pipeline_registry import registered_names

    requested = list(options.get("pipelines") or [])
    if options.get("pipeline"):
        requested.insert(0, options["pipeline"])
    known = registered_names()
    for name in requested:
        if name not in known:
            raise InputError(unknown_name(f"the pipeline `{name}`", name, known))
