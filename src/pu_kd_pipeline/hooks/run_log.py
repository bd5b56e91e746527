"""Repeats the warnings of a run at its end."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.hooks.catalog import METRICS
from pu_kd_pipeline.hooks.log_lines import write_plain_lines_without_terminal
from pu_kd_pipeline.hooks.summary import is_summarized
from pu_kd_pipeline.incremental.runner import EXPLAINING_RUNNER

if TYPE_CHECKING:
    from kedro.pipeline import Pipeline

# A warning that this many messages or fewer have followed need not be repeated.
N_RECENT_MESSAGES = 5
MAX_REPEATED = 20
# More different warnings are only counted, so that the memory of a long run is bounded.
MAX_HELD = 1000
# Logs the doubts about the metrics, which the summary of metrics prints.
DOUBTS = "pu_kd_pipeline.reporting.findings"


@dataclass
class _Warning:
    """A warning that was logged.

    Attributes:
        n_times: how often.
        last: number of the message that was the last one of these.
        is_doubt: whether the summary of metrics has it.
    """

    n_times: int
    last: int
    is_doubt: bool


class WarningCollector(logging.Handler):
    """Counts the warnings that are logged, and the messages after the last one of each."""

    def __init__(self) -> None:
        super().__init__()
        self._n_messages = 0
        # By text, in the order of their first occurrence.
        self._warnings: dict[str, _Warning] = {}
        self._has_others = False

    def emit(self, record: logging.LogRecord) -> None:
        """Count a message."""
        self._n_messages += 1
        if record.levelno < logging.WARNING:
            return
        try:
            text = record.getMessage().strip()
        except Exception:  # of a message whose arguments do not fit: it must not stop the run
            self.handleError(record)
            return
        if text in self._warnings:
            found = self._warnings[text]
            found.n_times += 1
            found.last = self._n_messages
        elif len(self._warnings) < MAX_HELD:
            self._warnings[text] = _Warning(1, self._n_messages, record.name == DOUBTS)
        else:
            self._has_others = True

    def repeated(self, *, is_far: bool, has_doubts: bool = False) -> list[str]:
        """Return the first warnings to repeat, each once, and the number of the others.

        Args:
            is_far: repeat all; otherwise only those that came more than once or that some messages
                have followed.
            has_doubts: whether the doubts about the metrics were printed.
        """
        found = []
        for text, warning in self._warnings.items():
            if warning.is_doubt and has_doubts:
                continue
            n_after = self._n_messages - warning.last
            if is_far or warning.n_times > 1 or n_after > N_RECENT_MESSAGES:
                times = f" ({warning.n_times:,} times)" if warning.n_times > 1 else ""
                found.append(f"{text}{times}")
        n_more = len(found) - MAX_REPEATED
        shown = found[:MAX_REPEATED]
        if self._has_others:
            shown.append(f"and more than {n_more:,} others, in the log above")
        elif n_more > 0:
            shown.append(f"and {n_more:,} more, in the log above")
        return shown


class RunLogHooks:
    """Logs plain lines on output that is no terminal, and repeats the warnings of a run."""

    def __init__(self) -> None:
        self._collector: WarningCollector | None = None

    @hook_impl(tryfirst=True)
    def after_context_created(self) -> None:
        """Start to collect before other hooks check the configuration, which may warn, too."""
        write_plain_lines_without_terminal()
        # A run that was interrupted, as in a notebook, has not reached its last hook.
        self._stop()
        self._collector = WarningCollector()
        logging.getLogger().addHandler(self._collector)

    @hook_impl
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Print the warnings after everything else."""
        collector = self._stop()
        if collector is not None and run_params["runner"] != EXPLAINING_RUNNER:
            has_doubts = METRICS in pipeline.all_outputs()
            _print(collector.repeated(is_far=is_summarized(pipeline), has_doubts=has_doubts))

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
    for text in warnings:
        print(f"- {text}")
