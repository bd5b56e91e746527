"""Calls to MLflow that wait until it answers."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import partial

logger = logging.getLogger(__name__)

SECONDS_BEFORE_RETRY = 30.0  # multiplied by the number of failures in a row
MAX_FAILURES = 3
MAX_WAITING = 10_000
MAX_REASON_LENGTH = 300


class Outbox:
    """Sends calls in order; after a failure they wait, so that the training never stops for MLflow.

    Args:
        uri: address of the tracking store, for messages.
    """

    def __init__(self, uri: str) -> None:
        self.lock = threading.RLock()
        self.is_lost = False
        self._uri = uri
        # When it is full, the oldest calls are dropped: memory is bounded while a server is down.
        self._waiting: deque[partial[None]] = deque(maxlen=MAX_WAITING)
        self._retry_time = 0.0
        self._n_failures = 0

    def send(self, call: partial[None]) -> None:
        """Add a call, then make all waiting calls unless MLflow failed a moment ago."""
        with self.lock:
            if not self._is_repeated(call):
                self._waiting.append(call)
            if time.monotonic() >= self._retry_time:
                self._send_waiting()

    def retry_at_once(self) -> None:
        """Let the next `send` try again, no matter how recently MLflow failed."""
        self._retry_time = 0.0

    def clear(self) -> None:
        """Drop the waiting calls."""
        self._waiting.clear()

    def _is_repeated(self, call: partial[None]) -> bool:
        """Return whether the last waiting call does the same; two flushes in a row are one."""
        # The first argument of every call is the tracker itself.
        has_arguments = len(call.args) > 1 or bool(call.keywords)
        if has_arguments or not self._waiting:
            return False
        return self._waiting[-1].func is call.func

    def _send_waiting(self) -> None:
        try:
            with quiet_mlflow():
                while self._waiting:
                    # Removed only after it succeeded: an exception or a signal keeps it waiting.
                    self._waiting[0]()
                    self._waiting.popleft()
                    self._n_failures = 0
        except Exception as error:
            self._handle_failure(error)
            return
        if self.is_lost:
            logger.info("MLflow at %s answers again; the waiting calls are logged", self._uri)
        self.is_lost = False

    def _handle_failure(self, error: Exception) -> None:
        # One warning per outage, however many calls fail.
        if not self.is_lost:
            logger.warning(
                "MLflow at %s failed; the run continues without tracking and retries later: %s",
                self._uri,
                short_reason(error),
            )
        self.is_lost = True
        self._n_failures += 1
        self._retry_time = time.monotonic() + SECONDS_BEFORE_RETRY * self._n_failures
        if self._n_failures == MAX_FAILURES:
            # What fails every time is given up, so that it does not block the calls behind it.
            self._waiting.popleft()
            self._n_failures = 1


def short_reason(error: Exception) -> str:
    """Return the first line of an error message, shortened."""
    first_line = str(error).strip().split("\n")[0]
    return first_line[:MAX_REASON_LENGTH]


@contextlib.contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Keep the HTTP client's retries out of the log; one warning per outage is enough."""
    http_logger = logging.getLogger("urllib3.connectionpool")
    level = http_logger.level
    http_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        http_logger.setLevel(level)
