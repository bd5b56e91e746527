"""The lines of a run's log about its nodes: one for each, when it is finished.

    18/24  pool_scoring.score_pool  up to date
    19/24  distillation.distill_student  ran 12 s (parameter seed 0 → 1)  student_model

A node that takes long has another line when it has run for ten seconds: of a process that is
killed, the log then says which node that was.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pu_kd_pipeline import progress
from pu_kd_pipeline.progress import duration_text

logger = logging.getLogger(__name__)
SECONDS_UNTIL_ANNOUNCED = 10.0


class NodeLines:
    """Logs a line per node of a run, and what the run did in all.

    Args:
        n_nodes: of the run.
    """

    def __init__(self, n_nodes: int) -> None:
        self._n_nodes = n_nodes
        self._n_done = 0
        self._n_ran = 0
        self._started = time.monotonic()
        # Nodes that were skipped before the first one that runs. A run that skips all of its nodes
        # has one line for them.
        self._waiting: list[str] = []

    def up_to_date(self, node: str) -> None:
        """Report a node that is skipped."""
        if self._n_ran:
            self._log(node, "up to date")
        else:
            self._waiting.append(node)

    @contextmanager
    def running(self, node: str, outputs: Sequence[str], reason: str = "") -> Iterator[None]:
        """Report a node that runs inside the `with` block; nothing of one that fails.

        Args:
            node: its name.
            outputs: the names of what it makes.
            reason: why it runs; empty: that is not known.
        """
        self._log_waiting()
        why = f" ({reason})" if reason else ""
        started = time.monotonic()
        with _announced_if_long(f"{node}  runs{why}"):
            yield
        duration = duration_text(time.monotonic() - started)
        self._n_ran += 1
        self._log(node, f"ran {duration}{why}", ", ".join(outputs))

    def close(self) -> None:
        """Report what the run did."""
        text = summary(self._n_ran, self._n_nodes, "ran")
        if self._n_ran:
            duration = duration_text(time.monotonic() - self._started)
            text = f"{text.removesuffix('.')}, in {duration}."
        logger.info(text)

    def _log_waiting(self) -> None:
        for node in self._waiting:
            self._log(node, "up to date")
        self._waiting.clear()

    def _log(self, node: str, *columns: str) -> None:
        self._n_done += 1
        # As wide as the last one.
        number = f"{self._n_done:>{len(str(self._n_nodes))}}/{self._n_nodes}"
        logger.info("%s", "  ".join(filter(None, [number, node, *columns])))


def log_every_node_runs(reason: str) -> None:
    """Report that no node is skipped; Kedro's own runner then reports on each of them."""
    logger.info("Every node runs: %s.", reason)


@contextmanager
def _announced_if_long(text: str) -> Iterator[None]:
    """Log a text once the `with` block has taken ten seconds, or a loop in it turns out long."""
    is_announced = threading.Event()

    def announce(loop: str = "") -> None:
        if not is_announced.is_set():
            is_announced.set()
            logger.info("%s", text)

    timer = threading.Timer(SECONDS_UNTIL_ANNOUNCED, announce)
    # A node that hangs must not keep the process from ending.
    timer.daemon = True
    timer.start()
    progress.long_loops.add(announce)
    try:
        yield
    finally:
        progress.long_loops.remove(announce)
        timer.cancel()


def summary(n_run: int, n_nodes: int, verb: str) -> str:
    """Return how many nodes of a run are not up to date, in a sentence."""
    if n_run == 0 and n_nodes == 1:
        return "Nothing to do: the node is up to date."
    if n_run == 0:
        return f"Nothing to do: all {n_nodes} nodes are up to date."
    return f"{n_run} of {n_nodes} nodes {verb}."
