"""The process that talks to MLflow, from inside: it makes one call after the other."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

from pu_kd_pipeline.tracking.failures import explained, is_refusal
from pu_kd_pipeline.tracking.run_log import RunLog

if sys.platform != "win32":
    import resource

# MLflow needs 250 MB; an answer without an end must not take the memory of the training.
MAX_MEMORY_BYTES = 1 << 30
SECONDS_BETWEEN_LOOKS = 1.0
# Time for the last call and for the status of a run that was killed.
SECONDS_ALONE = 30.0

Message = tuple[str, tuple[Any, ...], dict[str, Any]]


def serve(parent_id: int) -> None:
    """Answer the calls of the run until its process ends, then end this process.

    If the run's process ended without closing the run, as after `kill -9`, the run is KILLED.
    """
    calls, answers = _private_pipes()
    _limit_memory()
    # Failures reach the run as answers; nobody reads what MLflow logs.
    logging.disable(logging.CRITICAL)
    log = RunLog(run_process_id=parent_id)
    # None: the run's process has ended.
    messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    for function, args in ((_receive, (calls, messages)), (_watch_parent, (parent_id, messages))):
        threading.Thread(target=function, args=args, daemon=True).start()
    while True:
        message = messages.get()
        if message is None:
            break
        reply = answer(log, *message)
        try:
            pickle.dump(reply, answers)
            answers.flush()
        except OSError:
            break
    # Whatever follows may hang as well, and nobody else would end this process.
    threading.Timer(SECONDS_ALONE, os._exit, (1,)).start()
    with contextlib.suppress(Exception):
        log.close_if_open("KILLED")
    # Not `sys.exit`, which would wait for the threads of MLflow.
    os._exit(0)


def _private_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Return copies of stdin and stdout that nothing else prints to."""
    calls = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "r+b") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    return calls, answers


def _limit_memory() -> None:
    if sys.platform == "win32":
        return
    _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MAX_MEMORY_BYTES
    if hard_limit != resource.RLIM_INFINITY:
        limit = min(limit, hard_limit)
    # Some systems do not know this limit.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard_limit))


def _receive(calls: IO[bytes], messages: queue.SimpleQueue[Message | None]) -> None:
    try:
        while True:
            messages.put(pickle.load(calls))
    except (EOFError, OSError, pickle.UnpicklingError):
        _end_soon(messages)


def _watch_parent(parent_id: int, messages: queue.SimpleQueue[Message | None]) -> None:
    # The end of the pipe is not seen while a forked process of the run holds a copy of it.
    while os.getppid() == parent_id:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    _end_soon(messages)


def _end_soon(messages: queue.SimpleQueue[Message | None]) -> None:
    # The call in progress may never end.
    threading.Timer(2 * SECONDS_ALONE, os._exit, (1,)).start()
    messages.put(None)


def answer(
    log: RunLog, method: str, args: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[str, Any, list[str]]:
    """Call a method of the log.

    Returns:
        "done", "refused" or "failed"; the result, or the reason; warnings for the run's log.
    """
    log.warnings.clear()
    try:
        value = getattr(log, method)(*args, **options)
    # Also a MemoryError: the run gets one line, whatever happened here.
    except BaseException as error:
        outcome = "failed"
        if is_refusal(error):
            outcome = "refused"
        return outcome, explained(error, log.uri), []
    return "done", value, list(log.warnings)
