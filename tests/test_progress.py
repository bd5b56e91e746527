"""Progress of long loops: on a terminal, in a log, and to listeners."""

from __future__ import annotations

import importlib
import io
import itertools
import logging
import sys

import pytest

from pu_kd_pipeline import progress


def records(n: int):
    for epoch in range(1, n + 1):
        yield {"epoch": epoch, "loss": 1 / epoch}


@pytest.fixture
def lines(caplog):
    """The log lines written so far."""
    caplog.set_level(logging.INFO, logger=progress.logger.name)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def published():
    """What listeners receive: name, step and loss of every record."""
    received = []

    def listen(name, step, record):
        received.append((name, step, record["loss"]))

    progress.records.add(listen)
    yield received
    progress.records.remove(listen)
    # Removing a listener twice does no harm.
    progress.records.remove(listen)


def test_every_record_is_published_before_the_next_one_is_made(published):
    loop = progress.watch(records(3), name="training", total=3)
    for count, record in enumerate(loop, start=1):
        loss = 1 / count
        assert record == {"epoch": count, "loss": loss}
        assert len(published) == count

    assert published == [("training", 1, 1.0), ("training", 2, 0.5), ("training", 3, 1 / 3)]


def test_a_resumed_loop_keeps_its_own_steps(published):
    remaining = itertools.islice(records(5), 3, None)
    list(progress.watch(remaining, name="training", total=2))
    steps = [step for _, step, _ in published]
    assert steps == [4, 5]


def test_a_log_has_a_line_soon_then_one_every_ten_seconds_and_one_at_the_end(lines, monkeypatch):
    # Half a second per epoch.
    clock = itertools.count(step=0.5)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    loop = progress.watch(records(100), name="training", total=100)
    for _ in loop:
        now[0] = next(clock)
    logged = lines()
    steps = [line.split(" ")[1] for line in logged]

    # The first one is after two seconds, which give a first estimate of the rest.
    assert steps == ["6", "26", "46", "66", "86", "100"]
    assert logged[1] == "training: 26 of 100 loss 0.03846, 2 per second, about 37 s left"


