"""Log messages on output that is no terminal: each is one line, however long it is."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TextIO

from kedro.logging import RichHandler
from rich import get_console

from pu_kd_pipeline.errors import ExitCode
from pu_kd_pipeline.progress import is_terminal

LINE = logging.Formatter("%(asctime)s %(levelname)-8s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes messages to standard output, with date and time, and without colors or padding."""

    def __init__(self) -> None:
        # Not that of the stream handler, which would set the stream once and for all.
        logging.Handler.__init__(self)
        self.setFormatter(LINE)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The standard output of now, as notebooks, tests and progress bars replace it."""
        # While it shows bars, rich replaces it by an object that writes to its terminal.
        stream: TextIO = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
        return stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message; nothing where standard output is closed, which Python shows by None."""
        if sys.stdout is not None:
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return a message as it is shown; those of Python's warnings end in an empty line."""
        return super().format(record).rstrip()

    def handleError(self, record: logging.LogRecord) -> None:
        """End the process if nobody reads its output any more, as `head` after its last line."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)
            return
        # SystemExit would end only this thread, such as the one that sends metrics. The next
        # message of the main thread fails, too.
        if threading.current_thread() is not threading.main_thread():
            return
        # What is still buffered would raise the error again while Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        raise SystemExit(ExitCode.FAILURE)


def write_plain_lines_without_terminal() -> None:
    """Replace Kedro's handler for terminals where standard output is a file, a pipe or a notebook.

    That handler breaks lines after 80 columns in files, also within paths. Handlers of other
    classes, which a logging configuration may name, stay as they are.
    """
    if is_terminal(sys.stdout):
        return
    # A configuration may give handlers to single loggers, too.
    loggers = [logging.getLogger()]
    for each in tuple(logging.Logger.manager.loggerDict.values()):
        if isinstance(each, logging.Logger):
            loggers.append(each)
    for logger in loggers:
        for position, handler in enumerate(logger.handlers):
            is_kedros = isinstance(handler, RichHandler) and handler.console is get_console()
            if is_kedros:
                logger.handlers[position] = _plain(handler)
    # So do the tracebacks that it installed.
    if getattr(sys.excepthook, "__module__", None) == "rich.traceback":
        sys.excepthook = sys.__excepthook__


def _plain(handler: logging.Handler) -> LineHandler:
    """Return a handler that shows what another one would show."""
    lines = LineHandler()
    lines.setLevel(handler.level)
    for each in handler.filters:
        lines.addFilter(each)
    if handler.formatter is not None:
        lines.setFormatter(handler.formatter)
    return lines
