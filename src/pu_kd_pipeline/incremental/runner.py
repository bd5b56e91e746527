""""""

from __future__ import annotations

import logging
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any

from kedro.runner import SequentialRunner
from kedro.runner.task import Task

from pu_kd_pipeline import progress
from pu_kd_pipeline.incremental.locks import locked
from pu_kd_pipeline.incremental.staleness import RECORDS, StalenessTracker, saved_datasets

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline import Pipeline
    from pluggy import PluginManager

logger = logging.getLogger(__name__)
EXPLAINING = "ExplainingRunner"


class IncrementalRunner(SequentialRunner):
    """Runs node after node, and skips those whose outputs are still what they would make.

    Two runs that would write, or write and read, the same data set cannot be at work at once: the second is refused.

    Args:
        is_async: load and save in threads, as Kedro's own runners do.
        force: run every node, whatever is there; what they are made from is recorded all the same.
    """

    def __init__(self, is_async: bool = False, force: bool = False) -> None:
        super().__init__(is_async=is_async)
        self._force = force

    def __str__(self) -> str:
        """Return what hooks are told as `run_params["runner"]`; kedro-viz shows runs of sequential runners alone."""
        return f"{type(self).__name__}, a {SequentialRunner.__module__}.{SequentialRunner.__name__} object"

    def _run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol[Any, Any],
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        if RECORDS not in catalog:
            logger.info("The catalog has no entry `%s`: every node runs.", RECORDS)
            super()._run(pipeline, catalog, hook_manager, run_id)
            return
        judge = StalenessTracker(catalog)
        with locked(
            judge.folder / "locks",
            writes=pipeline.all_outputs(),
            reads=saved_datasets(pipeline.inputs()),
        ):
            self._run_what_changed(pipeline, catalog, hook_manager, run_id, judge)

    def _run_what_changed(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol[Any, Any],
        hook_manager: PluginManager | None,
        run_id: str | None,
        judge: StalenessTracker,
    ) -> None:
        load_counts = Counter(chain.from_iterable(node.inputs for node in pipeline.nodes))
        n_run = 0
        for position, node in enumerate(pipeline.nodes, start=1):
            why = "it was asked for (force)" if self._force else judge.why(node)
            progress.decisions.publish(node.name, why)
            if why is None:
                logger.info("Up to date: %s", node.name)
                judge.keep(node)
            else:
                logger.info("%s runs: %s", node.name, why)
                judge.begin(node)
                task = Task(
                    node=node,
                    catalog=catalog,
                    hook_manager=hook_manager,
                    is_async=self._is_async,
                    run_id=run_id,
                )
                try:
                    task.execute()
                except Exception:  # whatever it was is raised again; only the way on is told here
                    logger.warning(
                        "The same command goes on at %s; what finished before it is kept.",
                        node.name,
                    )
                    raise
                judge.end(node)
                n_run += 1
                logger.info(
                    "Completed node: %s (%d of %d)", node.name, position, len(pipeline.nodes)
                )
            self._release_datasets(node, catalog, load_counts, pipeline)
        logger.info(_in_all(n_run, len(pipeline.nodes)))


class ExplainingRunner(IncrementalRunner):
    """Prints which nodes would run, and why; runs none."""

    def __str__(self) -> str:
        """Return a name that hooks know to do nothing for."""
        return EXPLAINING

    def _run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol[Any, Any],
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        judge = StalenessTracker(catalog) if RECORDS in catalog else None
        made_again: set[str] = set()
        rows = []
        for node in pipeline.nodes:
            pending = [name for name in node.inputs if name in made_again]
            why = judge.why(node) if judge else f"the catalog has no entry `{RECORDS}`"
            if why is None and pending:
                why = f"if input {' or '.join(pending)} changes"
            if why:
                made_again.update(node.outputs)
            rows.append((node.name, why))
        width = max((len(name) for name, _ in rows), default=0)
        for name, why in rows:
            print(f"{name:<{width}}  {why or '-'}")
        print(_in_all(sum(why is not None for _, why in rows), len(rows), "would run"))


def _in_all(n_run: int, n_nodes: int, verb: str = "ran") -> str:
    return (
        f"{n_run} of {n_nodes} nodes {verb}."
        if n_run
        else f"Nothing to do: all {n_nodes} nodes are up to date."
    )
