"""Progress of long loops: a bar on a terminal, log lines elsewhere, and channels to listen to.

Nothing here knows Kedro, MLflow or torch. To follow a run, add a listener to a channel.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
# A pace that was measured for less is no estimate: first batches take longer.
SECONDS_BEFORE_FIRST_LINE = 2.0
# A record that carries its own step keeps it when a run was resumed.
STEP_KEYS = ("epoch", "update")
N_NUMBERS_SHOWN = 4
# Between two records of a loop; repeated ones follow each other faster.
SHORTEST_STEP_S = 1e-3
# Their messages are about the whole run, also while a part runs, and some come from other threads.
LOGGERS_OF_RUNS = (
    __name__,
    "pu_kd_pipeline.incremental.node_lines",
    "pu_kd_pipeline.tracking",
)

Event = ParamSpec("Event")
Record = TypeVar("Record", bound=Mapping[str, Any])
Item = TypeVar("Item")
ShowProgress = Callable[[int, str], None]
AddImages = Callable[[int], None]
Report = Callable[[str], None]


class Channel(Generic[Event]):
    """Events of one kind, passed to every listener in the order in which they were added."""

    def __init__(self) -> None:
        self._listeners: list[Callable[Event, None]] = []

    def add(self, listener: Callable[Event, None]) -> None:
        """Call `listener` for every event from now on."""
        self._listeners.append(listener)

    def remove(self, listener: Callable[Event, None]) -> None:
        """Stop calling `listener`; a listener that was never added is ignored."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def publish(self, *args: Event.args, **kwargs: Event.kwargs) -> None:
        """Call every listener with this event."""
        # A copy, because a listener may remove itself.
        for listener in tuple(self._listeners):
            listener(*args, **kwargs)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Drop all events inside the `with` block."""
        listeners = self._listeners
        self._listeners = []
        try:
            yield
        finally:
            self._listeners = listeners


records: Channel[str, int, Mapping[str, Any]] = Channel()
"""(name of the loop, step, record) of every record that passes through `watch`."""

results: Channel[str, Mapping[str, Any], Mapping[str, Any]] = Channel()
"""(name, parameters, metrics) of every finished trial of a comparison."""

decisions: Channel[str, str | None] = Channel()
"""(node, reason to run) of every node that a run decides on; None: the node is skipped."""

long_loops: Channel[str] = Channel()
"""(name) of every loop that turns out to be long, before its first line in the log."""

paces: Channel[str, float, float] = Channel()
"""(unit, such as "images"; number; seconds) of every loop that has ended."""

# The bars on the terminal share one display; None while no loop is running.
_bars: Progress | None = None
# Loops that log lines, the outermost first.
_logged_loops: list[_LogLines] = []
# What the lines of loops start with, inside `part`.
_title = ""
# Whether another process shows the progress of this one.
_is_hidden = False


def watch(loop: Iterable[Record], *, name: str, total: int) -> Iterator[Record]:
    """Yield every record, after publishing it to `records` and showing progress and pace.

    Args:
        loop: one mapping of numbers per epoch (or per several updates), made lazily.
        name: name of the loop on the screen and in the metrics, such as "pu_training".
        total: number of records expected.
    """
    with _display(name, total) as show:
        pace = _StepPace()
        for count, record in enumerate(loop, start=1):
            step = _step_of(record, default=count)
            pace.add(record, step)
            records.publish(name, step, record)
            show(count, _first_numbers(record))
            yield record
    pace.publish()


def track(
    items: Iterable[Item],
    *,
    name: str,
    total: int | None = None,
    unit: str | Callable[[], str] = "",
) -> Iterator[Item]:
    """Yield every item and show the progress; nothing is published.

    Args:
        items: what the loop runs over, such as shards.
        name: name of the loop on the screen.
        total: number of items expected; None: the length of `items`, where it has one.
        unit: what is counted, such as "images", or a function that returns it after each item.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with _display(name, total) as show:
        for count, item in enumerate(items, start=1):
            try:
                yield item
            finally:
                # Also when the consumer stops early: the last step is shown.
                show(count, unit if isinstance(unit, str) else unit())


@contextmanager
def count_images(name: str, total: int) -> Iterator[AddImages]:
    """Yield `add(n)`, which says that n more images are done.

    Shows their number and the pace once the whole loop is expected to take longer than
    `SECONDS_BETWEEN_LINES`, and nothing for a shorter one.

    Args:
        name: what is read or computed, on the screen.
        total: number of images expected.
    """
    started = time.monotonic()
    count = 0
    show: ShowProgress | None = None
    with ExitStack() as display:

        def add(n: int) -> None:
            nonlocal count, show
            count += n
            seconds = time.monotonic() - started
            if show is None and seconds * total < SECONDS_BETWEEN_LINES * count:
                return
            if show is None:
                show = display.enter_context(_display(name, total, started))
            show(count, "images")

        yield add
    if count:
        paces.publish("images", count, time.monotonic() - started)


