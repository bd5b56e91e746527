"""The one exception that is shown to a user as a message instead of a traceback."""

from pu_kd_pipeline.masking import without_credentials


class InputError(ValueError):
    """Something the user gave (a file, a parameter, a model) cannot be used.

    The message says what is wrong, where, and how to fix it; the command line prints it alone and
    exits with code 1. Credentials of URLs in it are masked: it may be logged, and sent to a server.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(without_credentials(str(message)))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if there is none."""
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0]
