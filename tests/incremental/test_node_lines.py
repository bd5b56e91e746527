"""The lines of a run's log about its nodes."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from functools import partial

import pytest

from pu_kd_pipeline import progress
from pu_kd_pipeline.hooks.log_lines import LINE
from pu_kd_pipeline.incremental import node_lines
from pu_kd_pipeline.incremental.node_lines import NodeLines
from tests.run_log import nodes_that_ran


@pytest.fixture
def lines(caplog):
    """The log lines written so far."""
    caplog.set_level(logging.INFO, logger=node_lines.logger.name)
    return lambda: list(caplog.messages)


def test_each_node_has_one_line(lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(node_lines.time, "monotonic", lambda: now[0])
    log = NodeLines(10)
    log.up_to_date("teacher.prepare")
    with log.running("distillation.distill", ["student", "history"], "parameter seed 0 → 1"):
        now[0] += 12
    log.up_to_date("evaluation.evaluate")
    with log.running("reporting.show", []):
        now[0] += 0.2
    now[0] += 1
    log.close()
    assert lines() == [
        " 1/10  teacher.prepare  up to date",
        " 2/10  distillation.distill  ran 12 s (parameter seed 0 → 1)  student, history",
        " 3/10  evaluation.evaluate  up to date",
        " 4/10  reporting.show  ran 0.2 s",
        "2 of 10 nodes ran, in 13 s.",
    ]


@pytest.mark.parametrize(
    ("nodes", "skipped"), [("abc", "all 3 nodes are up to date."), ("a", "the node is up to date.")]
)
def test_a_run_without_work_has_one_line(nodes, skipped, lines):
    log = NodeLines(len(nodes))
    for node in nodes:
        log.up_to_date(node)
    log.close()
    assert lines() == [f"Nothing to do: {skipped}"]


def test_the_tests_of_runs_read_all_lines_of_nodes(lines, caplog):
    log = NodeLines(4)
    log.up_to_date("a")
    with log.running("b.b", ["x", "y"], "code changed (a module)"):
        pass
    with log.running("c", [], "seed 0 → 1"):
        pass
    log.up_to_date("d")
    log.close()
    text = "\n".join(LINE.format(record) for record in caplog.records)
    assert nodes_that_ran(text) == {"b.b": "code changed (a module)", "c": "seed 0 → 1"}
    with pytest.raises(ValueError, match="has another format"):
        nodes_that_ran(text.replace("  ran ", "  took "))


@pytest.mark.parametrize("part", [nullcontext, partial(progress.part, "cell 1 of 3")])
def test_a_node_that_takes_long_is_announced(part, lines, monkeypatch, caplog):
    # As in a run: the level is that of the package.
    caplog.set_level(logging.NOTSET, logger=node_lines.logger.name)
    caplog.set_level(logging.INFO, logger="pu_kd_pipeline")
    monkeypatch.setattr(node_lines, "SECONDS_UNTIL_ANNOUNCED", 0.01)
    with NodeLines(1).running("a", ["x"], "code changed"), part():
        deadline = time.monotonic() + 30
        while not lines():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert lines() == ["a  runs (code changed)"]
        # Only once.
        progress.long_loops.publish("training")
    assert len(lines()) == 2


def test_a_node_is_announced_before_the_first_line_of_its_progress(lines, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger=progress.logger.name)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with NodeLines(1).running("a", ["x"]):
        for _ in progress.track(range(9), name="shards"):
            now[0] += 4.0
    assert lines()[:2] == ["a  runs", "shards: 1 of 9, 4.0 s each, about 32 s left"]


def test_a_node_that_fails_has_no_line(lines):
    log = NodeLines(2)
    with pytest.raises(ZeroDivisionError), log.running("a", ["x"]):
        raise ZeroDivisionError
    assert lines() == []
    # Nothing is left that would announce it.
    progress.long_loops.publish("training")
    assert lines() == []
