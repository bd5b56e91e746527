"""Options of `kedro run` that are read in another way than Kedro reads them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import _config_file_callback
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.given import GivenParameters, parse_given
from pu_kd_pipeline.pipeline_registry import DEFAULT

# What `kedro run` without a name runs.
FULL = "full"
# The section of a file for `--config`, also for commands with other names.
_SECTION = "run"


def command_options() -> list[click.Parameter]:
    """Return the options of `kedro run`."""
    callbacks = {"params": _params, "config": _config_file}
    options: list[click.Parameter] = []
    for option in kedro_run.params:
        if option.name in callbacks:
            # A copy: Kedro's own command stays as it is.
            option = copy.copy(option)
            option.callback = callbacks[option.name]
        options.append(option)
    return options


def with_pipeline(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with the name of the pipeline, also if none or the default was named.

    Kedro checks and fills in the parameters of all pipelines for its default.
    """
    names = list(options.get("pipelines") or [])
    name = options.get("pipeline")
    if name and names:
        return dict(options)  # which Kedro refuses
    if name:
        names = [name]
    if not names:
        names = [DEFAULT]
    names = [FULL if name == DEFAULT else name for name in names]
    return {**options, "pipeline": None, "pipelines": names}


def _params(context: click.Context, option: click.Parameter, value: Any) -> GivenParameters:
    """Return the values of `--params`, or of `params` in the file of `--config`."""
    if isinstance(value, Mapping):
        return GivenParameters(value)
    try:
        return parse_given(value or "")
    except InputError as exc:
        raise click.BadParameter(str(exc), context, option) from exc


def _config_file(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Take options from the section `run` of a file."""
    name = context.info_name
    # Kedro looks for a section with the name of the command: `explain`, or that of a package.
    context.info_name = _SECTION
    try:
        _config_file_callback(context, option, value)
    except (KeyError, AttributeError, TypeError, ValueError) as exc:
        fault = f"{value} has no section `{_SECTION}` with options, such as `params: {{seed: 1}}`"
        raise click.BadParameter(fault, context, option) from exc
    except (OmegaConfBaseException, YAMLError) as exc:
        raise click.BadParameter(f"{value} cannot be read: {exc}", context, option) from exc
    finally:
        context.info_name = name
    return value
