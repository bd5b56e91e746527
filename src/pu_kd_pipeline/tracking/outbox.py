"""Calls to MLflow that wait until it answers, made in the background."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pu_kd_pipeline.tracking.failures import explained
from pu_kd_pipeline.tracking.worker import RefusedError

logger = logging.getLogger(__name__)

SECONDS_BEFORE_RETRY = 30.0  # multiplied by the number of failures in a row
# At most this share of the time is spent on calls that fail.
MAX_TIME_SHARE = 1 / 20
MAX_FAILURES = 3
MAX_WAITING = 10_000


class UnreachableError(Exception):
    """MLflow cannot be reached at all, so that no call is to blame."""


@dataclass(eq=False)
class Call:
    """One method of `RunLog`, with its arguments."""

    method: str
    args: tuple[Any, ...] = ()
    creates: bool = False
    """Whether it creates something, which a second attempt must not do again."""
    limit_s: float = 60.0
    n_attempts: int = 0


class Outbox:
    """Makes calls in order, in a thread; after a failure they wait, and the run never does.

    Args:
        perform: makes one call; it raises where the call has to be made again.
        address: of the tracking store, for messages.
    """

    def __init__(self, perform: Callable[[Call], None], address: str) -> None:
        self.is_lost = False
        self._perform = perform
        self._address = address
        self._changed = threading.Condition()
        # When it is full, the oldest calls are dropped: memory is bounded while a server is down.
        self._waiting: deque[Call] = deque(maxlen=MAX_WAITING)
        self._retry_time = 0.0
        self._n_failures_in_a_row = 0
        self._is_unreachable = False
        self._is_last_attempt = False
        self._refused_methods: set[str] = set()
        self._thread: threading.Thread | None = None

    def send(self, call: Call) -> None:
        """Add a call; a thread makes it as soon as those before it are made."""
        with self._changed:
            if not self._is_repeated(call):
                self._waiting.append(call)
            if self._thread is None:
                # A daemon: it may hang, and must not keep the process alive.
                self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def retry_at_once(self) -> None:
        """Make every waiting call now, and once: there is no time left for another attempt."""
        with self._changed:
            self._is_last_attempt = True
            self._is_unreachable = False
            self._retry_time = 0.0
            self._changed.notify_all()

    def wait(self, limit_s: float) -> int:
        """Wait until every call is made or MLflow cannot be reached; return how many are left."""
        deadline = time.monotonic() + limit_s
        with self._changed:
            while self._waiting and not self._is_unreachable:
                seconds_left = deadline - time.monotonic()
                if seconds_left <= 0:
                    break
                self._changed.wait(seconds_left)
            return len(self._waiting)

    def clear(self) -> None:
        """Drop the waiting calls."""
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()

    def _is_repeated(self, call: Call) -> bool:
        """Return whether the last waiting call does the same; two flushes in a row are one."""
        if call.args or not self._waiting:
            return False
        last = self._waiting[-1]
        # One that is being made may have passed over what this call is about.
        return last.method == call.method and last.n_attempts == 0

    def _run(self) -> None:
        while True:
            call = self._next_call()
            call.n_attempts += 1
            start = time.monotonic()
            try:
                self._perform(call)
            except RefusedError as error:
                self._handle_refusal(call, error)
            except Exception as error:
                self._handle_failure(call, error, seconds=time.monotonic() - start)
            else:
                self._handle_success(call)

    def _next_call(self) -> Call:
        """Wait until there is a call to make, and return it; it stays the first that waits."""
        with self._changed:
            while True:
                seconds_left = self._retry_time - time.monotonic()
                if self._waiting and seconds_left <= 0:
                    return self._waiting[0]
                timeout = None
                if self._waiting:
                    timeout = seconds_left
                self._changed.wait(timeout)

    # Messages come before `wait` is woken: the process may end right after it.

    def _handle_success(self, call: Call) -> None:
        if self.is_lost:
            logger.info("MLflow at %s answers again", self._address)
        with self._changed:
            self._remove(call)
            self._is_unreachable = False
            self._n_failures_in_a_row = 0
            self.is_lost = False
            self._changed.notify_all()

    def _handle_refusal(self, call: Call, error: Exception) -> None:
        """Drop the call; one warning for all calls of its kind."""
        if call.method not in self._refused_methods:
            logger.warning("MLflow at %s refused `%s`: %s", self._address, call.method, error)
        self._refused_methods.add(call.method)
        self._handle_success(call)

    def _handle_failure(self, call: Call, error: Exception, *, seconds: float) -> None:
        with self._changed:
            is_dropped = not self._waiting or self._waiting[0] is not call
        # It failed because the run ended the process: that says nothing about MLflow.
        if is_dropped:
            return
        # One warning per outage, however many calls fail.
        if not self.is_lost:
            logger.warning(
                "MLflow at %s failed; the run continues without tracking and retries later: %s",
                self._address,
                explained(error, ""),
            )
        is_outage = isinstance(error, UnreachableError)
        with self._changed:
            self.is_lost = True
            if is_outage:
                self._is_unreachable = True
                call.n_attempts -= 1
            self._n_failures_in_a_row += 1
            is_hopeless = self._is_last_attempt or call.n_attempts >= MAX_FAILURES
            if is_hopeless and not is_outage:
                # What fails every time is given up, so that it does not block the calls behind it.
                self._remove(call)
                self._n_failures_in_a_row = 1
            if is_outage or not self._is_last_attempt:
                pause = SECONDS_BEFORE_RETRY * self._n_failures_in_a_row
                self._retry_time = time.monotonic() + max(pause, seconds / MAX_TIME_SHARE)
            self._changed.notify_all()

    def _remove(self, call: Call) -> None:
        # It may have been dropped meanwhile.
        if self._waiting and self._waiting[0] is call:
            self._waiting.popleft()
