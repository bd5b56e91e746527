"""Signals end a run in an orderly way."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

if TYPE_CHECKING:
    from types import FrameType

# Windows has no SIGHUP.
ENDING_SIGNALS = ("SIGTERM", "SIGHUP")


class SignalHooks:
    """Turns SIGTERM and SIGHUP into SystemExit, so that files are closed and tracking ends."""

    def __init__(self) -> None:
        self._previous_handlers: dict[int, Any] = {}

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Handle signals that would end the process at once; leave those already handled."""
        # Python allows signal handlers in the main thread alone.
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ENDING_SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                self._previous_handlers[number] = signal.signal(number, self._exit)

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Restore the previous handlers."""
        self._restore()

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Restore the previous handlers."""
        self._restore()

    def _exit(self, number: int, frame: FrameType | None) -> None:
        # A second signal ends the process at once.
        self._restore()
        raise SystemExit(128 + number)

    def _restore(self) -> None:
        while self._previous_handlers:
            number, handler = self._previous_handlers.popitem()
            signal.signal(number, handler)
