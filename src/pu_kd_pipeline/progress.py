"""Progress of long loops: a bar when a person watches, a few log lines otherwise, and records for whoever listens.

Nothing here knows Kedro, MLflow or torch. A listener is told every record that passes through `watch`, and a result
listener the outcome of every trial of a comparison.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
STEP_KEYS = (
    "epoch",
    "update",
)  # a record that carries its own step keeps it when a run was resumed

Record = TypeVar("Record", bound=Mapping[str, Any])
Item = TypeVar("Item")
Listener = Callable[[str, int, Mapping[str, Any]], None]
ResultListener = Callable[[str, Mapping[str, Any], Mapping[str, Any]], None]
DecisionListener = Callable[[str, str | None], None]
Show = Callable[[int, str], None]

_listeners: list[Listener] = []
_result_listeners: list[ResultListener] = []
_decision_listeners: list[DecisionListener] = []
_bars: Progress | None = None


def add_listener(listener: Listener) -> None:
    """Call `listener(name, step, record)` for every record that passes through `watch` from now on."""
    _listeners.append(listener)


def remove_listener(listener: Listener) -> None:
    """Stop telling `listener`; a listener that was never added is ignored."""
    if listener in _listeners:
        _listeners.remove(listener)


def add_result_listener(listener: ResultListener) -> None:
    """Call `listener(name, parameters, metrics)` for every result that is published from now on."""
    _result_listeners.append(listener)


def remove_result_listener(listener: ResultListener) -> None:
    """Stop telling `listener`; a listener that was never added is ignored."""
    if listener in _result_listeners:
        _result_listeners.remove(listener)


def publish_result(name: str, parameters: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Tell the outcome of one of many trials: what it is called, what made it, and its numbers."""
    for listener in tuple(_result_listeners):
        listener(name, parameters, metrics)


def add_decision_listener(listener: DecisionListener) -> None:
    """Call `listener(node, why)` for every node that a run decides on from now on; None: it is skipped."""
    _decision_listeners.append(listener)


def remove_decision_listener(listener: DecisionListener) -> None:
    """Stop telling `listener`; a listener that was never added is ignored."""
    if listener in _decision_listeners:
        _decision_listeners.remove(listener)


def publish_decision(node: str, why: str | None) -> None:
    """Tell that a node runs, and why, or that it is skipped."""
    for listener in tuple(_decision_listeners):
        listener(node, why)


@contextmanager
def unpublished() -> Iterator[None]:
    """Show the loops inside, but tell nobody their records: those of many trials would be one tangle of curves."""
    told, _listeners[:] = list(_listeners), []
    try:
        yield
    finally:
        _listeners[:] = told


def watch(records: Iterable[Record], *, name: str, total: int) -> Iterator[Record]:
    """Pass every record on, show the progress, and publish the record to the listeners first.

    Args:
        records: one mapping of numbers per epoch (or per so many updates), lazily made.
        name: what the loop is called on the screen and in the metrics, such as "pu_training".
        total: number of records expected.
    """
    with _shown(name, total) as show:
        for count, record in enumerate(records, start=1):
            step = next((int(record[key]) for key in STEP_KEYS if key in record), count)
            for listener in tuple(_listeners):
                listener(name, step, record)
            show(count, _in_words(record))
            yield record


def track(
    items: Iterable[Item], *, name: str, total: int | None = None, unit: str = ""
) -> Iterator[Item]:
    """Pass every item on and show the progress; nothing is published.

    Args:
        items: what the loop runs over, such as shards.
        name: what the loop is called on the screen.
        total: number of items expected; None: the length of `items`, where it has one.
        unit: what is counted, such as "images".
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with _shown(name, total) as show:
        for count, item in enumerate(items, start=1):
            try:
                yield item
            finally:  # also when nobody asks for a further one
                show(count, unit)


@contextmanager
def _shown(name: str, total: int | None) -> Iterator[Show]:
    """Yield `show(count, text)`: a bar on a terminal, otherwise lines in the log."""
    with _bar(name, total) if sys.stderr.isatty() else _lines(name, total) as show:
        yield show


@contextmanager
def _lines(name: str, total: int | None) -> Iterator[Show]:
    """The first and the last step, and one line every ten seconds between them."""
    last_line, last_count = -SECONDS_BETWEEN_LINES, 0
    previous = time.monotonic()
    waiting: tuple[int, str] | None = None

    def say(count: int, text: str) -> None:
        nonlocal last_line, last_count, previous, waiting
        last_line, waiting = time.monotonic(), None
        of = f"{count} of {total}" if total else str(count)
        # by the pace since the line before: what a resumed loop tells again takes no time
        left = (
            (last_line - previous) * (total - count) / max(count - last_count, 1) if total else 0.0
        )
        previous, last_count = last_line, count
        remaining = f", about {left:.0f} s left" if left >= 1 else ""
        logger.info("%s: %s %s%s", name, of, text, remaining)

    def show(count: int, text: str) -> None:
        nonlocal waiting
        waiting = (count, text)
        if count == total or time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
            say(count, text)

    try:
        yield show
    finally:
        if waiting:
            say(*waiting)


@contextmanager
def _bar(name: str, total: int | None) -> Iterator[Show]:
    """A rich bar on stderr; a loop inside another one adds its bar below."""
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
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        _bars = Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True))
        _bars.start()
    assert _bars is not None
    bars, task = _bars, _bars.add_task(name, total=total, text="")
    try:
        yield lambda count, text: bars.update(task, completed=count, text=text)
    finally:
        if is_outermost:
            bars.stop()
            _bars = None
        else:
            bars.remove_task(task)


def _in_words(record: Mapping[str, Any]) -> str:
    """The record's first few numbers, such as "loss 0.1234, agreement 0.981"."""
    numbers = {
        key: value
        for key, value in record.items()
        if key not in STEP_KEYS and isinstance(value, int | float)
    }
    return ", ".join(f"{key} {value:.4g}" for key, value in list(numbers.items())[:4])
