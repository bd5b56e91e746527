"""Which definitions of a package a function depends on, found without importing anything.

Names are followed as Python resolves them: definitions of the same module, imports at its top and
inside of functions, and re-exports. A class counts as a whole, and so does an annotation; a mapping
of functions mentions all of them. A method that is called through an object is found if its class
is mentioned anywhere on the way.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pu_kd_pipeline.provenance.syntax import MODULE_LEVEL, Import, ModuleSyntax, mentions

OWN_PACKAGE = __name__.partition(".")[0]

Definition = tuple[str, str]  # module, name


class CodeIndex:
    """Parses a module when it is first mentioned, and remembers it."""

    def __init__(self) -> None:
        self._modules: dict[str, ModuleSyntax | None] = {}
        self._mentions: dict[Definition, frozenset[Definition]] = {}
        self._stamps: dict[str, str] = {}

    def code_digests(self, thing: Any) -> dict[str, str]:
        """Return "module:name" -> digest, of a function or class and of all that it depends on.

        Only definitions of its package and of this one are followed. Comments, docstrings, blank
        lines and the place in the file do not count.

        Args:
            thing: a function or class; for one of an installed package nothing is returned.
        """
        module = thing.__module__
        name = thing.__qualname__.partition(".")[0]
        if self._module(module) is None:
            return {}
        to_visit: list[Definition] = [(module, name)]
        if name == "<lambda>":  # without a name to look for, its whole module counts
            to_visit = list(self._definitions_of(module))

        found: set[Definition] = set()
        while to_visit:
            definition = to_visit.pop()
            if definition in found:
                continue
            found.add(definition)
            mentioned = self._mentioned_by(definition)
            to_visit.extend(mentioned)

        # Sorted, because a set has another order in every process.
        code = {}
        for defining_module, defined in sorted(found):
            key = f"{defining_module}:{defined}"
            code[key] = self._digest(defining_module, defined)
        return code

    def stamp(self, thing: Any) -> str:
        """Return a digest of all source files of a thing's package and of this one.

        While it stays the same, so does `code_digests`, which takes longer.
        """
        package, _, _ = thing.__module__.partition(".")
        packages = sorted({OWN_PACKAGE, package})
        key = " ".join(packages)
        if key not in self._stamps:
            self._stamps[key] = _digest_of_packages(packages)
        return self._stamps[key]

    def _digest(self, module: str, name: str) -> str:
        syntax = self._module(module)
        if syntax is None:
            return ""
        return syntax.digest(name)

    def _module(self, name: str) -> ModuleSyntax | None:
        if name not in self._modules:
            file = _file_of(name)
            syntax = None
            if file is not None:
                syntax = ModuleSyntax(name, file)
            # None is remembered too: looking for a file takes long.
            self._modules[name] = syntax
        return self._modules[name]

    def _definitions_of(self, module: str) -> Iterator[Definition]:
        syntax = self._module(module)
        if syntax is not None:
            for name in syntax.definitions:
                yield module, name

    def _mentioned_by(self, definition: Definition) -> frozenset[Definition]:
        if definition not in self._mentions:
            module, name = definition
            syntax = self._module(module)
            mentioned: frozenset[Definition] = frozenset()
            if syntax is not None:
                mentioned = frozenset(self._resolved(syntax, name))
            self._mentions[definition] = mentioned
        return self._mentions[definition]

    def _resolved(self, syntax: ModuleSyntax, name: str) -> Iterator[Definition]:
        """Yield the definitions that a definition of a module mentions itself."""
        statements = syntax.definitions.get(name, ())
        # Importing a module runs its other statements, so each of its definitions depends on them.
        if name != MODULE_LEVEL and MODULE_LEVEL in syntax.definitions:
            yield syntax.name, MODULE_LEVEL

        # Imports inside of the definition come after those at the top, which they hide.
        imports = dict(syntax.imports)
        for statement in statements:
            nodes = ast.walk(statement)
            imports.update(syntax.imports_in(nodes))

        for mentioned, attribute in mentions(statements):
            if mentioned in imports:
                target = imports[mentioned]
                yield from self._imported(target, attribute)
            elif mentioned in syntax.definitions:
                yield syntax.name, mentioned

    def _imported(self, target: Import, attribute: str | None) -> Iterator[Definition]:
        """Yield what an imported name stands for.

        Args:
            target: where the name is imported from.
            attribute: what is taken of the name, if that is known.
        """
        module, name = target
        submodule = f"{module}.{name}"
        if name is not None and self._module(submodule) is not None:
            # a module that is imported from its package: `from package import module`
            module = submodule
            name = None

        syntax = self._module(module)
        if syntax is None:
            return
        wanted = name or attribute
        if wanted is None:  # the module itself is passed on, so that anything in it may be used
            yield from self._definitions_of(module)
        elif wanted in syntax.definitions:
            yield module, wanted
        elif wanted in syntax.imports:
            # Where the name is a module, its attribute is what was looked for here.
            rest = attribute
            if name is None:
                rest = None
            yield from self._imported(syntax.imports[wanted], rest)


def _digest_of_packages(packages: list[str]) -> str:
    """Return a digest of the names and contents of all source files of some packages."""
    digest = hashlib.blake2b(digest_size=16)
    for package in packages:
        for file in _files_of_package(package):
            name = f"{file}\n".encode("utf-8", "surrogatepass")
            content = file.read_bytes()
            digest.update(name + content)
    return digest.hexdigest()


def _files_of_package(package: str) -> list[Path]:
    """Return the source files of a package, or of a module at the top level."""
    top = _file_of(package)
    if top is None:
        return []
    if top.name == "__init__.py":
        return sorted(top.parent.rglob("*.py"))
    return [top]


def _file_of(module: str) -> Path | None:
    """Return the source of a module of an imported package; None for an installed package."""
    package, _, rest = module.partition(".")
    top_level = sys.modules.get(package)
    origin = getattr(top_level, "__file__", None)
    if origin is None:
        return None
    file = Path(origin)
    # This package counts even if it is installed: it may be edited there.
    if "site-packages" in file.parts and package != OWN_PACKAGE:
        return None
    if file.is_relative_to(sys.base_prefix):  # the standard library
        return None
    if not rest:
        return file
    if file.name != "__init__.py":
        return None

    parts = rest.split(".")
    path = file.parent.joinpath(*parts)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None
