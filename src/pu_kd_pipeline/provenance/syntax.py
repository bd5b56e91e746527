"""What one module defines, imports and mentions, read off its syntax tree without importing it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# Statements between the definitions, which run when the module is imported.
MODULE_LEVEL = "<module>"

Import = tuple[str, str | None]  # module, and the name in it; None: the module itself
Mention = tuple[str, str | None]  # name, and the attribute that is taken of it, if any

_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class ModuleSyntax:
    """What a module defines and imports at its top level.

    Attributes:
        name: dotted name of the module.
        file: its source.
    """

    name: str
    file: Path
    _digests: dict[str, str] = field(default_factory=dict)

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree without docstrings."""
        text = self.file.read_text(encoding="utf-8")
        tree = ast.parse(text, str(self.file))
        return _without_docstrings(tree)

    @cached_property
    def definitions(self) -> dict[str, list[ast.stmt]]:
        """Name -> the statements that define it."""
        found: dict[str, list[ast.stmt]] = {}
        for name, statement in _definitions(self.tree.body):
            # A name may have several: one per branch, or further assignments.
            statements = found.setdefault(name, [])
            statements.append(statement)
        return found

    @cached_property
    def imports(self) -> dict[str, Import]:
        """Name -> what it is imported from."""
        nodes = _outside_of_definitions(self.tree.body)
        return self.imports_in(nodes)

    @property
    def package(self) -> str:
        """The package that relative imports start from."""
        if self.file.name == "__init__.py":
            return self.name
        return self.name.rpartition(".")[0]

    def imports_in(self, nodes: Iterable[ast.AST]) -> dict[str, Import]:
        """Return name -> what it is imported from, of the import statements among some nodes."""
        found: dict[str, Import] = {}
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    # `import a.b` binds the name a
                    top_level, _, _ = alias.name.partition(".")
                    bound = alias.asname or top_level
                    found[bound] = (alias.name, None)
            elif isinstance(node, ast.ImportFrom):
                source = self._absolute(node)
                for alias in node.names:
                    bound = alias.asname or alias.name
                    found[bound] = (source, alias.name)
        return found

    def digest(self, name: str) -> str:
        """Return a digest of the definition of a name."""
        if name not in self._digests:
            statements = self.definitions.get(name, ())
            # A dump holds no positions, comments or blank lines, so they do not count.
            dumps = map(ast.dump, statements)
            content = "\n".join(dumps).encode()
            digest = hashlib.blake2b(content, digest_size=8)
            self._digests[name] = digest.hexdigest()
        return self._digests[name]

    def _absolute(self, node: ast.ImportFrom) -> str:
        source = node.module or ""
        if not node.level:
            return source
        package = self.package
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        return f"{package}.{source}".rstrip(".")


def mentions(
    statements: Iterable[ast.AST], bound: frozenset[str] = frozenset()
) -> Iterator[Mention]:
    """Yield every global name that is read, with the attribute that is taken of it if there is one.

    Names that a function binds are its own, in it and in the functions inside of it. Names that a
    class binds count as global, since its methods do not see them.
    """
    for node in statements:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            if name not in bound:
                yield name, node.attr
        elif isinstance(node, ast.Name):
            if node.id not in bound:
                yield node.id, None
        elif isinstance(node, _FUNCTIONS):
            yield from _mentions_of_function(node, bound)
        elif isinstance(node, _COMPREHENSIONS):
            yield from _mentions_of_comprehension(node, bound)
        else:
            children = ast.iter_child_nodes(node)
            yield from mentions(children, bound)


def _mentions_of_function(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, bound: frozenset[str]
) -> Iterator[Mention]:
    body: list[ast.AST] = []
    if isinstance(node, ast.Lambda):
        body.append(node.body)
    else:
        body.extend(node.body)

    # Decorators, annotations and defaults are evaluated outside of the function.
    outside = _annotations_and_defaults(node.args)
    for child in ast.iter_child_nodes(node):
        is_inside = child in body or child is node.args
        if not is_inside:
            outside.append(child)
    yield from mentions(outside, bound)

    arguments = _argument_names(node.args)
    own = arguments | _assigned(body)
    # `global x` makes an assignment to x one of the module's.
    declared_global = _declared_global(body)
    bound_inside = (bound | own) - declared_global
    yield from mentions(body, bound_inside)


