"""Whether the outputs of a node are still what it would make."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.incremental.code_index import CodeIndex
from pu_kd_pipeline.incremental.file_states import FileStates, safe_name
from pu_kd_pipeline.incremental.node_records import (
    NodeRecord,
    NodeRecords,
    damaged_outputs,
    differences,
    flat_parameters,
    libraries,
    outside_of,
)
from pu_kd_pipeline.storage.atomic import remove_leftovers
from pu_kd_pipeline.storage.digests import digest_of, files_below

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)
RECORDS = "node_records"  # the catalog entry
CHECKPOINTS = "checkpoints"  # the catalog entry of the folder that trainings go on from
_MOST_REASONS = 3
# among all parameters: where a run writes and logs, and how often, not what it makes
_UNDECISIVE = ("data", "tracking", "checkpoint_every_s")


class StalenessTracker:
    """Decides whether a node has to run, and keeps the records."""

    def __init__(self, catalog: CatalogProtocol[Any, Any]) -> None:
        self._catalog = catalog
        self.folder = Path(catalog.get(RECORDS).filepath)  # type: ignore[union-attr]
        self._records = NodeRecords(self.folder)
        self._files = FileStates(self.folder / "file_states.json")
        self._code = CodeIndex()
        self._libraries = libraries()
        self._now: dict[str, NodeRecord] = {}
        self._before: dict[str, NodeRecord] = {}

    def why(self, node: Node) -> str | None:
        """Return why a node has to run, or None where its outputs are still what it would make."""
        if elsewhere := [
            name
            for name in (*saved_datasets(node.inputs), *node.outputs)
            if self._place(name) is None
        ]:
            return f"`{elsewhere[0]}` is not kept on this machine's disk"
        record = self._records.read(node.name)
        if record is None:
            return "there is no record that it finished here"
        self._before[node.name] = record
        now = self._state(node, record)
        reasons = differences(record, now) or damaged_outputs(record, self._outputs(node))
        self._files.save()
        more = f"; and {len(reasons) - _MOST_REASONS} more" if len(reasons) > _MOST_REASONS else ""
        return "; ".join(reasons[:_MOST_REASONS]) + more or None

    def keep(self, node: Node) -> None:
        """Remember, where files of the project changed, that the node's code did not: the next run looks no further."""
        before, now = self._before[node.name], self._now[node.name]
        if before.code_stamp != now.code_stamp:
            self._records.write(node.name, replace(now, outputs=before.outputs))

    def begin(self, node: Node) -> None:
        """Forget the node's outputs, and remove the parts of them that are not what was written, or half-written."""
        self._records.remove(node.name)
        for output in node.outputs:
            if (place := self._place(output)) is not None:
                remove_leftovers(place.parent, place.name)
        if node.name not in self._now:
            self._state(node, None)
        self._forget_checkpoints_of_other_code(node)
        if record := self._before.get(node.name):
            for name, files in self._outputs(node).items():
                place, written = self._place(name), record.outputs.get(name, {})
                for path, digest in files.items():
                    if place is not None and path and written.get(path, digest) != digest:
                        logger.warning("%s is not what was written: it is made again", place / path)
                        (place / path).unlink(missing_ok=True)

    def end(self, node: Node) -> None:
        """Record what the outputs that were just saved were made from."""
        self._records.write(node.name, replace(self._now[node.name], outputs=self._outputs(node)))
        self._begun(node).unlink(missing_ok=True)
        self._files.save()

    def _forget_checkpoints_of_other_code(self, node: Node) -> None:
        """Remove what a stopped training left where its code has changed since: it cannot go on to the same end."""
        code, begun = digest_of(self._now[node.name].code), self._begun(node)
        if (
            CHECKPOINTS in self._catalog
            and begun.is_file()
            and begun.read_text(encoding="utf-8") != code
        ):
            folder = Path(self._catalog.get(CHECKPOINTS).filepath) / node.name  # type: ignore[union-attr]
            if folder.is_dir():
                logger.warning(
                    "%s was stopped with other code: its training starts anew", node.name
                )
                shutil.rmtree(folder)
        begun.parent.mkdir(parents=True, exist_ok=True)
        begun.write_text(code, encoding="utf-8")

    def _begun(self, node: Node) -> Path:
        return self.folder / f"{safe_name(node.name)}.begun"

    def _state(self, node: Node, record: NodeRecord | None) -> NodeRecord:
        """Return what the node would be made from now, without outputs."""
        parameters: dict[str, Any] = {}
        outside: dict[str, str] = {}
        inputs: dict[str, str] = {}
        code: dict[str, str] = {}
        for name in node.inputs:
            if name == "parameters":  # all of them: a report shows them, and opens nothing
                shown = {
                    key: value
                    for key, value in self._catalog.load(name).items()
                    if key not in _UNDECISIVE
                }
                parameters |= flat_parameters(name, shown)
            elif name.startswith("params:"):
                value, key = self._catalog.load(name), name.removeprefix("params:")
                parameters |= flat_parameters(key, value)
                outside |= outside_of(key, value, self._files)
            else:
                inputs[name] = digest_of(self._content(name))
        function = _unwrapped(node.func)
        stamp = self._code.stamp(function)
        if record is not None and record.code_stamp == stamp:
            code = record.code
        else:
            datasets = [
                type(self._catalog.get(name))
                for name in (*saved_datasets(node.inputs), *node.outputs)
            ]
            for thing in (function, *dict.fromkeys(datasets)):
                code |= self._code.code_of(thing)
        entries = {
            name: digest_of(self._entry(name))
            for name in (*saved_datasets(node.inputs), *node.outputs)
        }
        state = NodeRecord(parameters, inputs, outside, entries, code, stamp, self._libraries)
        self._now[node.name] = state
        return state

    def _outputs(self, node: Node) -> dict[str, dict[str, str]]:
        return {name: self._content(name) for name in node.outputs}

    def _content(self, name: str) -> dict[str, str]:
        place = self._place(name)
        if place is None:
            return {}
        files: Callable[[], Iterable[Path]] | None = getattr(self._catalog.get(name), "files", None)
        return self._files.digests(place, files() if files else files_below(place))

    def _place(self, name: str) -> Path | None:
        """Return where a data set is kept; None for one in memory, versioned, or on another machine."""
        dataset = self._catalog.get(name)
        place = getattr(dataset, "filepath", None) or getattr(dataset, "_filepath", None)
        is_local = (
            getattr(dataset, "_protocol", "file") == "file"
            and getattr(dataset, "_version", None) is None
        )
        return Path(place) if place is not None and is_local else None

    def _entry(self, name: str) -> Any:
        """Return a catalog entry without what does not decide, and without where the data folder is."""
        config: Mapping[str, Any] = self._catalog.config_resolver.config.get(name, {})  # type: ignore[attr-defined]
        place = self._place(name)
        entry = {key: value for key, value in config.items() if key not in ("metadata", "filepath")}
        if place is not None and place.is_relative_to(self.folder.parent):
            return {**entry, "filepath": place.relative_to(self.folder.parent).as_posix()}
        return {**entry, "filepath": str(place)}


def saved_datasets(names: Iterable[str]) -> list[str]:
    """Return the data sets among a node's inputs that are no parameters."""
    return [name for name in names if not name.startswith("params:") and name != "parameters"]


def _unwrapped(function: Any) -> Any:
    """Return the function behind partials and decorators."""
    while inner := getattr(function, "__wrapped__", None) or getattr(function, "func", None):
        function = inner
    return function
