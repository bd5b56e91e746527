"""Which definitions of a package a function depends on, found without importing anything.

Names are followed as Python resolves them: definitions of the same module, imports at its top and
inside of functions, and re-exports. A class counts as a whole, and so does an annotation; a mapping
of functions mentions all of them. A method that is called through an object is found if its class
is mentioned anywhere on the way. The statements between definitions count for everything that
imports their module, and files of a package next to the code for definitions that read them.

The source of a module that was imported is what was loaded, whatever its file holds now.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import SOURCE_SUFFIXES
from pathlib import Path
from typing import Any

from pu_kd_pipeline.provenance.functions import FunctionParts, function_parts
from pu_kd_pipeline.provenance.loaded_code import OWN_PACKAGE, recorder, why_unknown
from pu_kd_pipeline.provenance.modules import (
    MISSING,
    PROJECT,
    PYTHON,
    Module,
    ModuleFinder,
    content_digest,
    file_content,
    file_content_digest,
    file_signature,
    files_of_package,
)
from pu_kd_pipeline.provenance.syntax import (
    MODULE_LEVEL,
    WHOLE_MODULE,
    Import,
    ModuleSyntax,
    mentions,
    strings,
)

# A definition that uses one of these may read any file of its package.
_FILE_READERS = frozenset({"__file__", "__path__", "__spec__", "__loader__"})
_FILE_READING_MODULES = ("importlib.resources", "importlib_resources", "pkgutil")
# Suffixes of files that are code themselves.
_CODE_SUFFIXES = frozenset({".py", ".so", ".pyd", ".dll", ".dylib"})

Definition = tuple[str, str]  # module, name; or package, path of a file in it


@dataclass(frozen=True)
class Code:
    """The code of a function.

    Attributes:
        digests: "module:name" -> digest, of all that it depends on; "module:file" for data.
        distributions: that it uses.
        unknown: why it is not known completely which code runs; empty if it is.
        values: what the function holds, see `FunctionParts`.
    """

    digests: dict[str, str]
    distributions: frozenset[str]
    unknown: str
    values: dict[str, Any]


class CodeIndex:
    """Parses a module when it is first mentioned, and remembers it.

    What it remembers is as old as the index: see `is_current`.
    """

    def __init__(self) -> None:
        self.finder = ModuleFinder()
        self._modules: dict[str, ModuleSyntax | None] = {}
        self._mentions: dict[Definition, frozenset[Definition]] = {}
        self._stamps: dict[str, str] = {}
        self._data_files: dict[str, dict[str, Path]] = {}
        self._data_digests: dict[Path, str] = {}

    def code_digests(self, thing: Any) -> dict[str, str]:
        """Return "module:name" -> digest, of a function or class and of all that it depends on.

        Only definitions of the project and of this package are followed. Comments, docstrings,
        blank lines and the place in the file do not count.

        Args:
            thing: a function or class; for one of an installed package nothing is returned.
        """
        return self.code(thing).digests

    def code(self, thing: Any) -> Code:
        """Return the code of a function or class, and what is not known of it."""
        parts = function_parts(thing, self.finder)
        found = self._reached(parts.starts)
        digests = {}
        distributions = set()
        # Sorted, because a set has another order in every process.
        for module, name in sorted(found):
            top_level = module.partition(".")[0]
            owner = self.finder.owner(top_level)
            if owner not in (PROJECT, PYTHON, MISSING):
                distributions.add(owner)
            digest = self._digest(module, name)
            if digest is not None:
                digests[f"{module}:{name}"] = digest
        for top_level in parts.packages:
            distributions.add(self.finder.owner(top_level))
        if parts.starts:
            # Two functions may depend on the same definitions, such as on each other.
            digests["the function"] = " ".join(f"{module}:{name}" for module, name in parts.starts)
        unknown = parts.unknown or why_unknown(digests)
        return Code(digests, frozenset(distributions), unknown, parts.values)

    def parts(self, thing: Any) -> FunctionParts:
        """Return what a function holds and where it starts, without its code."""
        return function_parts(thing, self.finder)

    def stamp(self, things: Iterable[Any], known: Iterable[str] = ()) -> str:
        """Return a digest of all source files of this package and of those that things use.

        While it stays the same, so does the code, which takes longer to find.

        Args:
            things: functions or classes.
            known: keys of the code that they had.
        """
        packages = {OWN_PACKAGE}
        lines = []
        for thing in things:
            for module, name in self.parts(thing).starts:
                packages.add(module.partition(".")[0])
                lines.append(f"{module}:{name}")
        for key in known:
            module = key.partition(":")[0]
            packages.add(module.partition(".")[0])
        for package in sorted(packages):
            if package not in self._stamps:
                self._stamps[package] = self._stamp_of_package(package)
            lines.append(self._stamps[package])
        return content_digest("\n".join(lines).encode("utf-8", "surrogatepass"))

    def is_current(self) -> bool:
        """Return whether all that was read so far is still what runs, and what is on the disk."""
        fresh = ModuleFinder()
        for name, syntax in self._modules.items():
            if syntax is not None and fresh.module(name) != syntax.module:
                return False
        for package, stamp in self._stamps.items():
            if self._stamp_of_package(package) != stamp:
                return False
        digests = self._data_digests.items()
        return all(_file_digest(file) == digest for file, digest in digests)

    def syntax(self, name: str) -> ModuleSyntax | None:
        """Return the syntax of a module of the project; None for any other."""
        if name not in self._modules:
            module = self.finder.module(name)
            syntax = None
            if module is not None:
                syntax = _parsed(module)
            # None is remembered too: looking for a file takes long.
            self._modules[name] = syntax
        return self._modules[name]

    def _reached(self, starts: Iterable[Definition]) -> set[Definition]:
        to_visit: list[Definition] = []
        for module, name in starts:
            syntax = self.syntax(module)
            if syntax is not None and name not in syntax.definitions:
                # One of a loop, a lambda, or a module that is passed on.
                to_visit.extend(self._definitions_of(module))
            else:
                to_visit.append((module, name))
        found: set[Definition] = set()
        while to_visit:
            definition = to_visit.pop()
            if definition in found:
                continue
            found.add(definition)
            mentioned = self._mentioned_by(definition)
            to_visit.extend(mentioned)
        return found

    def _digest(self, module: str, name: str) -> str | None:
        """Return the digest of a definition; None for statements that there are none of."""
        file = self._data_files.get(module, {}).get(name)
        if file is not None:
            if file not in self._data_digests:
                self._data_digests[file] = _file_digest(file)
            return self._data_digests[file]
        syntax = self.syntax(module)
        if syntax is None:
            return ""
        is_empty = name == MODULE_LEVEL and MODULE_LEVEL not in syntax.definitions
        if is_empty and syntax.is_parsed:
            return None
        return syntax.digest(name)

    def _definitions_of(self, module: str) -> Iterator[Definition]:
        syntax = self.syntax(module)
        if syntax is None:
            return
        yield module, MODULE_LEVEL
        for name in syntax.definitions:
            yield module, name
        # Names that a package only passes on.
        for source in syntax.star_imports:
            if self.syntax(source) is not None:
                yield source, MODULE_LEVEL

    def _mentioned_by(self, definition: Definition) -> frozenset[Definition]:
        if definition not in self._mentions:
            module, name = definition
            syntax = self.syntax(module)
            mentioned: frozenset[Definition] = frozenset()
            if syntax is not None:
                mentioned = frozenset(self._resolved(syntax, name))
            self._mentions[definition] = mentioned
        return self._mentions[definition]

    def _resolved(self, syntax: ModuleSyntax, name: str) -> Iterator[Definition]:
        """Yield the definitions that a definition of a module mentions itself."""
        statements = syntax.definitions.get(name, ())
        # Importing a module runs its other statements, so each of its definitions depends on them.
        if name != MODULE_LEVEL:
            yield syntax.name, MODULE_LEVEL
        else:
            yield from self._run_by_importing(syntax)

        imports = {bound: list(targets) for bound, targets in syntax.imports.items()}
        for statement in statements:
            nodes = ast.walk(statement)
            for bound, targets in syntax.imports_in(nodes).items():
                imports.setdefault(bound, []).extend(targets)

        is_reader = False
        for mentioned, attribute in mentions(statements):
            is_reader = is_reader or mentioned in _FILE_READERS
            for target in imports.get(mentioned, ()):
                is_reader = is_reader or target[0].startswith(_FILE_READING_MODULES)
                yield from self._imported(target, attribute)
            if mentioned in syntax.definitions:
                yield syntax.name, mentioned
            elif mentioned not in imports:
                for source in syntax.star_imports:
                    yield from self._imported((source, mentioned), attribute)
        yield from self._data_of(syntax.module, statements, is_reader=is_reader)

    def _run_by_importing(self, syntax: ModuleSyntax) -> Iterator[Definition]:
        """Yield what runs when a module is imported, in the modules that it imports itself."""
        for parent in with_parents(syntax.name):
            if parent != syntax.name and self.syntax(parent) is not None:
                yield parent, MODULE_LEVEL
        for module, name in syntax.loaded_modules:
            for imported in (*with_parents(module), f"{module}.{name}"):
                if self.syntax(imported) is not None:
                    yield imported, MODULE_LEVEL
        # A module that is imported and not used is imported for what it does, such as registering.
        for bound, targets in syntax.imports.items():
            for module, name in targets:
                is_used = bound in syntax.mentioned_names or syntax.module.is_package
                if (
                    not is_used
                    and name in (None, WHOLE_MODULE)
                    and (module, name) in (syntax.loaded_modules)
                ):
                    yield from self._definitions_of(module)

    def _imported(self, target: Import, attribute: str | None) -> Iterator[Definition]:
        """Yield what an imported name stands for.

        Args:
            target: where the name is imported from.
            attribute: what is taken of the name, if that is known.
        """
        module, name = target
        submodule = f"{module}.{name}"
        if name not in (None, WHOLE_MODULE) and self.syntax(submodule) is not None:
            # a module that is imported from its package: `from package import module`
            module = submodule
            name = None

        syntax = self.syntax(module)
        if syntax is None:
            if self.finder.owner(module.partition(".")[0]) != PROJECT:
                yield module, name or ""
            elif attribute is not None and name is None:
                # A folder without `__init__`, of which a module is taken.
                yield from self._definitions_of(f"{module}.{attribute}")
            return
        wanted = name or attribute
        if wanted in syntax.definitions:
            yield module, str(wanted)
        for further in syntax.imports.get(str(wanted), ()):
            # Where the name is a module, its attribute is what was looked for here.
            rest = attribute
            if name is None:
                rest = None
            if further != target:
                yield from self._imported(further, rest)
        if wanted in syntax.definitions or wanted in syntax.imports:
            return
        # The module itself is passed on, or the name is made when it is asked for.
        yield from self._definitions_of(module)
        yield from self._definitions_of(f"{module}.{wanted}")

    # --- files next to the code -------------------------------------------------------------------

    def _data_of(
        self, module: Module, statements: Iterable[ast.AST], *, is_reader: bool
    ) -> Iterator[Definition]:
        """Yield the data files of the package that a definition may read."""
        package = module.name.partition(".")[0]
        files = self._data_files_of(package)
        if not files:
            return
        named = set()
        for text in strings(statements):
            named.add(text.rpartition("/")[2])
        for name, file in files.items():
            is_next_to_it = module.folder is None or file.is_relative_to(module.folder)
            if file.name in named or (is_reader and is_next_to_it):
                yield package, name

    def _data_files_of(self, package: str) -> dict[str, Path]:
        """Return path in a package of the project -> file, of all files that are not code."""
        if package not in self._data_files:
            found = {}
            root = self.syntax(package)
            if root is not None and root.module.archive is not None:
                found[root.module.archive.name] = root.module.archive
            for location in self.finder.locations(package):
                for name in files_of_package(self.finder, package):
                    file = Path(name)
                    if file.suffix not in _CODE_SUFFIXES and file.is_relative_to(location):
                        found[file.relative_to(location).as_posix()] = file
            self._data_files[package] = found
        return self._data_files[package]

    def _stamp_of_package(self, package: str) -> str:
        """Return a digest of the names and contents of all files of a package."""
        owner = self.finder.owner(package)
        lines = [f"{package} {owner}"]
        if owner == PROJECT:
            for file in files_of_package(self.finder, package):
                if file.endswith(tuple(SOURCE_SUFFIXES)):
                    state = file_content_digest(file)
                else:  # may be large, and is read only where code reads it
                    state = file_signature(file)
                lines.append(f"{file} {state}")
            # What was loaded may differ from its file.
            prefix = f"{package}."
            for name in sorted(recorder.sources):
                is_inside = name == package or name.startswith(prefix)
                if is_inside and name in sys.modules and _differs_from_file(name):
                    loaded = content_digest(recorder.sources[name])
                    lines.append(f"{name} {loaded}")
        return "\n".join(lines)


def _differs_from_file(module: str) -> bool:
    """Return whether the file of a loaded module was changed since."""
    spec = sys.modules[module].__spec__
    try:
        content = file_content(str(spec and spec.origin))
    except OSError:  # removed, or in an archive
        return True
    return content != recorder.sources[module]


def with_parents(module: str) -> list[str]:
    """Return a module and the packages around it, which are imported with it."""
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


@lru_cache(maxsize=4096)
def _parsed(module: Module) -> ModuleSyntax:
    """Return the syntax of a module; other indexes of this process share it."""
    return ModuleSyntax(module)


def _file_digest(file: Path) -> str:
    try:
        return content_digest(file.read_bytes())
    except OSError:
        return "it cannot be read"
