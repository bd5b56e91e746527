"""The one exception that is shown to a user as a message instead of a traceback."""


class InputError(ValueError):
    """Something the user gave (a file, a parameter, a model) cannot be used.

    The message says what is wrong, where, and how to fix it; the command line prints it alone and
    exits with code 1.
    """
