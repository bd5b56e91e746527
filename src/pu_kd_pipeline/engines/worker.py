"""What runs in a worker: it loads the work once, checks itself, and then makes shards.

An answer holds what the worker logged and published meanwhile: the process that started it passes
that on, so that the log and the trackers see the same as without workers.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pu_kd_pipeline import progress
from pu_kd_pipeline.errors import InputError, UnavailableError, first_line

PACKAGE = "pu_kd_pipeline"
# What kind of error it was decides how the run ends. Who refuses cannot do this work at all; who
# has begun answers again when the shard is done.
AnswerKind = Literal["begun", "done", "refused", "input", "unavailable", "bug"]
THREADS_VARIABLE = "OMP_NUM_THREADS"


class Work(Protocol):
    """One kind of work on shards, which is sent to every worker as a pickle.

    It prepares what is expensive when it is first called, and keeps it.
    """

    def __call__(self, name: str, argument: Any, /) -> Any:
        """Do the work on a shard and return what is to be known of it, which should be small.

        Args:
            name: of the shard.
            argument: what says which shard it is; it can be pickled, and is small, too.
        """

    def facts(self) -> Mapping[str, str]:
        """Return what decides the results, as seen by the process that asks.

        Such as the code and the kind of device. A worker that sees something else refuses to work.
        """


@dataclass(frozen=True)
class Assignment:
    """What a worker is started with.

    Attributes:
        file: the pickled work, which every worker must be able to read.
        digest: of the file, so that no other one is unpickled.
        facts: those of the work, as the process sees them that starts the workers.
        folder: the folder that relative paths start from.
        search_path: where that process imports from.
        log_level: of this package's logger.
        n_threads: CPU threads per worker, unless a stage's parameters set them.
    """

    file: Path
    digest: str
    facts: Mapping[str, str]
    folder: str
    search_path: tuple[str, ...]
    log_level: int
    n_threads: int


@dataclass(frozen=True)
class Answer:
    """What a worker returns: a result, or why there is none.

    Attributes:
        kind: of the answer.
        value: the result of the work, or a message: of a bug one line, and the traceback below it.
        cause: the system error that was a bug, such as a full disk, which decides the message.
        records: what was logged.
        results: what was published on `progress.results`.
    """

    kind: AnswerKind
    value: Any = None
    cause: OSError | None = None
    records: tuple[logging.LogRecord, ...] = ()
    results: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any]], ...] = ()

    @property
    def is_refusal(self) -> bool:
        """Whether the worker cannot do this work at all."""
        return self.kind == "refused"

    def pass_on(self) -> None:
        """Log and publish here what the worker logged and published."""
        for record in self.records:
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        for name, parameters, metrics in self.results:
            progress.results.publish(name, parameters, metrics)

    def error(self, name: str) -> Exception | None:
        """Return the error that the work on a shard ended with, if it did."""
        if self.kind == "done":
            return None
        if self.kind == "bug":
            error = ShardError(f"{name}: {self.value}")
            error.__cause__ = self.cause
            return error
        if self.kind == "unavailable":
            return UnavailableError(self.value)
        return InputError(self.value)


@dataclass(frozen=True)
class Lost:
    """A worker has ended.

    Attributes:
        reason: how, such as "it was killed by SIGKILL".
        had_begun: whether it had begun with the shard that was sent to it last.
    """

    reason: str
    had_begun: bool


class ShardError(Exception):
    """An error in a worker that no user can fix; below its first line is the traceback."""


class _Collector(logging.Handler):
    """Keeps what a worker logs and publishes until it answers."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []
        self._results: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        # As text, because arguments and tracebacks may be objects that cannot be pickled.
        record.msg = record.getMessage()
        record.args = None
        if record.exc_info:
            record.exc_text = "".join(traceback.format_exception(*record.exc_info))
            record.exc_info = None
        self._records.append(record)

    def publish(self, name: str, parameters: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        self._results.append((name, parameters, metrics))

    def answer(self, kind: AnswerKind, value: Any, cause: OSError | None = None) -> Answer:
        answer = Answer(kind, value, cause, tuple(self._records), tuple(self._results))
        self._records = []
        self._results = []
        return answer


class ShardWorker:
    """Makes shards, one after the other; of one process that does nothing else.

    No method raises: an error is an answer, too.
    """

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._work: Work | None = None
        self._collector = _Collector()

    def prepare(self) -> Answer:
        """Load the work, and check that this process would do the same as the one that sent it."""
        assignment = self._assignment
        try:
            _set_up_process(assignment, self._collector)
            work = _loaded_work(assignment)
            _check_facts(work.facts(), assignment.facts)
            self._work = work
        except UnavailableError as exc:
            return self._collector.answer("unavailable", f"a worker on {_host()}: {exc}")
        except InputError as exc:
            return self._collector.answer("refused", f"a worker on {_host()}: {exc}")
        except Exception as exc:
            return self._bug(exc)
        return self._collector.answer("done", None)

    def begin(self) -> Answer:
        """Say that this process lives: what ends it from now on may be the shard that follows."""
        return Answer("begun")

    def make(self, name: str, argument: Any) -> Answer:
        """Do the work on a shard."""
        assert self._work is not None
        try:
            return self._collector.answer("done", self._work(name, argument))
        except UnavailableError as exc:
            return self._collector.answer("unavailable", str(exc))
        except InputError as exc:
            return self._collector.answer("input", str(exc))
        except Exception as exc:
            return self._bug(exc)

    def _bug(self, error: Exception) -> Answer:
        text = f"{type(error).__name__}: {first_line(error)}\n{traceback.format_exc()}"
        # Errors of other packages may not be importable where they are unpickled.
        cause = None
        if isinstance(error, OSError) and type(error).__module__ == "builtins":
            cause = error
        return self._collector.answer("bug", text, cause)


def _host() -> str:
    return socket.gethostname()


def _set_up_process(assignment: Assignment, collector: _Collector) -> None:
    # Read when torch is imported, which the work does.
    os.environ.setdefault(THREADS_VARIABLE, str(assignment.n_threads))
    for entry in assignment.search_path:
        if entry not in sys.path:
            sys.path.append(entry)
    if os.path.isdir(assignment.folder):
        os.chdir(assignment.folder)
    package = logging.getLogger(PACKAGE)
    package.setLevel(assignment.log_level)
    package.propagate = False
    package.handlers[:] = [collector]
    progress.results.add(collector.publish)
    # Bars and lines of several workers would be mixed up: whoever started them shows the progress.
    progress.hide()


def _loaded_work(assignment: Assignment) -> Work:
    """Return the work.

    Raises:
        InputError: its file is not there, or is another one.
        UnavailableError: it cannot be read now.
    """
    file = assignment.file
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
        raise InputError(
            f"it cannot read {file} ({exc.strerror}): the data folder has to be on a file system "
            "that all machines share, with the same path on each"
        ) from exc
    except OSError as exc:
        raise UnavailableError(f"it cannot read {file} ({exc})") from exc
    if hashlib.sha256(content).hexdigest() != assignment.digest:
        raise InputError(f"{file} is not what this run wrote: give each run a data folder")
    work: Work = pickle.loads(content)
    return work


def _check_facts(own: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Check that a worker sees what the process saw that started it.

    Raises:
        InputError: it does not.
    """
    for name, value in expected.items():
        if own.get(name) != value:
            raise InputError(
                f"its {name} differ from those of the run ({own.get(name)} instead of {value}), so "
                "that its shards would, too: install the same version of this project and of its "
                "libraries on every machine, and use machines of one kind; where code was changed "
                "after the run had started, run the same command again"
            )
