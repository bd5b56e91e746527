"""Whether the outputs of a node are still what it would make."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.incremental.file_states import FileStates, safe_name
from pu_kd_pipeline.incremental.node_records import (
    NodeRecord,
    NodeRecords,
    damaged_outputs,
    differences,
    external_states,
    flat_parameters,
)
from pu_kd_pipeline.provenance.code_index import CodeIndex
from pu_kd_pipeline.provenance.libraries import library_versions
from pu_kd_pipeline.storage.atomic import remove_leftovers
from pu_kd_pipeline.storage.digests import files_below, json_digest

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)
RECORDS = "node_records"  # the catalog entry
CHECKPOINTS = "checkpoints"  # the catalog entry of the folder that trainings resume from
_MAX_REASONS = 3  # reasons that are listed; the others are counted
# Parameters that decide where a run writes and logs, and how often, but not what it makes.
_PARAMETERS_WITHOUT_EFFECT = ("data", "tracking", "checkpoint_every_s")


class StalenessTracker:
    """Decides whether a node has to run, and keeps the records that it decides by.

    For each node of a run, in order: `reason_to_run`, and then either `record_unchanged_code`, or
    `prepare_run` before and `record_run` after it has run.
    """

    def __init__(self, catalog: CatalogProtocol[Any, Any]) -> None:
        self._catalog = catalog
        records: Any = catalog.get(RECORDS)
        self.folder = Path(records.filepath)
        self._records = NodeRecords(self.folder)
        self._files = FileStates(self.folder / "file_states.json")
        self._code = CodeIndex()
        self._libraries = library_versions()
        # node -> what it would be made from now, and what it was made from
        self._current: dict[str, NodeRecord] = {}
        self._recorded: dict[str, NodeRecord] = {}

    def reason_to_run(self, node: Node) -> str | None:
        """Return why a node has to run, or None if its outputs are still what it would make."""
        for name in _datasets_of(node):
            if self._path(name) is None:
                return f"`{name}` is not kept on this machine's disk"
        record = self._records.read(node.name)
        if record is None:
            return "there is no record that it finished here"

        self._recorded[node.name] = record
        current = self._current_record(node, record)
        reasons = differences(record, current)
        if not reasons:  # reading the outputs is the slow part, so it comes last
            outputs = self._outputs(node)
            reasons = damaged_outputs(record, outputs)
        self._files.save()
        if not reasons:
            return None

        text = "; ".join(reasons[:_MAX_REASONS])
        n_more = len(reasons) - _MAX_REASONS
        if n_more > 0:
            text += f"; and {n_more} more"
        return text

    def record_unchanged_code(self, node: Node) -> None:
        """Record that files of the project changed without changing the node's code.

        The next run then need not parse them.
        """
        name = node.name
        recorded = self._recorded[name]
        current = self._current[name]
        if recorded.code_stamp != current.code_stamp:
            record = replace(current, outputs=recorded.outputs)
            self._records.write(name, record)

    def prepare_run(self, node: Node) -> None:
        """Remove a node's record, unfinished files, and changed parts of its outputs."""
        self._records.remove(node.name)
        for output in node.outputs:
            path = self._path(output)
            if path is not None:
                remove_leftovers(path.parent, path.name)

        # A forced node, or one without a record, has not been compared.
        if node.name not in self._current:
            self._current_record(node, None)
        self._remove_checkpoints_of_other_code(node)
        self._remove_changed_parts(node)

    def record_run(self, node: Node) -> None:
        """Record what the outputs that were just saved were made from."""
        current = self._current[node.name]
        outputs = self._outputs(node)
        record = replace(current, outputs=outputs)
        self._records.write(node.name, record)
        started = self._started_file(node)
        started.unlink(missing_ok=True)
        self._files.save()

    def _remove_changed_parts(self, node: Node) -> None:
        """Remove the files of outputs that are not what was written.

        The others stay: stores and tables make only what is missing.
        """
        record = self._recorded.get(node.name)
        if record is None:
            return
        for name, files in self._outputs(node).items():
            folder = self._path(name)
            if folder is None:
                continue
            written = record.outputs.get(name, {})
            for path, digest in files.items():
                if not path:  # an output that is one file: the node replaces it anyway
                    continue
                if written.get(path, digest) != digest:
                    file = folder / path
                    logger.warning("%s is not what was written: it is made again", file)
                    file.unlink(missing_ok=True)

    def _remove_checkpoints_of_other_code(self, node: Node) -> None:
        """Remove the checkpoints of a stopped training whose code has changed since.

        Resumed with other code, it would not end as an uninterrupted training does.
        """
        current = self._current[node.name]
        code = json_digest(current.code)
        started = self._started_file(node)
        started_with = code
        if started.is_file():
            started_with = started.read_text(encoding="utf-8")

        if started_with != code and CHECKPOINTS in self._catalog:
            checkpoints: Any = self._catalog.get(CHECKPOINTS)
            folder = Path(checkpoints.filepath) / node.name
            if folder.is_dir():
                logger.warning(
                    "%s was stopped with other code: its training starts over", node.name
                )
                shutil.rmtree(folder)

        started.parent.mkdir(parents=True, exist_ok=True)
        started.write_text(code, encoding="utf-8")

    def _started_file(self, node: Node) -> Path:
        """Return the file that holds the digest of a node's code until the node finishes."""
        return self.folder / f"{safe_name(node.name)}.begun"

    def _current_record(self, node: Node, recorded: NodeRecord | None) -> NodeRecord:
        """Return what the node would be made from now, without outputs."""
        parameters: dict[str, Any] = {}
        external: dict[str, str] = {}
        inputs: dict[str, str] = {}
        for name in node.inputs:
            if name == "parameters":  # all of them: a report shows them, and opens no file
                all_parameters = self._parameters_with_effect()
                parameters |= flat_parameters(name, all_parameters)
            elif name.startswith("params:"):
                key = name.removeprefix("params:")
                value = self._catalog.load(name)
                parameters |= flat_parameters(key, value)
                external |= external_states(key, value, self._files)
            else:
                content = self._content(name)
                inputs[name] = json_digest(content)

        stamp = self._code.stamp(_unwrapped(node.func))
        if recorded is not None and recorded.code_stamp == stamp:
            code = recorded.code  # no source file changed, so it need not be parsed
        else:
            code = self._code_of(node)

        entries = {}
        for name in _datasets_of(node):
            entry = self._entry(name)
            entries[name] = json_digest(entry)
        record = NodeRecord(
            parameters=parameters,
            inputs=inputs,
            outside=external,
            catalog=entries,
            code=code,
            code_stamp=stamp,
            libraries=self._libraries,
        )
        self._current[node.name] = record
        return record

    def _parameters_with_effect(self) -> dict[str, Any]:
        parameters = dict(self._catalog.load("parameters"))
        for key in _PARAMETERS_WITHOUT_EFFECT:
            parameters.pop(key, None)
        return parameters

    def _code_of(self, node: Node) -> dict[str, str]:
        """Return the code of a node's function, and of the types of its data sets."""
        function = _unwrapped(node.func)
        code = self._code.code_digests(function)
        datasets = [self._catalog.get(name) for name in _datasets_of(node)]
        # A dict and not a set, so that the order is the same in every process.
        dataset_types = dict.fromkeys(map(type, datasets))
        for dataset_type in dataset_types:
            code |= self._code.code_digests(dataset_type)
        return code

    def _outputs(self, node: Node) -> dict[str, dict[str, str]]:
        return {name: self._content(name) for name in node.outputs}

    def _content(self, name: str) -> dict[str, str]:
        """Return path below a data set -> digest of the file, of all files that belong to it."""
        path = self._path(name)
        if path is None:
            return {}
        dataset: Any = self._catalog.get(name)
        # A dataset type of this project may know which files in its folder belong to it.
        list_files = getattr(dataset, "files", None)
        if list_files:
            files = list_files()
        else:
            files = files_below(path)
        return self._files.digests(path, files)

    def _path(self, name: str) -> Path | None:
        """Return where a data set is stored.

        None for one in memory, with versions, or on another machine.
        """
        dataset = self._catalog.get(name)
        # Kedro's own types keep the path in a private attribute.
        public_path = getattr(dataset, "filepath", None)
        path = public_path or getattr(dataset, "_filepath", None)
        protocol = getattr(dataset, "_protocol", "file")
        version = getattr(dataset, "_version", None)
        if path is None or protocol != "file" or version is not None:
            return None
        return Path(path)

    def _entry(self, name: str) -> Any:
        """Return what decides in a catalog entry; the place of the data folder does not.

        So a data folder that was moved is up to date.
        """
        resolver: Any = self._catalog.config_resolver  # type: ignore[attr-defined]
        own_entry = resolver.config.get(name, {})
        entry = dict(own_entry)
        if not entry and resolver.match_dataset_pattern(name):
            # An entry that a dataset factory made is not among the resolver's own.
            factory_entry = resolver.resolve_pattern(name)
            entry = dict(factory_entry)
        entry.pop("metadata", None)

        path = self._path(name)
        data_folder = self.folder.parent
        if path is not None and path.is_relative_to(data_folder):
            entry["filepath"] = path.relative_to(data_folder).as_posix()
        else:
            entry["filepath"] = str(path)
        return entry


def saved_datasets(names: Iterable[str]) -> list[str]:
    """Return the data sets among a node's inputs, without the parameters."""
    datasets = []
    for name in names:
        is_parameter = name == "parameters" or name.startswith("params:")
        if not is_parameter:
            datasets.append(name)
    return datasets


def _datasets_of(node: Node) -> list[str]:
    inputs = saved_datasets(node.inputs)
    return [*inputs, *node.outputs]


def _unwrapped(function: Any) -> Any:
    """Return the function behind partials and decorators."""
    while True:
        inner = getattr(function, "__wrapped__", None) or getattr(function, "func", None)
        if not inner:
            return function
        function = inner
