"""What one module defines, imports and mentions, read off its syntax tree without importing it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from pu_kd_pipeline.provenance.modules import Module

# Statements between the definitions, which run when the module is imported.
MODULE_LEVEL = "<module>"
# As the name in an import: everything in the module may be used.
WHOLE_MODULE = "*"

Import = tuple[str, str | None]  # module, and the name in it; None: the module itself
Mention = tuple[str, str | None]  # name, and the attribute that is taken of it, if any

_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class ModuleSyntax:
    """What a module defines and imports at its top level.

    A module that is compiled, or cannot be parsed, counts as one statement that defines nothing.
    """

    module: Module
    _digests: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Dotted name of the module."""
        return self.module.name

    @cached_property
    def is_parsed(self) -> bool:
        """Whether the content is Python's source."""
        return self._parsed is not None

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree without docstrings."""
        return self._parsed or ast.Module(body=[], type_ignores=[])

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
    def imports(self) -> dict[str, list[Import]]:
        """Name -> what it is imported from; several where an import has an alternative."""
        nodes = _outside_of_definitions(self.tree.body)
        return self.imports_in(nodes)

    @cached_property
    def star_imports(self) -> list[str]:
        """Modules of which all names are imported."""
        targets = self.imports.get(WHOLE_MODULE, [])
        return [module for module, _ in targets]

    @cached_property
    def loaded_modules(self) -> list[Import]:
        """What importing this module imports, names as well as modules."""
        nodes = _outside_of_definitions(self.tree.body, is_for_running=True)
        return [target for targets in self.imports_in(nodes).values() for target in targets]

    @cached_property
    def mentioned_names(self) -> frozenset[str]:
        """Every name that is read anywhere in the module."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name):
                found.add(node.id)
        return frozenset(found)

    @cached_property
    def _parsed(self) -> ast.Module | None:
        if not self.module.is_source:
            return None
        try:
            tree = ast.parse(self.module.content, self.name)
        except (SyntaxError, ValueError, RecursionError):
            return None
        return _without_docstrings(tree)

    def imports_in(self, nodes: Iterable[ast.AST]) -> dict[str, list[Import]]:
        """Return name -> what it is imported from, of the import statements among some nodes."""
        found: dict[str, list[Import]] = {}
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound, target = _plain_import(alias)
                    found.setdefault(bound, []).append(target)
            elif isinstance(node, ast.ImportFrom):
                source = self._absolute(node)
                for alias in node.names:
                    bound = alias.asname or alias.name
                    found.setdefault(bound, []).append((source, alias.name))
        return found

    def digest(self, name: str) -> str:
        """Return a digest of the definition of a name."""
        if name == MODULE_LEVEL and not self.is_parsed:
            return self.module.digest
        if name not in self._digests:
            statements = self.definitions.get(name, ())
            # A dump holds no positions, comments or blank lines, so they do not count.
            dumps = map(ast.dump, statements)
            content = "\n".join(dumps).encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(content, digest_size=8)
            self._digests[name] = digest.hexdigest()
        return self._digests[name]

    def _absolute(self, node: ast.ImportFrom) -> str:
        source = node.module or ""
        if not node.level:
            return source
        package = self.module.package
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        return f"{package}.{source}".rstrip(".")


def _plain_import(alias: ast.alias) -> tuple[str, Import]:
    """Return the name that `import a.b` or `import a.b as c` binds, and what it stands for."""
    if alias.asname:
        return alias.asname, (alias.name, None)
    top_level, _, rest = alias.name.partition(".")
    if rest:  # binds `a`, through which all of `a.b` is used
        return top_level, (alias.name, WHOLE_MODULE)
    return top_level, (top_level, None)


def strings(statements: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the text constants in some statements."""
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


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
            if _changes_something_else(statement):
                yield MODULE_LEVEL, statement
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
        elif not _is_text(statement):
            yield MODULE_LEVEL, statement


def _is_text(statement: ast.stmt) -> bool:
    """Return whether a statement is only a text, such as the description of a variable."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _changes_something_else(statement: ast.stmt) -> bool:
    """Return whether an assignment changes an attribute or an item, maybe of another module."""
    for target in _targets(statement):
        for node in ast.walk(target):
            if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
                return True
    return False


def _is_for_type_checkers(statement: ast.If) -> bool:
    """Return whether a branch is skipped at run time (`if TYPE_CHECKING`)."""
    condition = ast.dump(statement.test)
    return "TYPE_CHECKING" in condition


def _targets(statement: ast.stmt) -> list[ast.expr]:
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets.extend(statement.targets)  # several in `a = b = 0`
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets.append(statement.target)
    return targets


def _target_names(statement: ast.stmt) -> Iterator[str]:
    for target in _targets(statement):
        for node in ast.walk(target):
            if isinstance(node, ast.Name):
                yield node.id


def _outside_of_definitions(
    body: Iterable[ast.AST], *, is_for_running: bool = False
) -> Iterator[ast.AST]:
    """Yield the nodes outside of functions and classes.

    Args:
        body: statements of a module.
        is_for_running: leave out what only type checkers read.
    """
    for node in body:
        if is_for_running and isinstance(node, ast.If) and _is_for_type_checkers(node):
            continue
        yield node
        if not isinstance(node, _NAMED):
            children = ast.iter_child_nodes(node)
            yield from _outside_of_definitions(children, is_for_running=is_for_running)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, *_NAMED)):
            continue
        docstring = ast.get_docstring(node, clean=False)
        if docstring is not None:  # an empty one is one, too
            node.body = node.body[1:]
    return tree