class _StepPace:
    """How many epochs or updates a loop makes per second.

    A loop that was resumed first repeats the records from before, in no time: these do not count.
    Nor does the time until the first record: it is not known at which step a loop starts.
    """

    def __init__(self) -> None:
        self._unit = ""
        self._step: int | None = None
        self._time = time.monotonic()
        self._n_steps = 0
        self._seconds = 0.0

    def add(self, record: Mapping[str, Any], step: int) -> None:
        now = time.monotonic()
        seconds = now - self._time
        # The first, of which `_step_of` returns the number.
        keys = [key for key in STEP_KEYS if key in record]
        if keys:
            self._unit = f"{keys[0]}s"
        if self._step is not None and seconds >= SHORTEST_STEP_S:
            self._n_steps += step - self._step
            self._seconds += seconds
        self._step = step
        self._time = now

    def publish(self) -> None:
        if self._unit and self._n_steps > 0:
            paces.publish(self._unit, self._n_steps, self._seconds)


@contextmanager
def part(title: str) -> Iterator[Report]:
    """Yield `report(outcome)`, which logs one line for all that the `with` block does.

    Inside the block, findings on the way are not logged, unless the level is DEBUG. Warnings, the
    progress of long loops and the messages of `LOGGERS_OF_RUNS` are. A loop around it logs no lines
    of its own any more: that of the part has the time that is left.

    Args:
        title: what is done, such as "cell 3 of 66: random, seed 0".
    """
    started = time.monotonic()

    def report(outcome: str) -> None:
        seconds_text = duration_text(time.monotonic() - started)
        remaining = _logged_loops[-1].after_part() if _logged_loops else []
        logger.info("%s", ", ".join([f"{title}: {outcome} ({seconds_text})", *remaining]))

    global _title
    outer_title = _title
    _title = f"{title}: "
    try:
        with _findings_hidden():
            yield report
    finally:
        _title = outer_title


@contextmanager
def _findings_hidden() -> Iterator[None]:
    """Log nothing of this package but warnings and what runs report, unless its level is DEBUG."""
    package = logging.getLogger(__package__)
    if package.isEnabledFor(logging.DEBUG):
        yield
        return
    loggers_of_runs = [logging.getLogger(name) for name in LOGGERS_OF_RUNS]
    levels = [(each, each.level) for each in (package, *loggers_of_runs)]
    # Before the package gets another level, which they would inherit.
    for each in loggers_of_runs:
        each.setLevel(each.getEffectiveLevel())
    package.setLevel(max(logging.WARNING, package.getEffectiveLevel()))
    try:
        yield
    finally:
        for each, level in levels:
            each.setLevel(level)


def hide() -> None:
    """Show no progress of loops in this process from now on; all is published as before."""
    global _is_hidden
    _is_hidden = True


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal; Python's are None where they are closed."""
    return stream is not None and stream.isatty()


def duration_text(seconds: float) -> str:
    """Return a duration for people, such as "0.4 s", "12 s", "3 min 20 s" or "2 h 5 min".

    Args:
        seconds: at least 0, and finite.
    """
    if seconds < 0.05:
        return "less than 0.1 s"
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    n_seconds = round(seconds)
    if n_seconds < 60:
        return f"{n_seconds} s"
    if n_seconds < 3600:
        minutes, n_seconds = divmod(n_seconds, 60)
        return f"{minutes} min {n_seconds} s"
    # Of hours, seconds are noise.
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"


def pace_text(n: int, seconds: float) -> str:
    """Return how fast steps are, such as "32 per second", "1.4 per second" or "3.2 s each".

    Args:
        n: number of steps, at least 1.
        seconds: that they took together.
    """
    # A clock may stand still for the duration of a small step.
    per_second = n / max(seconds, 1e-9)
    if per_second < 1:
        return f"{duration_text(seconds / n)} each"
    if per_second < 10:
        return f"{per_second:.2g} per second"
    return f"{per_second:,.0f} per second"


def _step_of(record: Mapping[str, Any], default: int) -> int:
    for key in STEP_KEYS:
        if key in record:
            return int(record[key])
    return default


def _first_numbers(record: Mapping[str, Any]) -> str:
    """Return the first numbers of a record, such as "loss 0.1234, agreement 0.981"."""
    texts = []
    for key, value in record.items():
        if key not in STEP_KEYS and isinstance(value, int | float):
            texts.append(f"{key} {value:.4g}")
    return ", ".join(texts[:N_NUMBERS_SHOWN])


