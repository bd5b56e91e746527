"""What holds for everything that a run does: where relative paths start, and what is shown."""

from __future__ import annotations

import logging
import numbers
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.masking import visible, without_credentials
from pu_kd_pipeline.params.paths import set_project_folder

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext


# Kedro logs each call of a hook here, with all arguments, if its level is DEBUG.
HOOK_CALLS = ("kedro.framework.hooks.manager", "kedro.framework.cli.hooks.manager")


class ProjectHooks:
    """Sets the project folder, and shows log messages without credentials or control characters."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Prepare the process."""
        set_project_folder(context.project_path)
        make_logs_safe()


def make_logs_safe() -> None:
    """Mask credentials and show control characters in every log message from now on.

    Records are changed where they are made: libraries add handlers of their own later.
    """
    make_record = logging.getLogRecordFactory()
    if getattr(make_record, "is_safe", False):
        return

    def make_safe_record(*args: Any, **options: Any) -> logging.LogRecord:
        record = make_record(*args, **options)
        _make_safe(record)
        return record

    make_safe_record.is_safe = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_safe_record)


def _make_safe(record: logging.LogRecord) -> None:
    if record.name in HOOK_CALLS:
        # The lines that follow hold credentials of the catalog, parameters and the command.
        call, _, _ = str(record.msg).strip().partition("\n")
        record.msg = _shown(call)
    if record.name.startswith("kedro."):
        # Kedro's handler puts colors into the arguments, which therefore stay apart.
        if isinstance(record.args, tuple):
            record.args = tuple(map(_safe_argument, record.args))
        return
    # Kedro's handler reads `[red]` in a message as markup, and a name may hold it.
    record.markup = False
    # Arguments that do not fit the message are reported by the handler.
    with suppress(TypeError, ValueError, KeyError):
        record.msg = _shown(record.getMessage())
        record.args = ()


def _safe_argument(argument: Any) -> Any:
    # Numbers have formats of their own, such as `%.3f`.
    if isinstance(argument, numbers.Number):
        return argument
    return _shown(str(argument))


def _shown(text: str) -> str:
    return visible(without_credentials(text))
