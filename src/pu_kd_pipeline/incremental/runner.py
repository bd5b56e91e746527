"""Runners: one that skips nodes that are up to date, and one that prints which nodes would run."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kedro.runner import SequentialRunner
from kedro.runner.task import Task

from pu_kd_pipeline import progress
from pu_kd_pipeline.incremental.durations import (
    UNKNOWN,
    Estimate,
    NodeDurations,
    estimates,
    read_forecast,
    total_sentences,
)
from pu_kd_pipeline.incremental.locks import locked
from pu_kd_pipeline.incremental.node_lines import NodeLines, log_every_node_runs, summary
from pu_kd_pipeline.incremental.node_states import local_path, saved_datasets
from pu_kd_pipeline.incremental.staleness import RECORDS, StalenessTracker, make_everything_again
from pu_kd_pipeline.masking import visible

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node
    from pluggy import PluginManager

logger = logging.getLogger(__name__)
EXPLAINING_RUNNER = "ExplainingRunner"
FORCED = "it was asked for (force)"
IF_INPUT = "if input"  # starts the reason of a node that may come out up to date
NO_RECORDS = f"the catalog has no entry `{RECORDS}` in a folder on this machine"


@dataclass(frozen=True)
class _KedroRun:
    """What Kedro passes to a runner."""

    pipeline: Pipeline
    catalog: CatalogProtocol[Any, Any]
    hook_manager: PluginManager | None
    run_id: str | None


class IncrementalRunner(SequentialRunner):
    """Runs one node after the other, and skips those whose outputs are still what they would make.

    Of two runs that write, or write and read, the same data set, the second is refused.

    Args:
        is_async: load and save in threads, as Kedro's own runners do.
        force: run every node; records are written as usual.
    """

    def __init__(self, is_async: bool = False, force: bool = False) -> None:
        super().__init__(is_async=is_async)
        self._force = force

    def __str__(self) -> str:
        """Return the runner's name for hooks, in `run_params["runner"]`.

        kedro-viz shows only runs of a runner whose name contains Kedro's sequential runner.
        """
        kedros = f"{SequentialRunner.__module__}.{SequentialRunner.__name__}"
        return f"{type(self).__name__}, a {kedros} object"

    def _run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol[Any, Any],
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        if not _has_records(catalog):
            log_every_node_runs(NO_RECORDS)
            if self._force:
                for node in pipeline.nodes:
                    make_everything_again(node, catalog)
            every_node = SequentialRunner(is_async=self._is_async)
            every_node._run(pipeline, catalog, hook_manager, run_id)
            return
        run = _KedroRun(pipeline, catalog, hook_manager, run_id)
        tracker = StalenessTracker(catalog)
        folder = tracker.folder / "locks"
        reads = map(_stored_name, saved_datasets(pipeline.inputs()))
        writes = map(_stored_name, pipeline.all_outputs())
        with locked(folder, writes=writes, reads=reads):
            self._run_stale_nodes(run, tracker)

    def _run_stale_nodes(self, run: _KedroRun, tracker: StalenessTracker) -> None:
        nodes = run.pipeline.nodes
        # How often each data set is still needed; Kedro releases it after the last time.
        load_counts: Counter[str] = Counter()
        for node in nodes:
            load_counts.update(node.inputs)

        lines = NodeLines(len(nodes))
        for node in nodes:
            if self._force:
                reason: str | None = FORCED
            else:
                reason = tracker.reason_to_run(node)
            progress.decisions.publish(node.name, reason)

            if reason is None:
                lines.up_to_date(node.name)
                tracker.record_unchanged_code(node)
            else:
                tracker.prepare_run(node, is_forced=self._force)
                start = time.monotonic()
                with lines.running(node.name, node.outputs, reason):
                    self._execute(node, run)
                tracker.record_duration(node, time.monotonic() - start)
                tracker.record_run(node)
            self._release_datasets(node, run.catalog, load_counts, run.pipeline)
        lines.close()

    def _execute(self, node: Node, run: _KedroRun) -> None:
        task = Task(
            node=node,
            catalog=run.catalog,
            hook_manager=run.hook_manager,
            is_async=self._is_async,
            run_id=run.run_id,
        )
        try:
            task.execute()
        except Exception:  # the command line reports the error itself
            logger.warning(
                "The same command resumes at %s; what finished before it is kept.", node.name
            )
            raise


class ExplainingRunner(IncrementalRunner):
    """Prints which nodes would run, why, and how long they take; runs none and writes nothing.

    Args:
        is_async: accepted as by every runner.
        force: explain a run that is forced.
        instead_of: the runner that was asked for, if it is one that runs every node.
    """

    def __init__(
        self, is_async: bool = False, force: bool = False, instead_of: str | None = None
    ) -> None:
        super().__init__(is_async=is_async, force=force)
        self._instead_of = instead_of

    def __str__(self) -> str:
        """Return a name for which hooks do nothing."""
        return EXPLAINING_RUNNER

    def _run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol[Any, Any],
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        reason_for_all = None
        if self._instead_of is not None:
            reason_for_all = f"{self._instead_of} runs every node"
        elif not _has_records(catalog):
            reason_for_all = NO_RECORDS
        elif self._force:
            reason_for_all = FORCED

        reasons: dict[str, str | None] = {}
        if reason_for_all is not None:
            for node in pipeline.nodes:
                reasons[node.name] = reason_for_all
        else:
            reasons = _planned_reasons(pipeline, catalog)
        durations = None
        records = local_path(catalog, RECORDS) if _has_records(catalog) else None
        if records is not None:
            durations = NodeDurations(records)
        _print_plan(reasons, estimates(reasons, durations, read_forecast(catalog)))


def _print_plan(reasons: Mapping[str, str | None], known: Mapping[str, Estimate]) -> None:
    """Print a line for each node, and the totals.

    Args:
        reasons: node -> why it would run; None if it is up to date.
        known: node -> how long it takes; where that is known of no node, the column is left out.
    """
    times = {}
    if known:
        times = {node: str(known.get(node, UNKNOWN)) for node in reasons}
    width = max(map(len, reasons), default=0)
    width_of_times = max(map(len, times.values()), default=0)
    for name, reason in reasons.items():
        columns = [f"{name:<{width}}"]
        if times:
            columns.append(f"{times[name]:<{width_of_times}}")
        columns.append(reason or "-")
        print(visible("  ".join(columns)))

    certain: list[str] = []
    possible: list[str] = []
    for name, reason in reasons.items():
        if reason is None:
            continue
        names = possible if reason.startswith(IF_INPUT) else certain
        names.append(name)
    sentence = summary(len(certain) + len(possible), len(reasons), "would run")
    print(" ".join([sentence, *total_sentences(certain, possible, known)]))


def _planned_reasons(
    pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]
) -> dict[str, str | None]:
    """Return node name -> why it would run; None for a node that is up to date."""
    tracker = StalenessTracker(catalog, is_read_only=True)
    remade: set[str] = set()  # data sets that nodes before would make again
    reasons: dict[str, str | None] = {}
    for node in pipeline.nodes:
        pending = [name for name in node.inputs if _stored_name(name) in remade]
        reason = tracker.reason_to_run(node, pending)
        if reason is None and pending:
            # The input may come out the same: then the node is skipped after all.
            inputs = " or ".join(pending)
            reason = f"{IF_INPUT} {inputs} changes"
        if reason is not None:
            remade.update(map(_stored_name, node.outputs))
        reasons[node.name] = reason
    return reasons


def _has_records(catalog: CatalogProtocol[Any, Any]) -> bool:
    return RECORDS in catalog and local_path(catalog, RECORDS) is not None


def _stored_name(name: str) -> str:
    """Return the name of what is stored: `x@pandas` and `x@spark` are two ways to read x."""
    return name.partition("@")[0]
