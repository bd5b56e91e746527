"""Which of a package's definitions a function mentions, directly or through others, found without importing anything.

Names are followed as Python resolves them: definitions of the same module, imports at its top, imports inside of a
function, and re-exports. A class counts as a whole, and so does an annotation; a mapping of functions mentions all of
them. What is called through an object alone is found where its class is mentioned anywhere on the way.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

OWN_PACKAGE = __name__.partition(".")[0]
MODULE_LEVEL = "<module>"  # statements beside the definitions: they run when the module is imported

Import = tuple[str, str | None]  # module, and the name in it; None: the module itself
Definition = tuple[str, str]  # module, name


class CodeIndex:
    """Parses a module when it is first mentioned, and remembers it."""

    def __init__(self) -> None:
        self._modules: dict[str, _Module | None] = {}
        self._mentions: dict[Definition, frozenset[Definition]] = {}
        self._stamps: dict[str, str] = {}

    def code_of(self, thing: Any) -> dict[str, str]:
        """Return "module:name" -> digest, of a function or class and of all in its package and ours that it mentions.

        Comments, docstrings, blank lines and the place in the file do not count.

        Args:
            thing: a function or class; of another one's package (as torch's) nothing is returned.
        """
        module, name = thing.__module__, thing.__qualname__.partition(".")[0]
        if self._module(module) is None:
            return {}
        todo: list[Definition] = (
            [(module, name)] if name != "<lambda>" else list(self._all_of(module))
        )
        found: set[Definition] = set()
        while todo:
            definition = todo.pop()
            if definition not in found:
                found.add(definition)
                todo += self._mentioned_by(definition)
        return {f"{where}:{what}": self._digest(where, what) for where, what in sorted(found)}

    def stamp(self, thing: Any) -> str:
        """Return a digest of all source files of a thing's package and of ours: while it is the same, the code is."""
        packages = sorted({OWN_PACKAGE, thing.__module__.partition(".")[0]})
        if (key := " ".join(packages)) not in self._stamps:
            digest = hashlib.blake2b(digest_size=16)
            for package in packages:
                top = _file_of(package)
                is_folder = top is not None and top.name == "__init__.py"
                for file in (
                    sorted(top.parent.rglob("*.py")) if top and is_folder else [top] if top else []
                ):
                    digest.update(f"{file}\n".encode("utf-8", "surrogatepass") + file.read_bytes())
            self._stamps[key] = digest.hexdigest()
        return self._stamps[key]

    def _digest(self, module: str, name: str) -> str:
        parsed = self._module(module)
        return parsed.digest(name) if parsed else ""

    def _module(self, name: str) -> _Module | None:
        if name not in self._modules:
            file = _file_of(name)
            self._modules[name] = _Module(name, file) if file else None
        return self._modules[name]

    def _all_of(self, module: str) -> Iterator[Definition]:
        parsed = self._module(module)
        for name in parsed.definitions if parsed else ():
            yield module, name

    def _mentioned_by(self, definition: Definition) -> frozenset[Definition]:
        if definition not in self._mentions:
            module, name = definition
            parsed = self._module(module)
            mentioned = self._resolved(parsed, name) if parsed else ()
            self._mentions[definition] = frozenset(mentioned)
        return self._mentions[definition]

    def _resolved(self, parsed: _Module, name: str) -> Iterator[Definition]:
        statements = parsed.definitions.get(name, ())
        if name != MODULE_LEVEL and MODULE_LEVEL in parsed.definitions:
            yield parsed.name, MODULE_LEVEL
        known = dict(parsed.imports)
        for statement in statements:
            known |= dict(_imports(ast.walk(statement), parsed))
        for mentioned, attribute in _names(statements):
            if mentioned in known:
                yield from self._imported(known[mentioned], attribute)
            elif mentioned in parsed.definitions:
                yield parsed.name, mentioned

    def _imported(self, target: Import, attribute: str | None) -> Iterator[Definition]:
        """Yield what an imported name stands for; `attribute` is what is taken of it, if that is known."""
        module, name = target
        if name is not None and self._module(f"{module}.{name}") is not None:
            module, name = f"{module}.{name}", None  # a module that is imported from its package
        parsed = self._module(module)
        if parsed is None:
            return
        if name is None and attribute is None:
            yield from self._all_of(module)
        elif (wanted := name or attribute) in parsed.definitions:
            assert wanted is not None
            yield module, wanted
        elif wanted in parsed.imports:
            yield from self._imported(parsed.imports[wanted], attribute if name else None)


