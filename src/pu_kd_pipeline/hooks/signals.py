"""Signals end a run in an orderly way."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

if TYPE_CHECKING:
    from types import FrameType


ENDING_SIGNALS = ("SIGTERM", "SIGHUP")  # the second one is unknown to Windows


class SignalHooks:
    """Turns SIGTERM and SIGHUP into an exit during a run, so that files are closed and the run's status is told."""

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Take over the signals that would end the process at once; leave those that somebody handles or ignores."""
        if threading.current_thread() is threading.main_thread():
            for signum in (
                getattr(signal, name) for name in ENDING_SIGNALS if hasattr(signal, name)
            ):
                if signal.getsignal(signum) is signal.SIG_DFL:
                    self._previous[signum] = signal.signal(signum, self._exit)

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Give the signals back."""
        self._restore()

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Give the signals back."""
        self._restore()

    def _exit(self, signum: int, frame: FrameType | None) -> None:
        self._restore()  # a second signal ends the process at once
        raise SystemExit(128 + signum)

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
