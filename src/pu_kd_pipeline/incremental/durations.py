"""How long nodes took when they last ran, and what a plan is going to take.

Durations are not part of the records of nodes: a record is removed before its node runs, and its
duration is the best estimate also while the node is out of date.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import DatasetError

from pu_kd_pipeline.errors import first_line
from pu_kd_pipeline.incremental.checked_files import read_checked, write_checked
from pu_kd_pipeline.incremental.file_states import safe_name
from pu_kd_pipeline.progress import duration_text
from pu_kd_pipeline.storage.atomic import remove_leftovers

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol

logger = logging.getLogger(__name__)
PILOT = "pilot"  # the catalog entry
# In it: what a full run takes, and there, node name -> seconds.
FORECAST = "forecast"
SECONDS = "seconds"
UNKNOWN = "unknown"
_FOLDER = "durations"  # in that of the records


@dataclass(frozen=True)
class Duration:
    """How long a node took to load its inputs, run its function and save its outputs.

    Attributes:
        node: name of the node.
        seconds: by a clock, and at least 0.
        is_complete: False if a part of the outputs or of a training was there before, so that all
            of it takes longer.
    """

    node: str
    seconds: float
    is_complete: bool


class NodeDurations:
    """The durations of nodes, one file per node below the folder of the records."""

    def __init__(self, records: Path) -> None:
        self._folder = records / _FOLDER

    def read(self, node: str) -> Duration | None:
        """Return the duration of a node; None if none was measured, or its file is damaged."""
        found = read_checked(self._file(node))
        try:
            duration = Duration(**found)
        except TypeError:  # None, or the fields of another version
            return None
        # A file may have been copied from another node.
        if duration.node != node or not _is_seconds(duration.seconds):
            return None
        return duration

    def write(self, duration: Duration) -> None:
        """Store how long a node took, for the next plan.

        One that made only a part of its outputs replaces a shorter time alone. Nothing depends on a
        duration, so that a disk that refuses it stops no run.
        """
        known = self.read(duration.node)
        if not duration.is_complete and known is not None and known.seconds > duration.seconds:
            return
        file = self._file(duration.node)
        with suppress(OSError):
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self._folder, file.name)
            write_checked(file, asdict(duration))

    def _file(self, node: str) -> Path:
        return self._folder / f"{safe_name(node)}.json"


def file_stamps(files: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Return file -> (inode, time of its last change); a file that is written again gets others."""
    stamps = {}
    for file in files:
        with suppress(OSError):
            about = os.stat(file)
            stamps[file] = (about.st_ino, about.st_mtime_ns)
    return stamps


# --- what a plan is going to take -----------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """How long a node is going to take, as far as that is known.

    Attributes:
        seconds: the estimate, and at least 0.
        is_measured: whether a run measured it; otherwise a pilot forecast it.
        is_complete: False for a run that made only a part.
    """

    seconds: float
    is_measured: bool
    is_complete: bool = True

    def __str__(self) -> str:
        text = duration_text(self.seconds)
        if not self.is_measured:
            return f"about {text} by the pilot"
        if self.is_complete:
            return f"took {text}"
        return f"took {text} or more"


def read_forecast(catalog: CatalogProtocol[Any, Any]) -> dict[str, float]:
    """Return node name -> seconds that a pilot forecast; empty without one.

    The entry `PILOT` holds `{"forecast": {"seconds": {"<node name>": <number>, ...}, ...}, ...}`.
    One that holds anything else is ignored, with a warning: a plan does not need it.
    """
    if PILOT not in catalog:
        return {}
    dataset: Any = catalog.get(PILOT)
    if not dataset.exists():
        return {}
    try:
        content = dataset.load()
    except DatasetError as exc:
        _report_unusable(first_line(exc))
        return {}
    seconds = _inner(_inner(content, FORECAST), SECONDS)
    if not isinstance(seconds, Mapping):
        _report_unusable(f"it has no mapping `{FORECAST}.{SECONDS}`")
        return {}
    faults = [str(node) for node, value in seconds.items() if not _is_seconds(value)]
    if faults:
        _report_unusable(f"`{SECONDS}` of {faults[0]} is {seconds[faults[0]]!r}, not a duration")
        return {}
    return {str(node): float(value) for node, value in seconds.items()}


def _inner(content: Any, key: str) -> Any:
    return content.get(key) if isinstance(content, Mapping) else None


def _report_unusable(fault: str) -> None:
    logger.warning(
        "the forecast in `%s` is not used: %s. Run the pilot again, or delete the file",
        PILOT,
        fault,
    )


def _is_seconds(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0


def estimates(
    nodes: Iterable[str], durations: NodeDurations | None, forecast: Mapping[str, float]
) -> dict[str, Estimate]:
    """Return node -> estimate, of the nodes of which something is known.

    What a run measured comes before what a pilot forecast.

    Args:
        nodes: names of the nodes of the plan.
        durations: what runs measured; None: there are no records.
        forecast: node -> seconds by a pilot.
    """
    found = {}
    for node in nodes:
        measured = None
        if durations is not None:
            measured = durations.read(node)
        if measured is not None:
            found[node] = Estimate(measured.seconds, True, measured.is_complete)
        elif node in forecast:
            found[node] = Estimate(forecast[node], False)
    return found


def total_sentences(
    certain: Iterable[str], possible: Iterable[str], known: Mapping[str, Estimate]
) -> list[str]:
    """Return sentences on how long a plan takes in total; none if nothing is known.

    Args:
        certain: nodes that would run.
        possible: nodes that would run only if an input of theirs changes.
        known: node -> estimate, of some of them.
    """
    possible = list(possible)
    planned = [*certain, *possible]
    counted = [known[node] for node in planned if node in known]
    if not counted:
        return []
    more = "" if all(estimate.is_complete for estimate in counted) else ", or more"
    sentences = [f"This takes about {_total(counted)}{more}."]
    measured = [estimate for estimate in counted if estimate.is_measured]
    forecast = [estimate for estimate in counted if not estimate.is_measured]
    if measured:
        differ = "differs" if len(measured) == len(counted) else "differ"
        sentences.append(
            f"{_part(measured, counted)} measured when the nodes last ran, and {differ} with other "
            "parameters, inputs or processors."
        )
    if forecast:
        sentences.append(f"{_part(forecast, counted)} forecast by the pilot.")
    of_possible = [known[node] for node in possible if node in known]
    if of_possible:
        sentences.append(
            f"{_total(of_possible)} of it are for nodes that run only if an input changes."
        )
    n_unknown = len(planned) - len(counted)
    if n_unknown:
        nodes = "1 node" if n_unknown == 1 else f"{n_unknown} nodes"
        sentences.append(f"The time of {nodes} is not known, and not included.")
    return sentences


def _total(found: Iterable[Estimate]) -> str:
    return duration_text(math.fsum(estimate.seconds for estimate in found))


def _part(some: list[Estimate], counted: list[Estimate]) -> str:
    if len(some) == len(counted):
        return "It was"
    return f"{_total(some)} of it were"