@contextmanager
def _display(name: str, total: int | None, started: float | None = None) -> Iterator[ShowProgress]:
    """Yield `show(count, text)`: a bar on a terminal, lines in the log elsewhere.

    Args:
        name: of the loop.
        total: number of steps, where it is known.
        started: when the loop started, on the monotonic clock; None: now.
    """
    if _is_hidden:
        yield lambda _count, _text: None
        return
    # While it shows bars, rich replaces stderr; before rich 15, by an object that is no terminal.
    if _bars is not None or is_terminal(sys.stderr):
        with _bar(name, total, started) as show:
            yield show
    else:
        lines = _LogLines(f"{_title}{name}", total, started)
        _logged_loops.append(lines)
        try:
            yield lines.show
        finally:
            _logged_loops.remove(lines)
            lines.close()


class _LogLines:
    """Logs a line every ten seconds, and the last step; nothing for a shorter loop."""

    def __init__(self, name: str, total: int | None, started: float | None) -> None:
        self._name = name
        self._total = total
        self._started = time.monotonic() if started is None else started
        # Of the line before, or of the start.
        self._line_time = self._started
        self._line_count = 0
        self._has_lines = False
        self._n_parts = 0
        # A part reports its end itself.
        self._reports_end = not _title
        self._unlogged: tuple[int, str] | None = None

    def show(self, count: int, text: str) -> None:
        """Log this step if the last line is old enough, or if it ends a loop that has lines."""
        if self._n_parts:
            return
        self._unlogged = (count, text)
        is_last = count == self._total
        if self._has_lines:
            is_old = time.monotonic() - self._line_time >= SECONDS_BETWEEN_LINES
            is_due = self._reports_end if is_last else is_old
        else:
            # A loop that is over is reported by what it belongs to.
            is_due = not is_last and self._is_long(count)
        if is_due:
            self._log(count, text)

    def after_part(self) -> list[str]:
        """Return a text on the time that is left after a step which reports itself."""
        self._n_parts += 1
        if not self._total:
            return []
        seconds_each = (time.monotonic() - self._started) / self._n_parts
        return _remaining(seconds_each * (self._total - self._n_parts))

    def close(self) -> None:
        """Log the last step of a loop that ended early or has no known length."""
        if self._unlogged and self._has_lines and self._reports_end:
            self._log(*self._unlogged)

    def _is_long(self, count: int) -> bool:
        """Return whether the loop takes long enough for a line, as far as is known by now."""
        seconds = time.monotonic() - self._started
        if self._total and seconds >= SECONDS_BEFORE_FIRST_LINE:
            return seconds * self._total >= SECONDS_BETWEEN_LINES * count
        return seconds >= SECONDS_BETWEEN_LINES

    def _log(self, count: int, text: str) -> None:
        now = time.monotonic()
        # Since the line before: the steps that a resumed loop repeats take no time.
        n_steps = max(count - self._line_count, 1)
        seconds = now - self._line_time
        position = f"{count:,}"
        if self._total:
            position = f"{count:,} of {self._total:,}"
        parts = [f"{position} {text}".rstrip(), pace_text(n_steps, seconds)]
        if self._total:
            seconds_left = seconds / n_steps * (self._total - count)
            parts += _remaining(seconds_left)
        if not self._has_lines:
            long_loops.publish(self._name)
        logger.info("%s: %s", self._name, ", ".join(parts))
        self._line_time = now
        self._line_count = count
        self._has_lines = True
        self._unlogged = None


def _remaining(seconds: float) -> list[str]:
    """Return a text on the time that is left; none for less than a second."""
    if seconds < 1:
        return []
    # An estimate has no tenths.
    text = duration_text(seconds) if seconds >= 10 else f"{seconds:.0f} s"
    return [f"about {text} left"]


@contextmanager
def _bar(name: str, total: int | None, started: float | None) -> Iterator[ShowProgress]:
    """Yield the update function of a rich bar on stderr; a nested loop adds its bar below."""
    global _bars
    from rich import get_console
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    is_outermost = _bars is None
    if is_outermost:
        _bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            # On one terminal, log messages are written above the bars by their common console.
            console=get_console() if is_terminal(sys.stdout) else Console(stderr=True),
            # What they belong to is reported when it is finished.
            transient=True,
        )
        _bars.start()
    assert _bars is not None
    bars = _bars
    task = bars.add_task(name, total=total, text="")
    first = time.monotonic() if started is None else started

    def show(count: int, text: str) -> None:
        pace = pace_text(count, time.monotonic() - first)
        shown = ", ".join(filter(None, [text, pace]))
        bars.update(task, completed=count, text=shown)

    try:
        yield show
    finally:
        if is_outermost:
            bars.stop()
            _bars = None
        else:
            bars.remove_task(task)
