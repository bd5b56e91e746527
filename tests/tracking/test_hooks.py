"""What the hooks hand to MLflow, and when there is nothing to hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node, pipeline

from pu_kd_pipeline.hooks.tracking import TrackingHooks

TRAIN = node(lambda: 1, None, "student", name="train")


@pytest.fixture
def started(config, folder):
    """A function that starts a run with a runner, and returns its hooks and its tracker."""

    def start(runner: str) -> tuple[TrackingHooks, Any]:
        hooks = TrackingHooks()
        values = config.model_dump()
        context: Any = SimpleNamespace(config_loader={"mlflow": values}, project_path=folder)
        hooks.after_context_created(context)
        catalog = DataCatalog({"student": MemoryDataset()})
        run_params = {"runner": runner, "env": None}
        hooks.before_pipeline_run(run_params, pipeline([TRAIN]), catalog)
        return hooks, hooks._tracker

    return start


def test_a_run_that_fails_before_its_first_node_is_not_logged(started, monkeypatch):
    hooks, tracker = started("SequentialRunner")
    monkeypatch.setattr(tracker, "end", lambda *_: pytest.fail("a run of nothing was logged"))
    hooks.on_pipeline_error(RuntimeError("another run writes the same data sets"))
    assert tracker.is_closed

    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    hooks, tracker = started("SequentialRunner")
    ends = []
    monkeypatch.setattr(tracker, "end", lambda *args: ends.append(args))
    # A stage of a shared run has a status.
    hooks.on_pipeline_error(RuntimeError("no"))
    assert ends == [("FAILED", "**Failed:** no")]
    tracker._finish()


@pytest.mark.parametrize(
    ("runner", "n_nodes"),
    [("a kedro.runner.sequential_runner.SequentialRunner object", 1), ("ThreadRunner", 0)],
)
def test_only_nodes_that_run_one_after_the_other_are_timed(runner, n_nodes, started, monkeypatch):
    hooks, tracker = started(runner)
    monkeypatch.setattr(tracker, "start", lambda: None)
    hooks.before_node_run(TRAIN)
    hooks.before_node_run(TRAIN)
    assert len(hooks._stage_times.nodes) == n_nodes
    hooks._stop_listening(tracker)
    tracker.discard()


def test_a_run_in_other_processes_says_what_is_not_logged(started, caplog):
    hooks, tracker = started("<kedro.runner.parallel_runner.ParallelRunner object>")
    assert "the parameters and the status of this run alone" in caplog.text
    assert not hooks._was_nothing_done(tracker)
    hooks._stop_listening(tracker)
    tracker.discard()


def test_a_note_that_is_one_long_line_is_cut_and_not_dropped(new_tracker, monkeypatch):
    monkeypatch.setattr("sys.argv", ["kedro", "run", "x" * 9_000])
    tracker = new_tracker()
    note = tracker._note("**Failed:** " + "y" * 9_000)
    tracker.discard()
    assert len(note) < 8_000
    assert "`, environment `base`" in note
    assert "**Failed:** yyy" in note
    assert note.endswith("The rest is in the files among the artifacts of this run.")
