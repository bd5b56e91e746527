"""Errors as messages about what a user can fix."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from kedro.config import MissingConfigException
from kedro.io.core import DatasetError
from kedro.validation.exceptions import ParameterValidationError
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pu_kd_pipeline.errors import ExitCode, InputError
from pu_kd_pipeline.masking import visible, without_credentials

# Errors of these types are about configuration files that the user wrote.
CONFIGURATION_ERRORS = (
    MissingConfigException,
    ParameterValidationError,
    OmegaConfBaseException,
    YAMLError,
)
# A `DatasetError` raised by one of these functions is about the catalog file, not about the data.
CATALOG_FUNCTIONS = ("from_config", "parse_dataset_definition", "_load_obj", "_resolve_credentials")
# Errors raised by these modules of Kedro are about the options of the command.
CHECKING_MODULES = ("kedro.config", "kedro.pipeline.pipeline", "kedro.runner.runner", "kedro.utils")
# The shell's convention: a process that a signal ended has this exit code plus the signal's number.
SIGNAL_EXIT_CODE = 128
# A list of faults may be long, but an error that quotes a whole file is cut off.
_MAX_MESSAGE_LENGTH = 20_000


@contextmanager
def errors_as_exit_codes(kept: str = "") -> Iterator[None]:
    """End the command with a message and an exit code after an error, and after Ctrl-C.

    Args:
        kept: what the message after Ctrl-C adds to it.
    """
    try:
        yield
    except KeyboardInterrupt:
        # Click itself would exit with 1, the code of a limit that is missed.
        click.echo(f"Stopped by Ctrl-C{kept}.", err=True)
        sys.exit(SIGNAL_EXIT_CODE + signal.SIGINT)
    except Exception as error:
        exit_with_message(error)


def exit_with_message(error: Exception) -> NoReturn:
    """Print what the user can fix, or the traceback of a bug, and exit with the code for it."""
    message = user_message(error)
    if message is None:
        # Python itself would exit with 1, the code of a limit that is missed.
        sys.excepthook(type(error), error, error.__traceback__)
    else:
        # Names in it come from data and files: none may hide, forge or give away anything.
        shown = visible(without_credentials(message))
        click.echo(f"Error: {shown}", err=True)
    sys.exit(exit_code(error))


def exit_code(error: BaseException) -> ExitCode:
    """Return the code that a command exits with after an error; errors.py has their meanings."""
    for each in _chain(error):
        if is_disk_full(each):
            return ExitCode.FAILURE
        if isinstance(each, InputError):
            return each.exit_code
        if _message_of(each) is not None:
            return ExitCode.USER_ERROR
    return ExitCode.FAILURE


def user_message(error: BaseException) -> str | None:
    """Return the message for the user, or None for a bug, which needs its traceback."""
    for each in _chain(error):
        message = _message_of(each)
        if message is not None:
            return message
    return None


def _message_of(error: BaseException) -> str | None:
    """Return the message for the user if they can fix this error; its causes are not looked at."""
    if isinstance(error, InputError | ParameterValidationError):
        return _printable(str(error))
    if is_disk_full(error):
        return (
            f"There is no space left on the disk ({error}). Free some, or name another folder with "
            "--params=data=/another/folder; the same command then resumes, and what finished nodes "
            "wrote is kept."
        )
    if isinstance(error, IsADirectoryError) and error.filename2:
        # What was about to replace it has the name of a file.
        return _printable(
            f"{error.filename2} is a folder, and a file of this name has to be written: move it "
            "away, and run the same command again."
        )
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
        obstacle = _file_on_the_way(Path(os.fsdecode(error.filename)))
        if obstacle is not None:
            return _printable(
                f"{obstacle} is a file, and a folder of this name has to be made: move it away, "
                "and run the same command again."
            )
    file = _configuration_file(error)
    if file or isinstance(error, CONFIGURATION_ERRORS):
        return _printable(f"The configuration cannot be read.\n{_complaint(error, file)}")
    frame = _raising_frame(error)
    if frame is None:
        return None
    if isinstance(error, DatasetError) and frame.f_code.co_name in CATALOG_FUNCTIONS:
        return _printable(f"The catalog cannot be used.\n{error}")
    module = str(frame.f_globals.get("__name__", ""))
    is_check = module.startswith(CHECKING_MODULES)
    if is_check and isinstance(error, ValueError | KeyError | AttributeError):
        if error.args:
            # The text of a KeyError has quotes around it; its argument has none.
            return str(error.args[0])
        return str(error)
    return None


def _file_on_the_way(path: Path) -> Path | None:
    """Return the file among a path and its parents, where folders are expected; None: all are."""
    for each in (path, *path.parents):
        if each.is_file():
            return each
    return None


def is_disk_full(error: BaseException) -> bool:
    """Return whether the disk or a quota is full."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    # Libraries in other languages, such as Arrow, pass on only the text of the system's error.
    return "No space left on device" in str(error)


def _configuration_file(error: BaseException) -> str | None:
    """Return the configuration file that Kedro was reading when the error was raised, if any."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        # Kedro names no file for most errors; its local variables tell which one it was reading.
        # A method of ours around Kedro's has the same name and other variables.
        is_kedros = "config_per_file" in frame.f_locals
        if frame.f_code.co_name != "_read_dir_configs" or not is_kedros:
            continue
        contents = frame.f_locals["config_per_file"]
        for file, content in contents.items():
            if not isinstance(content, DictConfig):
                return str(file)
        current = frame.f_locals.get("config_filepath")
        if current is None or current in contents:
            return None
        return str(current)
    return None


def _complaint(error: BaseException, file: str | None) -> str:
    """Return what is wrong with a configuration file."""
    if file is None or file in str(error):
        return str(error)
    if isinstance(error, RecursionError):
        return f"{file} contains itself, or is nested too deeply"
    if isinstance(error, AttributeError | OmegaConfBaseException) and "attribute" in str(error):
        return f"{file} has no keys with values"
    return f"{file}: {error}"


def _printable(text: str) -> str:
    """Return a text that every terminal can print, shortened if it is very long."""
    if len(text) > _MAX_MESSAGE_LENGTH:
        text = f"{text[:_MAX_MESSAGE_LENGTH]}…"
    return text.encode("utf-8", "backslashreplace").decode()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes; Kedro's own errors are often raised without naming theirs."""
    current: BaseException | None = error
    while current is not None:
        yield current
        cause = current.__cause__
        is_kedros = type(current).__module__.startswith("kedro.")
        if cause is None and is_kedros and not current.__suppress_context__:
            cause = current.__context__
        current = cause


def _raising_frame(error: BaseException) -> FrameType | None:
    """Return the frame of the code that raised the error; None if it was never raised."""
    frame = None
    for each, _ in traceback.walk_tb(error.__traceback__):
        frame = each
    return frame
