"""Work for workers that does what its argument says, and needs no torch."""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pu_kd_pipeline import progress
from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.params.engine import EngineParams

logger = logging.getLogger("pu_kd_pipeline.tests")


def engine_of(kind: str, **changes: Any) -> EngineParams:
    """Return an engine of two workers."""
    return EngineParams(**{**LOCAL.model_dump(), "kind": kind, "n_workers": 2, **changes})


@dataclass(frozen=True)
class ToyWork:
    """Returns a table of the argument, or fails in the way that it names.

    Attributes:
        folder: where it leaves a file per shard that it has started, with the process that did.
        facts_of: what it claims; "pid" stands for the process that asks.
    """

    folder: Path
    facts_of: Mapping[str, str] = field(default_factory=lambda: {"code or libraries": "1"})

    def __call__(self, argument: str) -> pa.Table:
        started = self.folder / f"{argument}.started"
        is_first_time = not started.exists()
        with started.open("a") as file:
            file.write(f"{os.getpid()}\n")
        what, _, _ = argument.partition("-")
        if what == "input":
            raise InputError(f"image {argument} cannot be read: remove it")
        if what == "memory":
            raise UnavailableError("no memory is left")
        if what == "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        if what == "bug":
            raise ZeroDivisionError(argument)
        if what == "die" or (what == "dieonce" and is_first_time):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang":
            time.sleep(600)
        if what == "slow":
            time.sleep(0.3)
        if what in ("together", "killall"):
            self._wait_for_others(3)
        if what == "killall" and is_first_time:
            self._kill_all()
        logger.warning("made %s", argument)
        progress.results.publish(argument, {"seed": 1}, {"accuracy": 0.5})
        return pa.table({"id": [argument], "length": [len(argument)]})

    def _wait_for_others(self, n_shards: int) -> None:
        while len(list(self.folder.glob("*.started"))) < n_shards:
            time.sleep(0.05)

    def _kill_all(self) -> None:
        """Kill every worker that has started a shard, as the loss of their machine would."""
        # The others have sent their answers by then, and have nothing to do.
        time.sleep(1.0)
        pids = set()
        for file in self.folder.glob("*.started"):
            pids.update(int(line) for line in file.read_text().split())
        for pid in pids - {os.getpid()}:
            os.kill(pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def facts(self) -> dict[str, str]:
        return {
            name: value.replace("pid", str(os.getpid())) for name, value in self.facts_of.items()
        }

    def started_by(self, argument: str) -> list[int]:
        """Return the processes that started a shard, one for each time."""
        return [int(line) for line in (self.folder / f"{argument}.started").read_text().split()]
