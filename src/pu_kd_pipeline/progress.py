"""Progress of long loops: a bar on a terminal, log lines elsewhere, and channels to listen to.

Nothing here knows Kedro, MLflow or torch. To follow a run, add a listener to a channel.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
# A record that carries its own step keeps it when a run was resumed.
STEP_KEYS = ("epoch", "update")
N_NUMBERS_SHOWN = 4
# Between two records of a loop; repeated ones follow each other faster.
SHORTEST_STEP_S = 1e-3

Event = ParamSpec("Event")
Record = TypeVar("Record", bound=Mapping[str, Any])
Item = TypeVar("Item")
ShowProgress = Callable[[int, str], None]
AddImages = Callable[[int], None]


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

paces: Channel[str, float, float] = Channel()
"""(unit, such as "images"; number; seconds) of every loop that has ended."""

# The bars on the terminal share one display; None while no loop is running.
_bars: Progress | None = None


def watch(loop: Iterable[Record], *, name: str, total: int) -> Iterator[Record]:
    """Yield every record, after publishing it to `records` and showing the progress.

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
    items: Iterable[Item], *, name: str, total: int | None = None, unit: str = ""
) -> Iterator[Item]:
    """Yield every item and show the progress; nothing is published.

    Args:
        items: what the loop runs over, such as shards.
        name: name of the loop on the screen.
        total: number of items expected; None: the length of `items`, where it has one.
        unit: what is counted, such as "images".
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with _display(name, total) as show:
        for count, item in enumerate(items, start=1):
            try:
                yield item
            finally:
                # Also when the consumer stops early: the last step is shown.
                show(count, unit)


@contextmanager
def count_images(name: str, total: int) -> Iterator[AddImages]:
    """Yield `add(n)`, which says that n more images are done.

    Shows their number and the pace once the whole loop is known to take longer than
    `SECONDS_BETWEEN_LINES`, which may be after its first batch, and nothing for a shorter one.

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
            # A clock may stand still for the duration of a small batch.
            pace = count / max(seconds, 1e-9)
            show(count, f"images, {pace:,.0f} per second")

        yield add
    if count:
        paces.publish("images", count, time.monotonic() - started)


class _StepPace:
    """How many epochs or updates a loop makes per second.

    A loop that was resumed first repeats the records from before, in no time: these do not count.
    """

    def __init__(self) -> None:
        self._unit = ""
        self._step = 0
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
        if seconds >= SHORTEST_STEP_S:
            self._n_steps += step - self._step
            self._seconds += seconds
        self._step = step
        self._time = now

    def publish(self) -> None:
        if self._unit and self._n_steps > 0:
            paces.publish(self._unit, self._n_steps, self._seconds)


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
    # While it shows bars, rich replaces stderr; before rich 15, by an object that is no terminal.
    if _bars is not None or sys.stderr.isatty():
        with _bar(name, total) as show:
            yield show
    else:
        lines = _LogLines(name, total, started)
        try:
            yield lines.show
        finally:
            lines.close()


class _LogLines:
    """Logs the first and the last step, and one line every ten seconds between them."""

    def __init__(self, name: str, total: int | None, started: float | None) -> None:
        self._name = name
        self._total = total
        self._line_time = -SECONDS_BETWEEN_LINES
        self._line_count = 0
        self._pace_time = time.monotonic() if started is None else started
        self._unlogged: tuple[int, str] | None = None

    def show(self, count: int, text: str) -> None:
        """Log this step if it is the last one or the last line is old enough."""
        self._unlogged = (count, text)
        is_due = time.monotonic() - self._line_time >= SECONDS_BETWEEN_LINES
        if count == self._total or is_due:
            self._log(count, text)

    def close(self) -> None:
        """Log the last step of a loop that ended early or has no known length."""
        if self._unlogged:
            self._log(*self._unlogged)

    def _log(self, count: int, text: str) -> None:
        now = time.monotonic()
        position = f"{count:,}"
        seconds_left = 0.0
        if self._total:
            position = f"{count:,} of {self._total:,}"
            # By the pace since the line before: the steps that a resumed loop repeats take no time.
            seconds_per_step = (now - self._pace_time) / max(count - self._line_count, 1)
            seconds_left = seconds_per_step * (self._total - count)
        remaining = ""
        if seconds_left >= 1:
            remaining = f", about {seconds_left:,.0f} s left"
        logger.info("%s: %s %s%s", self._name, position, text, remaining)
        self._line_time = now
        self._pace_time = now
        self._line_count = count
        self._unlogged = None


@contextmanager
def _bar(name: str, total: int | None) -> Iterator[ShowProgress]:
    """Yield the update function of a rich bar on stderr; a nested loop adds its bar below."""
    global _bars
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
            console=Console(stderr=True),
        )
        _bars.start()
    assert _bars is not None
    bars = _bars
    task = bars.add_task(name, total=total, text="")
    try:
        yield lambda count, text: bars.update(task, completed=count, text=text)
    finally:
        if is_outermost:
            bars.stop()
            _bars = None
        else:
            bars.remove_task(task)
