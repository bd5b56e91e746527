"""What a node would be made from now, read off the catalog, the files and the code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.incremental.file_states import FileStates
from pu_kd_pipeline.incremental.node_records import NodeRecord, external_states
from pu_kd_pipeline.incremental.parameter_texts import NotComparableError, parameter_texts
from pu_kd_pipeline.masking import without_credentials
from pu_kd_pipeline.models.cards import CARD
from pu_kd_pipeline.provenance.code_index import CodeIndex
from pu_kd_pipeline.provenance.factories import factory_digest
from pu_kd_pipeline.provenance.fingerprint import current_index
from pu_kd_pipeline.provenance.libraries import library_versions
from pu_kd_pipeline.provenance.loaded_code import why_unknown
from pu_kd_pipeline.storage.digests import files_below, json_digest

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

# Parameters that decide where and how often a run writes, logs and computes, but not what it makes.
_PARAMETERS_WITHOUT_EFFECT = ("data", "tracking", "checkpoint_every_s", "engine", "cache_gb")
# Also inside of other blocks: results of several workers differ from those of one process by
# rounding (docs/data_parallel.md), and a training that was begun resumes with any number of them.
_BLOCK_WITHOUT_EFFECT = "training_workers"
# Of catalog entries: how their data is reached, but not what it is.
_KEYS_WITHOUT_EFFECT = ("metadata", "credentials", "cache", "cache_gb")

# Tag of nodes that show parameters, and open no file that these name.
SHOWS_PARAMETERS = "shows_parameters"


class UnknownStateError(Exception):
    """What a node is made from cannot be determined; the message says why."""


class NodeStates:
    """Determines what nodes are made from.

    Args:
        catalog: of the run.
        data_folder: paths below it are recorded relative to it, so that it can be moved.
        files: digests of files.
    """

    def __init__(
        self, catalog: CatalogProtocol[Any, Any], data_folder: Path, files: FileStates
    ) -> None:
        self._catalog = catalog
        self._data_folder = data_folder
        self._files = files

    def current(self, node: Node, recorded: NodeRecord | None) -> NodeRecord:
        """Return what a node would be made from now, without outputs.

        Args:
            node: the node.
            recorded: what it was made from; its code is used again where no source changed.

        Raises:
            UnknownStateError: it cannot be determined, so that the node has to run.
        """
        index = current_index()
        makers = self._makers(node)
        stamp = index.stamp(makers, _code_keys(recorded))
        if recorded is not None and recorded.code_stamp == stamp:
            code = recorded.code  # no source file changed, so it need not be parsed
            libraries = library_versions(recorded.libraries)
        else:
            code, distributions = _code_of(makers, index)
            libraries = library_versions(distributions)
            # With the packages that were found, of which the first stamp knew nothing.
            stamp = index.stamp(makers, code)
        for maker in makers:
            parts = index.parts(maker)
            if parts.unknown:
                what = "its function"
                if maker is not node.func:
                    what = "the type of a data set"
                raise UnknownStateError(f"{what} is {parts.unknown}")
        unknown_code = why_unknown(code)
        if unknown_code:
            raise UnknownStateError(f"it uses {unknown_code}")

        try:
            parameters, outside = self._parameters_of(node, index.parts(node.func).values)
            entries = {name: json_digest(self._entry(name)) for name in datasets_of(node)}
        except NotComparableError as exc:
            raise UnknownStateError(str(exc)) from exc

        inputs = {}
        for name in saved_datasets(node.inputs):
            inputs[name] = json_digest(self._input_state(name))
            factories = self._factories_of_models(name)
            if factories:
                outside[name] = json_digest(factories)
        return NodeRecord(
            node=node.name,
            wiring=json_digest([node._inputs, node._outputs]),
            parameters=parameters,
            inputs=inputs,
            outside=outside,
            catalog=entries,
            code=code,
            code_stamp=stamp,
            libraries=libraries,
        )

    def outputs(self, node: Node) -> dict[str, dict[str, str]]:
        """Return output -> path of a file below it -> digest of its content."""
        return {name: self.content(name) for name in node.outputs}

    def is_comparable(self, name: str) -> bool:
        """Return whether a change of a data set's content can be noticed."""
        if self.path(name) is not None:
            return True
        is_remote_folder = getattr(self._catalog.get(name), "remote", None) is not None
        # Others are asked, because some stores have no checksums.
        return is_remote_folder or self.remote_files(name) is not None

    def remote_files(self, name: str) -> dict[str, str] | None:
        """Return path below a data set -> what its object store says of the content.

        None: it is not on an object store, or that states no checksum.
        """
        list_files = getattr(self._catalog.get(name), "remote_files", None)
        if list_files is None:
            return None
        found: dict[str, str] | None = list_files()
        return found

    def remove_file(self, name: str, file: str) -> str:
        """Remove one of the files of a data set, and return its path or address.

        Args:
            name: of the data set.
            file: path below it.
        """
        path = self.path(name)
        if path is not None:
            (path / file).unlink(missing_ok=True)
            return str(path / file)
        dataset: Any = self._catalog.get(name)
        dataset.remove_remote(file)
        return str(dataset.folder.address(file))

    def content(self, name: str) -> dict[str, str]:
        """Return path below a data set -> digest of the file, of all files that belong to it."""
        remote_files = self.remote_files(name)
        if remote_files is not None:
            return remote_files
        path = self.path(name)
        if path is None:
            return {}
        return self._files.digests(path, self.files(name))

    def files(self, name: str) -> list[Path]:
        """Return the files that belong to a data set."""
        path = self.path(name)
        if path is None:
            return []
        dataset: Any = self._catalog.get(name)
        # A dataset type of this project may know which files in its folder belong to it.
        list_files = getattr(dataset, "files", None)
        if list_files:
            return list(list_files())
        return list(files_below(path))

    def _input_state(self, name: str) -> Any:
        """Return what a node that reads a data set depends on."""
        # Files may hold more than what readers see, such as when a source was changed.
        content_state = getattr(self._catalog.get(name), "content_state", None)
        state = None
        if content_state is not None:
            state = content_state()
        if state is None:
            return self.content(name)
        return state

    def path(self, name: str) -> Path | None:
        """Return where a data set is stored.

        None for one in memory, with versions, or on another machine.
        """
        return local_path(self._catalog, name)

    def _parameters_of(
        self, node: Node, held: Mapping[str, Any]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Return the texts of a node's parameters, and the states of what they name.

        Args:
            node: the node.
            held: values that its function holds, which count as parameters.
        """
        values = dict(held)
        for name in node.inputs:
            if name == "parameters":
                values[name] = self._parameters_with_effect()
            elif name.startswith("params:"):
                key = name.removeprefix("params:")
                if key not in _PARAMETERS_WITHOUT_EFFECT:
                    values[key] = self._catalog.load(name)
        texts: dict[str, str] = {}
        outside: dict[str, str] = {}
        for name, value in values.items():
            for key, text in parameter_texts(name, value).items():
                if _BLOCK_WITHOUT_EFFECT not in key.split("."):
                    texts[key] = text
            if SHOWS_PARAMETERS not in node.tags:
                outside |= external_states(name, value, self._files)
        return texts, outside

    def _parameters_with_effect(self) -> dict[str, Any]:
        parameters = dict(self._catalog.load("parameters"))
        for key in _PARAMETERS_WITHOUT_EFFECT:
            parameters.pop(key, None)
        return parameters

    def _makers(self, node: Node) -> list[Any]:
        """Return whose code counts: the types of a node's data sets, and its function."""
        datasets = [self._catalog.get(name) for name in datasets_of(node)]
        # A dict and not a set, so that the order is the same in every process.
        dataset_types = dict.fromkeys(map(type, datasets))
        return [*dataset_types, node.func]

    def _factories_of_models(self, name: str) -> dict[str, str]:
        """Return factory -> digest of its code, of those that the card of a model names."""
        path = self.path(name)
        if path is None or not (path / CARD).is_file():
            return {}
        try:
            card = json.loads((path / CARD).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}  # the node that reads it reports it
        return {text: factory_digest(text) for text in _architectures(card)}

    def _entry(self, name: str) -> dict[str, str]:
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
        if not entry:  # a data set that was put into the catalog by code
            entry = dict(getattr(self._catalog.get(name), "_init_args", None) or {})
        for key in _KEYS_WITHOUT_EFFECT:
            entry.pop(key, None)

        path = self.path(name)
        if path is None and entry.get("filepath"):
            entry["filepath"] = without_credentials(str(entry["filepath"]))
            return parameter_texts(name, entry)
        if path is not None and path.is_relative_to(self._data_folder):
            entry["filepath"] = path.relative_to(self._data_folder).as_posix()
        else:
            entry["filepath"] = str(path)
        return parameter_texts(name, entry)


def local_path(catalog: CatalogProtocol[Any, Any], name: str) -> Path | None:
    """Return where a data set of a catalog is stored on this machine, if its content is compared.

    None for one in memory, with versions, or on another machine.
    """
    dataset = catalog.get(name)
    # Kedro's own types keep the path in a private attribute.
    public_path = getattr(dataset, "filepath", None)
    path = public_path or getattr(dataset, "_filepath", None)
    protocol = getattr(dataset, "_protocol", "file")
    version = getattr(dataset, "_version", None)
    if path is None or protocol != "file" or version is not None:
        return None
    return Path(path)


def saved_datasets(names: Iterable[str]) -> list[str]:
    """Return the data sets among a node's inputs, without the parameters."""
    datasets = []
    for name in names:
        is_parameter = name == "parameters" or name.startswith("params:")
        if not is_parameter:
            datasets.append(name)
    return datasets


def datasets_of(node: Node) -> list[str]:
    """Return the data sets that a node reads and writes."""
    return [*saved_datasets(node.inputs), *node.outputs]


def _code_of(makers: Iterable[Any], index: CodeIndex) -> tuple[dict[str, str], set[str]]:
    """Return the digests of some code, and the distributions that it uses."""
    digests: dict[str, str] = {}
    distributions: set[str] = set()
    for maker in makers:
        code = index.code(maker)
        digests |= code.digests
        distributions |= code.distributions
    return digests, distributions


def _code_keys(recorded: NodeRecord | None) -> Iterable[str]:
    if recorded is None:
        return ()
    return recorded.code


def _architectures(card: Any) -> Iterator[str]:
    """Yield the factories in a card, which may hold the card of another model."""
    if isinstance(card, Mapping):
        for key, value in card.items():
            if key == "architecture" and isinstance(value, str) and ":" in value:
                yield value
            else:
                yield from _architectures(value)
