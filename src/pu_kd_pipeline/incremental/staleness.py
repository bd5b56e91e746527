"""Whether the outputs of a node are still what it would make."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.incremental.durations import Duration, NodeDurations, file_stamps
from pu_kd_pipeline.incremental.file_states import FileStates, safe_name
from pu_kd_pipeline.incremental.node_records import (
    NodeRecord,
    NodeRecords,
    damaged_outputs,
    differences,
)
from pu_kd_pipeline.incremental.node_states import (
    NodeStates,
    UnknownStateError,
    datasets_of,
    local_path,
)
from pu_kd_pipeline.storage.atomic import remove_empty_folder, remove_leftovers
from pu_kd_pipeline.storage.digests import files_below, json_digest

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)
RECORDS = "node_records"  # the catalog entry
FILE_STATES = "file_states.json"  # in the folder of RECORDS
CHECKPOINTS = "checkpoints"  # the catalog entry of the folder that trainings resume from
NO_RECORD = "there is no record that it finished here"
_MAX_REASONS = 3  # reasons that are listed; the others are counted


class StalenessTracker:
    """Decides whether a node has to run, and keeps the records that it decides by.

    For each node of a run, in order: `reason_to_run`, and then either `record_unchanged_code`, or
    `prepare_run` before, and `record_duration` and `record_run` after it has run.

    Args:
        catalog: of the run, with the entry `RECORDS`.
        is_read_only: decide only, and write nothing.
    """

    def __init__(self, catalog: CatalogProtocol[Any, Any], *, is_read_only: bool = False) -> None:
        self._catalog = catalog
        records: Any = catalog.get(RECORDS)
        self.folder = Path(records.filepath)
        self.durations = NodeDurations(self.folder)
        self._records = NodeRecords(self.folder)
        self._files = FileStates(self.folder / FILE_STATES, is_read_only=is_read_only)
        self._states = NodeStates(catalog, self.folder.parent, self._files)
        # node -> what it would be made from now, and what it was made from
        self._current: dict[str, NodeRecord] = {}
        self._recorded: dict[str, NodeRecord] = {}
        # What the node that is about to run finds: files of its outputs, and a checkpoint.
        self._found_files: dict[Any, Any] = {}
        self._found_checkpoints = False

    def reason_to_run(self, node: Node, pending: Collection[str] = ()) -> str | None:
        """Return why a node has to run, or None if its outputs are still what it would make.

        Args:
            node: the node.
            pending: inputs that are going to be made again, so that their content does not matter.
        """
        for name in datasets_of(node):
            if not self._states.is_comparable(name):
                return f"`{name}` is not kept on this machine's disk"
        record = self._records.read(node.name)
        if record is not None:
            self._recorded[node.name] = record
        try:
            current = self._states.current(node, record)
        except UnknownStateError as exc:
            return f"it runs every time: {exc}"
        self._current[node.name] = current
        if record is None:
            return NO_RECORD
        reasons = differences(record, current, pending)
        if not reasons:  # reading the outputs is the slow part, so it comes last
            outputs = self._states.outputs(node)
            reasons = damaged_outputs(record, outputs)
        self._files.save()
        if not reasons:
            return None
        return _listed(reasons)

    def record_unchanged_code(self, node: Node) -> None:
        """Record that files of the project changed without changing the node's code.

        The next run then need not parse them.
        """
        name = node.name
        recorded = self._recorded[name]
        current = self._current[name]
        if recorded.code_stamp != current.code_stamp:
            self._records.write(replace(current, outputs=recorded.outputs))

    def prepare_run(self, node: Node, *, is_forced: bool = False) -> None:
        """Remove a node's record, unfinished files, and changed parts of its outputs.

        Args:
            node: the node.
            is_forced: keep nothing of what it made, not even what is intact.
        """
        # First: from here on the outputs may be incomplete.
        self._records.remove(node.name)
        for output in node.outputs:
            path = self._states.path(output)
            if path is not None:
                remove_leftovers(path.parent, path.name)
                remove_empty_folder(path)
        if is_forced:
            make_everything_again(node, self._catalog)

        # A forced node has not been compared.
        if node.name not in self._current:
            with suppress(UnknownStateError):
                self._current[node.name] = self._states.current(node, None)
        self._remove_checkpoints_of_other_code(node)
        self._remove_changed_parts(node)
        self._found_files = self._output_stamps(node)
        self._found_checkpoints = has_checkpoints(node, self._catalog)

    def record_duration(self, node: Node, seconds: float) -> None:
        """Record how long a node took that has just run.

        Args:
            node: the node.
            seconds: for loading inputs, its function, and saving outputs.
        """
        stamps = self._output_stamps(node)
        # A file of an output that was not written again was not made again.
        is_kept = any(stamps.get(file) == stamp for file, stamp in self._found_files.items())
        is_complete = not (is_kept or self._found_checkpoints)
        self.durations.write(Duration(node.name, seconds, is_complete))

    def _output_stamps(self, node: Node) -> dict[Any, Any]:
        """Return file of an output -> what changes when it is written again."""
        files: list[Path] = []
        stamps: dict[Any, Any] = {}
        for name in node.outputs:
            files += self._states.files(name)
            for file, mark in (self._states.remote_files(name) or {}).items():
                stamps[name, file] = mark
        stamps.update(file_stamps(files))
        return stamps

    def record_run(self, node: Node) -> None:
        """Record what the outputs that were just saved were made from.

        Nothing is recorded if that changed in the meantime, because the node may have read it
        before or after the change.
        """
        _remove(self._started_file(node))
        before = self._current.get(node.name)
        if before is None:
            return
        try:
            now = self._states.current(node, before)
        except UnknownStateError as exc:
            changes = [str(exc)]
        else:
            changes = differences(before, now)
        if changes:
            logger.warning(
                "%s runs again next time, because something changed while it ran: %s",
                node.name,
                _listed(changes),
            )
        else:
            outputs = self._states.outputs(node)
            self._records.write(replace(now, outputs=outputs))
        self._files.save()

    def _remove_changed_parts(self, node: Node) -> None:
        """Remove the files of outputs that are not what was written.

        The others stay: stores and tables make only what is missing.
        """
        record = self._recorded.get(node.name)
        if record is None:
            return
        for name, files in self._states.outputs(node).items():
            written = record.outputs.get(name, {})
            for path, digest in files.items():
                if not path:  # an output that is one file: the node replaces it anyway
                    continue
                if written.get(path, digest) != digest:
                    file = self._states.remove_file(name, path)
                    logger.warning("%s is not what was written: it is made again", file)

    def _remove_checkpoints_of_other_code(self, node: Node) -> None:
        """Remove the checkpoints of a stopped training whose code has changed since.

        Resumed with other code, it would not end as an uninterrupted training does.
        """
        current = self._current.get(node.name)
        code = "unknown"
        if current is not None:
            code = json_digest([current.code, current.outside, current.libraries])
        started = self._started_file(node)
        is_stopped = started.exists()
        if is_stopped and (current is None or _text_of(started) != code):
            if remove_checkpoints(node, self._catalog):
                logger.warning(
                    "%s was stopped with other code or libraries: its training starts over",
                    node.name,
                )
            _remove(started)

        started.parent.mkdir(parents=True, exist_ok=True)
        started.write_text(code, encoding="utf-8")

    def _started_file(self, node: Node) -> Path:
        """Return the file that holds the digest of a node's code until the node finishes."""
        return self.folder / f"{safe_name(node.name)}.begun"


