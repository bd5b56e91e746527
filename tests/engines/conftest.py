"""Time limits: what these tests look for shows as a hang."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

SECONDS = 600  # a busy machine needs many times as long as a quiet one


@pytest.fixture(autouse=True)
def _time_limit() -> Iterator[None]:
    """Fail a test that hangs."""

    def fail(_number: int, _frame: FrameType | None) -> None:
        # No OSError, as TimeoutError is: code under test may suppress these.
        pytest.fail(f"the test has not ended after {SECONDS} seconds")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 30)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