@pytest.mark.parametrize("total", [15, None])
def test_a_loop_of_less_than_ten_seconds_leaves_no_line(total, lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for _ in progress.track(iter(range(15)), name="shards", total=total):
        # The first one is slow, as where a library is imported, and the others are not.
        now[0] += 0.01 if now[0] else 1.9
    assert lines() == []


def test_steps_that_a_resumed_loop_repeats_do_not_spoil_the_remaining_time(lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    loop = progress.watch(records(100), name="training", total=100)
    for record in loop:
        # The first 59 epochs come from a checkpoint and take no time.
        if record["epoch"] >= 60:
            now[0] += 5.0

    expected = "training: 98 of 100 loss 0.0102, 5.0 s each, about 10 s left"
    assert lines()[-2] == expected


def test_a_loop_of_unknown_length_that_is_abandoned_still_logs_its_last_step(lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    # An iterator has no length.
    numbers = iter(range(1000))
    for item in progress.track(numbers, name="shards", unit="images"):
        now[0] += 4.0
        if item == 4:
            break
    expected = ["shards: 3 images, 4.0 s each", "shards: 5 images, 4.0 s each"]
    assert lines() == expected


def test_a_long_loop_over_images_shows_pace_and_remaining_time_from_its_first_batch_on(
    lines, monkeypatch
):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.count_images("pool_images", 1_000) as count:
        for n in (64, 64, 64, 808):
            now[0] += n / 32
            count(n)

    # 2 s per batch, and the next line after at least ten seconds.
    assert lines() == [
        "pool_images: 64 of 1,000 images, 32 per second, about 29 s left",
        "pool_images: 1,000 of 1,000 images, 32 per second",
    ]


def test_a_short_loop_over_images_shows_nothing_until_it_turns_out_to_be_long(lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.count_images("short", 90) as count:
        for _ in range(9):
            now[0] += 1.0
            count(10)
    assert lines() == []

    with progress.count_images("slower", 100) as count:
        for seconds in (0.5, 4.5):
            now[0] += seconds
            count(10)
    # Cut short, as a loop that fails: only what was shown is there.
    assert lines() == ["slower: 20 of 100 images, 4 per second, about 20 s left"]


def test_a_loop_whose_clock_stands_still_is_counted(lines, monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 5.0)
    with progress.count_images("images", 3) as count:
        count(3)
    assert lines() == []


def test_a_loop_over_shards_counts_their_images_too(lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    n_images = 0
    shards = progress.track([500, 40], name="pool", unit=lambda: f"shards, {n_images} images")
    for n in shards:
        now[0] += 20.0
        n_images += n
    assert lines() == [
        "pool: 1 of 2 shards, 500 images, 20 s each, about 20 s left",
        "pool: 2 of 2 shards, 540 images, 20 s each",
    ]


def test_a_process_whose_progress_another_one_shows_shows_none(lines, monkeypatch, published):
    monkeypatch.setattr(progress, "_is_hidden", False)
    progress.hide()
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for _ in progress.watch(records(3), name="training", total=3):
        now[0] += 60.0
    assert lines() == []
    assert len(published) == 3


def test_tracking_a_plain_loop_publishes_nothing(published):
    items = list(progress.track([1, 2, 3], name="shards"))
    assert items == [1, 2, 3]
    assert published == []


def test_a_terminal_shows_bars_and_nested_loops_share_the_screen(monkeypatch, lines):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    for _ in progress.watch(records(2), name="training", total=2):
        batches = list(progress.track(range(3), name="batches"))
        assert batches == [0, 1, 2]
    shown = screen.getvalue()

    assert "training" in shown
    assert "batches" in shown
    assert "2/2" in shown
    assert "loss 0.5" in shown
    assert "per second" in shown
    # The log stays empty.
    assert lines() == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "less than 0.1 s"),
        (0.05, "0.1 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (7199.9, "2 h 0 min"),
        (10**7, "2,777 h 47 min"),
    ],
)
def test_a_duration_is_named_as_people_name_it(seconds, text):
    assert progress.duration_text(seconds) == text


@pytest.mark.parametrize(
    ("n", "seconds", "text"),
    [
        (5945, 1.0, "5,945 per second"),
        (3, 2.0, "1.5 per second"),
        (1, 3.2, "3.2 s each"),
        (2, 400.0, "3 min 20 s each"),
    ],
)
def test_a_pace_is_a_rate_or_the_time_of_a_step(n, seconds, text):
    assert progress.pace_text(n, seconds) == text


def test_a_part_is_one_line_with_the_time_that_is_left(lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    nested = logging.getLogger("pu_kd_pipeline.nested")
    level = logging.getLogger("pu_kd_pipeline").level
    for number in progress.track(range(1, 4), name="cells"):
        with progress.part(f"cell {number} of 3") as report:
            nested.info("a finding")
            nested.warning("a warning")
            for _ in progress.track(range(4), name="epochs"):
                now[0] += 3.0
            report("accuracy 97 %")
    # The loop of epochs takes more than ten seconds, and says which cell it is in.
    assert lines()[:3] == [
        "a warning",
        "cell 1 of 3: epochs: 1 of 4, 3.0 s each, about 9 s left",
        "cell 1 of 3: accuracy 97 % (12 s), about 24 s left",
    ]
    assert lines()[-1] == "cell 3 of 3: accuracy 97 % (12 s)"
    assert len(lines()) == 9
    # After it, findings are logged as before.
    assert logging.getLogger("pu_kd_pipeline").level == level
    assert progress.logger.level == logging.INFO


def test_with_the_level_debug_parts_hide_nothing(caplog):
    caplog.set_level(logging.DEBUG, logger="pu_kd_pipeline")
    with progress.part("cell 1 of 1") as report:
        logging.getLogger("pu_kd_pipeline.nested").info("a finding")
        report("done")
    assert caplog.messages[0] == "a finding"


@pytest.mark.parametrize("module", ["incremental.node_lines", "tracking.outbox"])
def test_a_part_does_not_hide_the_messages_of_its_run(module, caplog):
    caplog.set_level(logging.INFO, logger="pu_kd_pipeline")
    logger = importlib.import_module(f"pu_kd_pipeline.{module}").logger
    with progress.part("cell 1 of 1"):
        logger.info("about the run")
        logger.debug("a detail")
    assert caplog.messages == ["about the run"]
    for name in progress.LOGGERS_OF_RUNS:
        assert logging.getLogger(name).level == logging.NOTSET


def test_a_loop_that_starts_late_counts_the_steps_that_it_makes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    found = []

    def listen(*pace):
        found.append(pace)

    progress.paces.add(listen)
    try:
        for _ in progress.watch(({"update": step} for step in (950, 975, 1000)), name="x", total=3):
            now[0] += 5.0
    finally:
        progress.paces.remove(listen)
    assert found == [("updates", 50, 10.0)]


def test_progress_needs_no_standard_streams(monkeypatch, lines):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress.track(range(3), name="shards")) == [0, 1, 2]
