"""What kedro-viz shows of runs: sizes of all data sets, and the last run that ran any node."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.io.core import DatasetError

from pu_kd_pipeline.errors import InputError
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
        found = {}
        for name in sorted(pipeline.datasets()):
            path = dataset_path(catalog, name)
            if path is not None and path.exists():
                found[name] = _sizes(catalog.get(name), path)
        # It is only looked at: a project folder that is read-only stops no run.
        with suppress(OSError):
            file = project_folder() / STATISTICS
            file.parent.mkdir(exist_ok=True)
            with replacing_file(file) as temporary:
                temporary.write_text(json.dumps(found), encoding="utf-8")

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


def _sizes(dataset: Any, path: Path) -> dict[str, int]:
    """Return the numbers of a data set, in the order in which kedro-viz shows them."""
    sizes: dict[str, int] = {}
    counts = getattr(dataset, "counts", None)
    if counts is not None:
        # One that is damaged is reported by the node that reads it.
        with suppress(DatasetError, InputError, OSError, ValueError):
            sizes.update(counts())
    with suppress(OSError):
        sizes["file_size"] = sum(file.stat().st_size for file in files_below(path))
    return sizes
