"""The record of a node: what its outputs were made from, and what differs now.

A record is written after the outputs and removed before the node runs again, so outputs with a record are whole.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pu_kd_pipeline.incremental.file_states import FileStates, safe_name
from pu_kd_pipeline.params.data_ingestion import ImageSource
from pu_kd_pipeline.params.flatten import flatten
from pu_kd_pipeline.storage.atomic import remove_leftovers, replacing_file
from pu_kd_pipeline.storage.digests import digest_of, files_below

VERSION = 1  # a higher one has every node run again
# Whose versions may change a result; the others only carry it.
LIBRARIES = ("torch", "torchvision", "numpy", "pandas", "pyarrow", "pillow", "scikit-learn")
_FACTORY = re.compile(r"[\w.]+:\w+")
_MOST_CODE = 3


@dataclass(frozen=True)
class NodeRecord:
    """What the outputs of a node depend on, and the outputs.

    Attributes:
        parameters: dotted key -> value.
        inputs: data set -> digest of its content.
        outside: dotted key -> state of the files or code that a parameter names.
        catalog: data set -> digest of its entry, without the place of the data folder.
        code: "module:name" -> digest, of the node's function and all that it mentions.
        code_stamp: digest of all source files, while which is the same `code` is.
        libraries: name -> version.
        outputs: data set -> path of a file below it -> digest of its content.
    """

    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    catalog: dict[str, str] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    code_stamp: str = ""
    libraries: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    version: int = VERSION


class NodeRecords:
    """The records below one folder, a file a node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, node: str) -> NodeRecord | None:
        """Return the record of a node; None where there is none that can be read."""
        with suppress(OSError, ValueError, TypeError):
            found = json.loads(self._file(node).read_text(encoding="utf-8"))
            if found["version"] == VERSION:
                return NodeRecord(**found)
        return None

    def write(self, node: str, record: NodeRecord) -> None:
        """Keep the record of a node whose outputs have been saved."""
        with replacing_file(self._file(node)) as temporary:
            temporary.write_text(json.dumps(asdict(record), indent=0), encoding="utf-8")

    def remove(self, node: str) -> None:
        """Forget a node whose outputs are about to be made."""
        self._file(node).unlink(missing_ok=True)
        remove_leftovers(self.folder, self._file(node).name)

    def _file(self, node: str) -> Path:
        return self.folder / f"{safe_name(node)}.json"


def libraries() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    versions = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def flat_parameters(name: str, value: Any) -> dict[str, Any]:
    """Return dotted key -> what JSON can write, of a parameter or a block; a list is one value."""
    leaves = flatten(value, prefix=name, expand_lists=False)
    return {key: json.loads(json.dumps(leaf, default=str)) for key, leaf in leaves}


def outside_of(name: str, value: Any, files: FileStates) -> dict[str, str]:
    """Return dotted key -> state, of the sources, local files and importable factories that a parameter names."""
    return {key: state for key, state in _outside(name, value, files) if state}


def _outside(name: str, value: Any, files: FileStates) -> Iterator[tuple[str, str]]:
    if isinstance(value, ImageSource):
        # imported late: it needs pandas, and commands such as `kedro run --help` import this module
        from pu_kd_pipeline.images.sources.registry import source_state

        yield name, source_state(value)
    elif isinstance(value, BaseModel):
        for part in type(value).model_fields:
            yield from _outside(f"{name}.{part}", getattr(value, part), files)
    elif isinstance(value, Mapping):
        for part, inner in value.items():
            yield from _outside(f"{name}.{part}", inner, files)
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            yield from _outside(f"{name}[{position}]", inner, files)
    elif isinstance(value, str) and value:
        with suppress(OSError, ValueError):  # such as a text that is too long for a path
            if _FACTORY.fullmatch(value):
                yield name, _source_of_factory(value, files)
            elif (path := Path(value)).is_file():
                yield name, files.digest(path)
            elif (path / "card.json").is_file():  # a model of this pipeline
                yield name, digest_of(files.digests(path, files_below(path)))


def _source_of_factory(factory: str, files: FileStates) -> str:
    """Return the state of the file of `package.module:function`, looked for where Python would look."""
    parts = factory.partition(":")[0].split(".")
    for folder in sys.path:
        path = Path(folder or ".").joinpath(*parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return files.digest(file)
    return ""


# --- what differs -----------------------------------------------------------------------------------------------------


def differences(old: NodeRecord, new: NodeRecord) -> list[str]:
    """Return why a node has to run again, in words; outputs are not compared."""
    return [
        *_changed_parameters(old.parameters, new.parameters),
        *(f"input {name} changed" for name in _changed(old.inputs, new.inputs)),
        *(f"what {name} names changed" for name in _changed(old.outside, new.outside)),
        *(f"catalog entry {name} changed" for name in _changed(old.catalog, new.catalog)),
        *_changed_code(old.code, new.code),
        *(
            f"{name} {old.libraries.get(name, 'none')} → {new.libraries.get(name, 'none')}"
            for name in _changed(old.libraries, new.libraries)
        ),
    ]


def damaged_outputs(record: NodeRecord, found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return which outputs are no longer what the node wrote, in words."""
    faults = []
    for name, files in record.outputs.items():
        now = found.get(name, {})
        if not now:
            faults.append(f"output {name} is missing")
        elif lost := sorted(set(files) - set(now)):
            faults.append(f"output {name} is damaged: {lost[0]} is missing")
        elif other := sorted(path for path in files if now[path] != files[path]):
            where = f" ({other[0]})" if other[0] else ""
            faults.append(
                f"output {name} is not what was written{where}: damaged, edited, or written by another node"
            )
        elif added := sorted(set(now) - set(files)):
            faults.append(
                f"output {name} has files that were not written with it, such as {added[0]}"
            )
    return faults


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name in {**old, **new}
        if name not in old or name not in new or old[name] != new[name]
    ]


def _changed_parameters(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in _changed(old, new):
        if name not in old:
            yield f"parameter {name} is new: {_short(new[name])}"
        elif name not in new:
            yield f"parameter {name} is gone"
        else:
            yield f"parameter {name} {_short(old[name])} → {_short(new[name])}"


def _changed_code(old: Mapping[str, str], new: Mapping[str, str]) -> Iterable[str]:
    names = _changed(old, new)
    if not names:
        return []
    more = f" and {len(names) - _MOST_CODE} more" if len(names) > _MOST_CODE else ""
    return [f"code changed: {', '.join(names[:_MOST_CODE])}{more}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
