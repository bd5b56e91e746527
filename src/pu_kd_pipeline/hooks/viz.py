"""What kedro-viz shows of runs: sizes of all data sets, and the last run that ran any node."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.hooks.catalog import dataset_path
from pu_kd_pipeline.incremental.runner import EXPLAINING_RUNNER
from pu_kd_pipeline.params.paths import project_folder
from pu_kd_pipeline.storage.atomic import replacing_file
from pu_kd_pipeline.storage.digests import files_below

if TYPE_CHECKING:
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline

# Where kedro-viz looks for rows, columns and bytes, by data set.
STATISTICS = Path(".viz") / "stats.json"
# Where its view of the last run finds what happened.
EVENTS = Path(".viz") / "kedro_pipeline_events.json"
# The sizes by data set, with path and time of change: only what has changed is read again, and the
# data sets of other pipelines keep theirs. kedro-viz does not read this file.
KNOWN = Path(".viz") / "dataset_sizes.json"


class VizHooks:
    """Corrects the files that kedro-viz's own hooks write after a run.

    They know the sizes of data frames alone, and only those that the run has loaded or saved. And
    after a run in which all nodes are up to date, the view of the last run says that there is none.
    """

    def __init__(self) -> None:
        self._before: dict[Path, bytes] = {}

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Remember what the run before has written."""
        self._before = {}
        for file in (EVENTS, STATISTICS):
            with suppress(OSError):
                self._before[file] = (project_folder() / file).read_bytes()

    @hook_impl(trylast=True)
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Write the sizes; restore the events of the run before if no node has run."""
        if find_spec("kedro_viz") is None:
            return
        if run_params["runner"] == EXPLAINING_RUNNER:
            self._restore(STATISTICS)
            return
        if not _has_nodes(project_folder() / EVENTS):
            self._restore(EVENTS)
        earlier = _read_known()
        known = {}
        for name in sorted({*earlier, *pipeline.datasets()}):
            # Data sets of a user may raise anything, and no size is worth a failed run.
            with suppress(Exception):
                entry = _entry(catalog, name, earlier.get(name))
                if entry is not None:
                    known[name] = entry
        _write(KNOWN, known)
        _write(STATISTICS, {name: entry["sizes"] for name, entry in known.items()})

    def _restore(self, file: Path) -> None:
        if file in self._before:
            with suppress(OSError):
                (project_folder() / file).write_bytes(self._before[file])


def _has_nodes(events: Path) -> bool:
    """Return whether a node has run, by the events of a run; True where they cannot be read."""
    try:
        return any("node" in event for event in json.loads(events.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return True


def _read_known() -> dict[str, Any]:
    """Return what `KNOWN` holds; nothing where it cannot be read."""
    with suppress(OSError, ValueError):
        known = json.loads((project_folder() / KNOWN).read_text(encoding="utf-8"))
        if isinstance(known, dict):
            return known
    return {}


def _write(name: Path, content: Any) -> None:
    """Write a JSON file; not in a project folder that is read-only, which stops no run."""
    with suppress(OSError):
        file = project_folder() / name
        file.parent.mkdir(exist_ok=True)
        with replacing_file(file) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")


def _entry(catalog: DataCatalog, name: str, earlier: Any) -> dict[str, Any] | None:
    """Return path, time of change and sizes of a data set; None without a file on this machine.

    Args:
        catalog: of the run.
        name: of the data set.
        earlier: result for this name after an earlier run, which holds for an unchanged path.
    """
    path = dataset_path(catalog, name)
    if path is None or not path.exists():
        return None
    state = {"path": str(path), "changed_ns": _changed_ns(path)}
    sizes = None
    if isinstance(earlier, dict) and state.items() <= earlier.items():
        sizes = earlier.get("sizes")
    if not isinstance(sizes, dict):
        sizes = _sizes(catalog.get(name), path)
    return {**state, "sizes": sizes}


def _changed_ns(path: Path) -> int:
    """Return when a file, or any folder of a data set, was last changed.

    Files of a data set are replaced and not written into, which changes their folder.
    """
    changed = path.stat().st_mtime_ns
    for folder, _, _ in os.walk(path):
        changed = max(changed, os.stat(folder).st_mtime_ns)
    return changed


def _sizes(dataset: Any, path: Path) -> dict[str, int]:
    """Return the numbers of a data set, in the order in which kedro-viz shows them."""
    sizes: dict[str, int] = {}
    counts = getattr(dataset, "counts", None)
    if counts is not None:
        # One that is damaged is reported by the node that reads it.
        with suppress(Exception):
            sizes.update({str(kind): int(number) for kind, number in counts().items()})
    with suppress(OSError):
        sizes["file_size"] = sum(file.stat().st_size for file in files_below(path))
    return sizes