def make_everything_again(node: Node, catalog: CatalogProtocol[Any, Any]) -> None:
    """Let a node that is about to run use nothing that it made before: no shard, no checkpoint."""
    remove_checkpoints(node, catalog)
    for name in node.outputs:
        # Data sets of several parts make only those that are missing, unless asked for all.
        make_again = getattr(catalog.get(name), "make_again", None)
        if make_again is not None:
            make_again()


def remove_checkpoints(node: Node, catalog: CatalogProtocol[Any, Any]) -> bool:
    """Remove the checkpoints of a node, and return whether there were any."""
    folder = _checkpoints_of(node, catalog)
    if folder is None or not folder.is_dir():
        return False
    shutil.rmtree(folder)
    return True


def has_checkpoints(node: Node, catalog: CatalogProtocol[Any, Any]) -> bool:
    """Return whether a training of a node was stopped and can resume."""
    folder = _checkpoints_of(node, catalog)
    return folder is not None and any(files_below(folder))


def _checkpoints_of(node: Node, catalog: CatalogProtocol[Any, Any]) -> Path | None:
    if CHECKPOINTS not in catalog:
        return None
    checkpoints = local_path(catalog, CHECKPOINTS)
    return None if checkpoints is None else checkpoints / node.name


def _listed(reasons: list[str]) -> str:
    text = "; ".join(reasons[:_MAX_REASONS])
    n_more = len(reasons) - _MAX_REASONS
    if n_more > 0:
        text += f"; and {n_more} more"
    return text


def _text_of(file: Path) -> str:
    """Return the text of a file; empty if it is damaged or cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
