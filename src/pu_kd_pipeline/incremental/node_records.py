"""The record of a node: what its outputs were made from, and what differs now.

A record is written after the outputs and removed before the node runs again, so that outputs with a
record are complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pu_kd_pipeline.incremental.checked_files import read_checked, write_checked
from pu_kd_pipeline.incremental.file_states import FileStates, safe_name
from pu_kd_pipeline.models.cards import CARD, WEIGHTS
from pu_kd_pipeline.params.data_ingestion import ImageSource
from pu_kd_pipeline.params.paths import resolved_path
from pu_kd_pipeline.params.predict import PredictParams
from pu_kd_pipeline.provenance.factories import factory_digest
from pu_kd_pipeline.storage.atomic import remove_leftovers
from pu_kd_pipeline.storage.digests import files_below, json_digest

VERSION = 3  # with a higher version every node runs again
_MAX_LISTED_CODE = 3  # changed definitions that a reason names
_MAX_VALUE_CHARACTERS = 60  # of a parameter's value in a reason


@dataclass(frozen=True)
class NodeRecord:
    """What the outputs of a node depend on, and the outputs.

    Attributes:
        node: name of the node.
        wiring: digest of which data set or parameter is which argument and which result.
        parameters: dotted key -> text of the value, in order.
        inputs: data set -> digest of its content.
        outside: dotted key -> state of the files or code that a parameter names; data set -> state
            of the code that a model in it names.
        catalog: data set -> digest of its entry, without the place of the data folder.
        code: "module:name" -> digest, of the node's function and all that it mentions.
        code_stamp: digest of all source files; while it stays the same, so does `code`.
        libraries: name -> version.
        outputs: data set -> path of a file below it -> digest of its content.
    """

    node: str = ""
    wiring: str = ""
    parameters: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    catalog: dict[str, str] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    code_stamp: str = ""
    libraries: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    version: int = VERSION


class NodeRecords:
    """The records in one folder, one file per node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, node: str) -> NodeRecord | None:
        """Return the record of a node; None if there is none, or none that can be trusted."""
        found = read_checked(self._file(node))
        try:
            record = NodeRecord(**found)
        except TypeError:  # None, or the fields of another version
            return None
        # A file may have been copied from another node.
        if record.version != VERSION or record.node != node:
            return None
        return record

    def write(self, record: NodeRecord) -> None:
        """Write the record of a node whose outputs have been saved."""
        write_checked(self._file(record.node), asdict(record))

    def remove(self, node: str) -> None:
        """Remove the record of a node whose outputs are about to be made."""
        file = self._file(node)
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        file.unlink(missing_ok=True)
        remove_leftovers(self.folder, file.name)

    def _file(self, node: str) -> Path:
        return self.folder / f"{safe_name(node)}.json"


def external_states(name: str, value: Any, files: FileStates) -> dict[str, str]:
    """Return dotted key -> state of what a parameter names: sources, local files and factories."""
    found = {}
    for key, state in _external_states(name, value, files):
        if state:
            found[key] = state
    return found


def _external_states(name: str, value: Any, files: FileStates) -> Iterator[tuple[str, str]]:
    if isinstance(value, ImageSource):
        # imported late: it needs pandas, and commands such as `kedro run --help` import this module
        from pu_kd_pipeline.images.sources.registry import source_state

        yield name, source_state(value)
    elif isinstance(value, PredictParams):
        if value.images is not None:
            from pu_kd_pipeline.images.found_files import files_state

            yield f"{name}.images", files_state(value.images)
    elif isinstance(value, BaseModel):
        for field_name in type(value).model_fields:
            inner = getattr(value, field_name)
            inner_name = f"{name}.{field_name}"
            yield from _external_states(inner_name, inner, files)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            inner_name = f"{name}.{key}"
            yield from _external_states(inner_name, inner, files)
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            inner_name = f"{name}[{position}]"
            yield from _external_states(inner_name, inner, files)
    elif isinstance(value, str) and value:
        # Such as a text that is too long for a path, or the home folder of nobody.
        with suppress(OSError, ValueError, RuntimeError):
            yield name, _state_of_text(value, files)


