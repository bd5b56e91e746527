"""What a long loop says, to a person and to a log, and to whom it tells its records."""

from __future__ import annotations

import io
import itertools
import logging

import pytest

from pu_kd_pipeline import progress


def records(n: int):
    return ({"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, n + 1))


@pytest.fixture
def lines(caplog):
    """The log lines written so far."""
    caplog.set_level(logging.INFO, logger=progress.logger.name)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def heard():
    told = []
    listener = lambda name, step, record: told.append((name, step, record["loss"]))  # noqa: E731
    progress.records.add(listener)
    yield told
    progress.records.remove(listener)
    progress.records.remove(listener)  # once more does no harm


def test_every_record_passes_and_is_told_before_the_next_one_is_made(heard):
    for passed, record in enumerate(progress.watch(records(3), name="training", total=3), start=1):
        assert record == {"epoch": passed, "loss": 1 / passed}
        assert len(heard) == passed
    assert heard == [("training", 1, 1.0), ("training", 2, 0.5), ("training", 3, 1 / 3)]


def test_a_resumed_loop_keeps_its_own_steps(heard):
    list(progress.watch(itertools.islice(records(5), 3, None), name="training", total=2))
    assert [step for _, step, _ in heard] == [4, 5]


def test_a_log_gets_the_first_and_the_last_step_and_one_line_in_ten_seconds(lines, monkeypatch):
    clock = itertools.count(step=0.5)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for _ in progress.watch(records(100), name="training", total=100):
        now[0] = next(clock)
    assert [line.split(" ")[1] for line in lines()] == ["1", "22", "42", "62", "82", "100"]
    assert lines()[1] == "training: 22 of 100 loss 0.04545, about 37 s left"


def test_what_a_resumed_loop_tells_again_does_not_make_it_look_quick(lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for record in progress.watch(records(100), name="training", total=100):
        now[0] += 5.0 if record["epoch"] >= 60 else 0.0
    assert lines()[-2] == "training: 98 of 100 loss 0.0102, about 10 s left"


def test_an_unknown_length_and_an_abandoned_loop_still_tell_the_last_step(lines):
    for item in progress.track(iter(range(1000)), name="shards", unit="images"):
        if item == 4:
            break
    assert lines() == ["shards: 1 images", "shards: 5 images"]


def test_tracking_a_plain_loop_publishes_nothing(heard):
    assert list(progress.track([1, 2, 3], name="shards")) == [1, 2, 3]
    assert heard == []


def test_a_person_sees_a_bar_and_loops_inside_each_other_share_the_screen(monkeypatch, lines):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    for _ in progress.watch(records(2), name="training", total=2):
        assert list(progress.track(range(3), name="batches")) == [0, 1, 2]
    assert "training" in screen.getvalue()
    assert "batches" in screen.getvalue()
    assert "2/2" in screen.getvalue()
    assert "loss 0.5" in screen.getvalue()
    assert lines() == []
