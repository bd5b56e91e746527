"""The exceptions that are shown to a user as a message instead of a traceback, and exit codes."""

from enum import IntEnum

from pu_kd_pipeline.masking import without_credentials


class ExitCode(IntEnum):
    """How the project's commands end; docs/operators.md has the table for those that start them.

    What is no limit or success has a code of `sysexits.h`. Above 128 are signals, such as 137 for
    a process that was killed because of its memory.
    """

    SUCCESS = 0
    LIMIT_MISSED = 1  # `certify`: the student does not keep a limit
    USAGE = 2  # Click's code for options that do not exist
    USER_ERROR = 65  # EX_DATAERR: the same command fails again until its input is changed
    FAILURE = 70  # EX_SOFTWARE: machine, network, another run or a bug; another try may succeed


# What would end the same way again: a scheduler need not try it a second time.
FINAL_EXIT_CODES = (ExitCode.LIMIT_MISSED, ExitCode.USAGE, ExitCode.USER_ERROR)


class InputError(ValueError):
    """Something the user gave (a file, a parameter, a model) cannot be used.

    The message names what is wrong, where, and how to fix it; the command line prints it alone and
    exits with `exit_code`. Credentials of URLs in it are masked: it may be logged, and sent to a
    server.
    """

    exit_code = ExitCode.USER_ERROR

    def __init__(self, message: object = "") -> None:
        super().__init__(without_credentials(str(message)))


class LimitMissedError(InputError):
    """A student does not keep a limit that it is held to."""

    exit_code = ExitCode.LIMIT_MISSED


class UnavailableError(InputError):
    """Something cannot be used now that may be there for the next try.

    Memory, a disk, a server, or a data folder that another run is using.
    """

    exit_code = ExitCode.FAILURE


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if there is none."""
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0]
