"""The source of each module as it was when Python loaded it: the code that runs.

A file may be edited while a process runs, and the process keeps the code that it loaded. So
a finder in front of Python's own remembers the source of a module just before it is loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OWN_PACKAGE = __name__.partition(".")[0]
_INSTALLED = ("site-packages", "dist-packages")


class CodeRecorder:
    """Remembers sources; finds nothing itself.

    Attributes:
        sources: module -> its source when it was loaded.
        reloaded: modules that were loaded again with another source. Functions of both may be in
            use, so that it is not known which code runs.
        loaded_before: modules whose loading was not seen.
    """

    def __init__(self) -> None:
        self.sources: dict[str, bytes] = {}
        self.reloaded: set[str] = set()
        self.loaded_before = frozenset(sys.modules) - {OWN_PACKAGE}
        # It is being loaded at this moment.
        spec = getattr(sys.modules.get(OWN_PACKAGE), "__spec__", None)
        source = read_source(spec) if spec is not None else None
        if source is not None:
            self.sources[OWN_PACKAGE] = source

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what the other finders find, as `importlib.abc.MetaPathFinder.find_spec`."""
        spec = self.find_without_recording(name, path, target)
        if spec is not None and _may_be_edited(name, spec.origin):
            source = read_source(spec)
            is_reload = name in sys.modules
            if is_reload and self.sources.get(name) != source:
                self.reloaded.add(name)
            elif not is_reload:
                self.reloaded.discard(name)
            if source is not None:
                self.sources[name] = source
        return spec

    def find_without_recording(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what the other finders find for a module that is not about to be loaded."""
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            if finder is self or find_spec is None:
                continue
            spec: ModuleSpec | None = find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


def read_source(spec: ModuleSpec) -> bytes | None:
    """Return the content of a module's file, also of one in an archive; None if there is none."""
    loader: Any = spec.loader
    if spec.origin is None or not hasattr(loader, "get_data"):
        return None
    try:
        content: bytes = loader.get_data(spec.origin)
    except OSError:
        return None
    return content


def _may_be_edited(name: str, origin: str | None) -> bool:
    """Return whether a module can be one of the project; most installed ones are left out."""
    top_level = name.partition(".")[0]
    if origin is None or top_level in sys.stdlib_module_names:
        return False
    if top_level == OWN_PACKAGE:
        return True
    folders = origin.split(os.sep)
    return not any(folder in folders for folder in _INSTALLED)


def _installed_recorder() -> CodeRecorder:
    """Return the recorder of this process.

    A notebook may load this module again; the first recorder has seen what was loaded before.
    """
    for finder in sys.meta_path:
        if type(finder).__qualname__ == CodeRecorder.__qualname__:
            return finder  # type: ignore[return-value]
    recorder = CodeRecorder()
    # In front, because the first finder that finds a module ends the search.
    sys.meta_path.insert(0, recorder)  # type: ignore[arg-type]
    return recorder


recorder = _installed_recorder()


def why_unknown(digests: Mapping[str, str]) -> str:
    """Return why it is not known which code runs; empty if it is.

    Args:
        digests: of modules, or of definitions "module:name"; those of other packages are empty.
    """
    modules = {key.partition(":")[0] for key, digest in digests.items() if digest}
    for name in sorted(modules):
        if name in recorder.reloaded:
            return f"{name}, which was changed and loaded again in this process"
        if name in recorder.loaded_before and name not in recorder.sources:
            return (
                f"{name}, which was imported before {OWN_PACKAGE}, so that its code may have "
                f"changed since (import {OWN_PACKAGE} first)"
            )
    return ""
