"""The warnings of a run once more at its end, where they are still in sight."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.hooks.log_lines import write_plain_lines_unless_watched
from pu_kd_pipeline.hooks.summary import is_summarized
from pu_kd_pipeline.incremental.runner import EXPLAINING_RUNNER

if TYPE_CHECKING:
    from kedro.pipeline import Pipeline

# A warning that this many messages or fewer have followed need not be repeated.
N_MESSAGES_IN_SIGHT = 5
MAX_REPEATED = 20
# The summary of a run has its doubts.
SUMMARIZED = "pu_kd_pipeline.reporting.findings"


class WarningCollector(logging.Handler):
    """Counts the warnings that are logged, and the messages after the last one of each."""

    def __init__(self) -> None:
        super().__init__()
        self._n_messages = 0
        # By text, in the order of their first occurrence.
        self._counts: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Count a message."""
        self._n_messages += 1
        if record.levelno < logging.WARNING or record.name == SUMMARIZED:
            return
        text = record.getMessage().strip()
        self._counts[text] = self._counts.get(text, 0) + 1
        self._last[text] = self._n_messages

    def repeated(self, *, is_far: bool) -> list[str]:
        """Return the warnings to repeat, each once.

        Args:
            is_far: repeat all; otherwise only those that came more than once or that some messages
                have followed.
        """
        found = []
        for text, count in self._counts.items():
            n_after = self._n_messages - self._last[text]
            if is_far or count > 1 or n_after > N_MESSAGES_IN_SIGHT:
                times = f" ({count:,} times)" if count > 1 else ""
                found.append(f"{text}{times}")
        return found


class RunLogHooks:
    """Writes log messages as lines where nobody watches, and repeats the warnings of a run."""

    def __init__(self) -> None:
        self._collector: WarningCollector | None = None

    @hook_impl
    def after_context_created(self) -> None:
        """Start to collect: checks before the first node may warn, too."""
        write_plain_lines_unless_watched()
        # A run that was interrupted, as in a notebook, has not reached its last hook.
        self._stop()
        self._collector = WarningCollector()
        logging.getLogger().addHandler(self._collector)

    @hook_impl
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Print the warnings after everything else."""
        collector = self._stop()
        if collector is not None and run_params["runner"] != EXPLAINING_RUNNER:
            _print(collector.repeated(is_far=is_summarized(pipeline)))

    @hook_impl
    def on_pipeline_error(self, run_params: dict[str, Any]) -> None:
        """Print the warnings before the error, which comes last."""
        collector = self._stop()
        if collector is not None and run_params["runner"] != EXPLAINING_RUNNER:
            _print(collector.repeated(is_far=False))

    def _stop(self) -> WarningCollector | None:
        collector = self._collector
        self._collector = None
        if collector is not None:
            logging.getLogger().removeHandler(collector)
        return collector


def _print(warnings: list[str]) -> None:
    if not warnings:
        return
    print("Warnings of this run:")
    for text in warnings[:MAX_REPEATED]:
        print(f"- {text}")
    n_more = len(warnings) - MAX_REPEATED
    if n_more > 0:
        print(f"- and {n_more:,} more, in the log above")