def _mentions_of_comprehension(
    node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp, bound: frozenset[str]
) -> Iterator[Mention]:
    # Python evaluates the first iterable outside of the comprehension, before its variables exist.
    first = node.generators[0].iter
    yield from mentions([first], bound)

    targets = [generator.target for generator in node.generators]
    bound_inside = bound | _assigned(targets)
    for part in _parts(node):
        if part is not first:
            yield from mentions([part], bound_inside)


def _parts(comprehension: ast.AST) -> Iterator[ast.AST]:
    """Yield the expressions of a comprehension."""
    for child in ast.iter_child_nodes(comprehension):
        if isinstance(child, ast.comprehension):
            yield from ast.iter_child_nodes(child)
        else:
            yield child


def _annotations_and_defaults(arguments: ast.arguments) -> list[ast.AST]:
    found: list[ast.AST] = []
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg) and argument.annotation is not None:
            found.append(argument.annotation)

    found += arguments.defaults
    for default in arguments.kw_defaults:
        if default is not None:  # None: a keyword-only argument without default
            found.append(default)
    return found


def _argument_names(arguments: ast.arguments) -> frozenset[str]:
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    # `*args` and `**kwargs`, which a function may have once each
    if arguments.vararg is not None:
        named.append(arguments.vararg)
    if arguments.kwarg is not None:
        named.append(arguments.kwarg)
    return frozenset(argument.arg for argument in named)


def _assigned(nodes: Iterable[ast.AST]) -> frozenset[str]:
    """Return the names that are bound by some nodes, except inside of functions and classes."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Name):
            is_assigned = isinstance(node.ctx, ast.Store)
            if is_assigned:
                found.add(node.id)
        elif isinstance(node, _NAMED):
            found.add(node.name)
        # Lambdas and comprehensions have variables of their own.
        elif not isinstance(node, (ast.Lambda, *_COMPREHENSIONS)):
            children = ast.iter_child_nodes(node)
            found |= _assigned(children)
    return frozenset(found)


def _declared_global(body: Iterable[ast.AST]) -> frozenset[str]:
    found: set[str] = set()
    for node in body:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Global):
                found.update(inner.names)
    return frozenset(found)


def _definitions(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Yield (name, statement that defines it); other statements as `MODULE_LEVEL`."""
    for statement in body:
        if isinstance(statement, _NAMED):
            yield statement.name, statement
        elif isinstance(statement, _ASSIGNMENTS):
            for name in _target_names(statement):
                yield name, statement
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        elif isinstance(statement, ast.If) and _is_for_type_checkers(statement):
            yield from _definitions(statement.orelse)
        elif isinstance(statement, ast.If | ast.Try | ast.With):
            yield MODULE_LEVEL, statement
            inner = []
            for child in ast.iter_child_nodes(statement):
                if isinstance(child, ast.stmt):
                    inner.append(child)
            yield from _definitions(inner)
        else:
            yield MODULE_LEVEL, statement


def _is_for_type_checkers(statement: ast.If) -> bool:
    """Return whether a branch is skipped at run time (`if TYPE_CHECKING`)."""
    condition = ast.dump(statement.test)
    return "TYPE_CHECKING" in condition


def _target_names(statement: ast.Assign | ast.AnnAssign | ast.AugAssign) -> Iterator[str]:
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets.extend(statement.targets)  # several in `a = b = 0`
    else:
        targets.append(statement.target)
    for target in targets:
        for node in ast.walk(target):
            if isinstance(node, ast.Name):
                yield node.id


def _outside_of_definitions(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in body:
        yield node
        if not isinstance(node, _NAMED):
            children = ast.iter_child_nodes(node)
            yield from _outside_of_definitions(children)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, *_NAMED)):
            continue
        docstring = ast.get_docstring(node, clean=False)
        if docstring is not None:  # an empty one is one, too
            node.body = node.body[1:]
    return tree