def _state_of_text(text: str, files: FileStates) -> str:
    """Return the state of the factory, file or model that a text names; empty if it names none."""
    factory = factory_digest(text)
    if factory:
        return factory
    path = resolved_path(text)
    if path.is_file():
        # The card next to weights describes the network that they belong to.
        digests = files.digests(path.parent, [path, path.with_name(CARD)])
        digests[""] = digests.pop(path.name)
        return json_digest(digests)
    # A folder may hold anything, and may be large; only a model is an input.
    is_model = (path / CARD).is_file() or (path / WEIGHTS).is_file()
    if is_model:
        return json_digest(files.digests(path, files_below(path)))
    return ""


# --- what differs ---------------------------------------------------------------------------------


def differences(old: NodeRecord, new: NodeRecord, pending: Collection[str] = ()) -> list[str]:
    """Return the reasons why a node has to run again; outputs are not compared.

    Args:
        old: what its outputs were made from.
        new: what they would be made from now.
        pending: inputs that are not compared.
    """
    # In the order in which a reader would look for the cause
    reasons = _changed_parameters(old.parameters, new.parameters)
    for name in _changed(old.inputs, new.inputs):
        if name not in pending:
            reasons.append(f"input {name} changed")
    for name in _changed(old.outside, new.outside):
        # Also of an input that is a model, whose factory is outside of it.
        if name not in pending:
            reasons.append(f"what {name} names changed")
    for name in _changed(old.catalog, new.catalog):
        reasons.append(f"catalog entry {name} changed")
    reasons += _changed_code(old.code, new.code)
    reasons += _changed_libraries(old.libraries, new.libraries)
    # Two data sets may have changed places.
    if not reasons and old.wiring != new.wiring:
        reasons.append("the pipeline connects its inputs or outputs in another way")
    return reasons


def damaged_outputs(record: NodeRecord, found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a sentence for each output that is no longer what the node wrote.

    Args:
        record: of the node.
        found: data set -> path of a file below it -> digest of its content now.
    """
    faults = []
    for name, written in record.outputs.items():
        files = found.get(name, {})
        fault = _damage(written, files)
        if fault:
            faults.append(f"output {name} {fault}")
    return faults


def _damage(written: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Return what happened to the files of an output; empty if nothing did."""
    if not found:
        return "is missing"
    lost = sorted(set(written) - set(found))
    if lost:
        return f"is damaged: {lost[0]} is missing"

    changed = sorted(path for path in written if found[path] != written[path])
    if changed:
        path = changed[0]
        where = ""
        if path:  # the path of an output that is one file is empty
            where = f" ({path})"
        cause = "damaged, edited, or written by another node"
        return f"is not what was written{where}: {cause}"

    added = sorted(set(found) - set(written))
    if added:
        return f"has files that were not written with it, such as {added[0]}"
    return ""


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the names that were added, removed or got another value, those of `old` first."""
    changed = []
    # A dict and not a set, which would lose the order.
    names = {**old, **new}
    for name in names:
        is_in_both = name in old and name in new
        if not is_in_both or old[name] != new[name]:
            changed.append(name)
    return changed


def _changed_parameters(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    reasons = []
    for name in _changed(old, new):
        key = _shortened(name)
        if name not in new:
            reasons.append(f"parameter {key} is gone")
            continue
        now = _shortened(new[name])
        if name not in old:
            reasons.append(f"parameter {key} is new: {now}")
            continue
        before = _shortened(old[name])
        reasons.append(f"parameter {key} {before} → {now}")
    # A node may go through a mapping in its order.
    if not reasons and list(old) != list(new):
        reasons.append("the parameters are in another order")
    return reasons


def _changed_libraries(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    reasons = []
    for name in _changed(old, new):
        before = old.get(name, "none")
        now = new.get(name, "none")
        reasons.append(f"{name} {before} → {now}")
    return reasons


def _changed_code(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    names = _changed(old, new)
    if not names:
        return []
    listed = ", ".join(names[:_MAX_LISTED_CODE])
    n_more = len(names) - _MAX_LISTED_CODE
    if n_more > 0:
        listed += f" and {n_more} more"
    return [f"code changed: {listed}"]


def _shortened(text: str) -> str:
    """Return a text that can be printed in a line, whatever it holds."""
    printable = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    if len(printable) <= _MAX_VALUE_CHARACTERS:
        return printable
    dots = "..."
    start = printable[: _MAX_VALUE_CHARACTERS - len(dots)]
    return start + dots