@dataclass
class _Module:
    """What a module defines and imports at its top level."""

    name: str
    file: Path
    _digests: dict[str, str] = field(default_factory=dict)

    @cached_property
    def tree(self) -> ast.Module:
        return _without_docstrings(ast.parse(self.file.read_text(encoding="utf-8"), str(self.file)))

    @cached_property
    def definitions(self) -> dict[str, list[ast.stmt]]:
        """Name -> the statements that define it."""
        found: dict[str, list[ast.stmt]] = {}
        for name, statement in _definitions(self.tree.body):
            found.setdefault(name, []).append(statement)
        return found

    @cached_property
    def imports(self) -> dict[str, Import]:
        """Name -> what it is imported from."""
        return dict(_imports(_outside_of_definitions(self.tree.body), self))

    def digest(self, name: str) -> str:
        """Return a digest of the definition of a name."""
        if name not in self._digests:
            texts = [ast.dump(statement) for statement in self.definitions.get(name, ())]
            self._digests[name] = hashlib.blake2b(
                "\n".join(texts).encode(), digest_size=8
            ).hexdigest()
        return self._digests[name]


def _file_of(module: str) -> Path | None:
    """Return the source of a module of a package that has been imported; None for those outside of the project."""
    package, _, rest = module.partition(".")
    top = sys.modules.get(package)
    origin = getattr(top, "__file__", None)
    if origin is None or ("site-packages" in Path(origin).parts and package != OWN_PACKAGE):
        return None
    if Path(origin).is_relative_to(sys.base_prefix):  # the standard library
        return None
    if not rest:
        return Path(origin)
    if Path(origin).name != "__init__.py":
        return None
    path = Path(origin).parent.joinpath(*rest.split("."))
    return next(
        (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None
    )


def _definitions(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name, statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [
                node.id
                for target in targets
                for node in ast.walk(target)
                if isinstance(node, ast.Name)
            ]
            yield from ((name, statement) for name in names)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            yield from _definitions(statement.orelse)
        elif isinstance(statement, ast.If | ast.Try | ast.With):
            yield MODULE_LEVEL, statement
            yield from _definitions(
                child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)
            )
        else:
            yield MODULE_LEVEL, statement


def _outside_of_definitions(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _outside_of_definitions(ast.iter_child_nodes(node))


def _imports(nodes: Iterable[ast.AST], module: _Module) -> Iterator[tuple[str, Import]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    yield alias.asname, (alias.name, None)
                else:
                    yield alias.name.partition(".")[0], (alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                package = (
                    module.name
                    if module.file.name == "__init__.py"
                    else module.name.rpartition(".")[0]
                )
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                source = f"{package}.{source}".rstrip(".")
            for alias in node.names:
                yield alias.asname or alias.name, (source, alias.name)


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _names(
    statements: Iterable[ast.AST], bound: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str | None]]:
    """Yield every global name that is read, with the attribute that is taken of it where one is.

    Names that a function binds are its own, in it and in the functions inside of it; those that a class binds count as
    global, since its methods do not see them.
    """
    for node in statements:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id not in bound:
                yield node.value.id, node.attr
        elif isinstance(node, ast.Name):
            if node.id not in bound:
                yield node.id, None
        elif isinstance(node, _FUNCTIONS):
            inside = node.body if isinstance(node.body, list) else [node.body]
            outside = [
                child
                for child in ast.iter_child_nodes(node)
                if child not in inside and child is not node.args
            ]
            yield from _names(outside, bound)  # decorators and what is returned
            yield from _names(_annotations_and_defaults(node.args), bound)
            yield from _names(
                inside, (bound | _bound_by(node.args, inside)) - _declared_global(inside)
            )
        elif isinstance(node, _COMPREHENSIONS):
            first = node.generators[0].iter
            targets = [generator.target for generator in node.generators]
            yield from _names([first], bound)
            rest = [child for child in _parts(node) if child is not first]
            yield from _names(rest, bound | _stored(targets))
        else:
            yield from _names(ast.iter_child_nodes(node), bound)


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the expressions of a comprehension."""
    for child in ast.iter_child_nodes(node):
        yield from ast.iter_child_nodes(child) if isinstance(child, ast.comprehension) else [child]


def _annotations_and_defaults(arguments: ast.arguments) -> Iterator[ast.AST]:
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg) and argument.annotation is not None:
            yield argument.annotation
    yield from (
        default for default in (*arguments.defaults, *arguments.kw_defaults) if default is not None
    )


def _bound_by(arguments: ast.arguments, body: Iterable[ast.AST]) -> frozenset[str]:
    """Return the names that a function binds: its arguments, and what it assigns outside of inner functions."""
    every = [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
    ]
    return frozenset(argument.arg for argument in every if argument is not None) | _stored(body)


def _stored(nodes: Iterable[ast.AST]) -> frozenset[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if not isinstance(node, (*_FUNCTIONS, *_COMPREHENSIONS, ast.ClassDef)):
            found |= _stored(ast.iter_child_nodes(node))
    return frozenset(found)


def _declared_global(body: Iterable[ast.AST]) -> frozenset[str]:
    return frozenset(
        name
        for node in body
        for inner in ast.walk(node)
        if isinstance(inner, ast.Global)
        for name in inner.names
    )


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = node.body[0] if node.body else None
            is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            if is_text and isinstance(first.value.value, str):  # type: ignore[union-attr]
                node.body = node.body[1:]
    return tree
