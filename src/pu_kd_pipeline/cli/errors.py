"""Errors as sentences: what a user can fix."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

import click
from kedro.config import MissingConfigException
from kedro.io.core import DatasetError
from kedro.validation.exceptions import ParameterValidationError
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pu_kd_pipeline.errors import InputError

# An error of these types, or raised by these modules of Kedro, is about what the user wrote.
CONFIGURATION_ERRORS = (
    MissingConfigException,
    ParameterValidationError,
    OmegaConfBaseException,
    YAMLError,
)
DEFINING_DATASETS = ("from_config", "parse_dataset_definition", "_load_obj", "_resolve_credentials")
_MOST_LETTERS = (
    20_000  # of what is told: a list of faults may be long, a file's content is not told
)
CHECKING_MODULES = ("kedro.config", "kedro.pipeline.pipeline", "kedro.runner.runner", "kedro.utils")


def exit_with_message(error: Exception) -> NoReturn:
    """Tell what the user can mend and exit with code 1; raise what is a fault of ours."""
    sentence = in_words(error)
    if sentence is None:
        raise error
    click.echo(f"Error: {sentence}", err=True)
    sys.exit(1)


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
        if isinstance(each, ValueError | KeyError | AttributeError) and _raised_by(each).startswith(
            CHECKING_MODULES
        ):
            return str(each.args[0] if each.args else each)
    return None


def is_disk_full(error: BaseException) -> bool:
    """Return whether a disk or a quota was exceeded; libraries in other languages say so in words alone."""
    return getattr(error, "errno", None) in (
        errno.ENOSPC,
        errno.EDQUOT,
    ) or "No space left on device" in str(error)


def _file_at_fault(error: BaseException) -> str | None:
    """Return the configuration file that Kedro was reading when the error came, as far as it can be told."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_read_dir_configs":
            read = frame.f_locals.get("config_per_file", {})
            without_keys = [
                file for file, content in read.items() if not isinstance(content, DictConfig)
            ]
            current = frame.f_locals.get("config_filepath")
            return next(
                map(str, without_keys), None if current is None or current in read else str(current)
            )
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
        is_kedros = (
            type(current).__module__.startswith("kedro.") and not current.__suppress_context__
        )
        current = current.__cause__ or (current.__context__ if is_kedros else None)


def _raised_by(error: BaseException) -> str:
    """Return the module whose code raised the error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def _function_that_raised(error: BaseException) -> str:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_code.co_name if frames else ""
