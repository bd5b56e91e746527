"""What a function is made of: the definitions that it runs, and the values that it holds."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from pu_kd_pipeline.provenance.modules import PROJECT, PYTHON, ModuleFinder


@dataclass
class FunctionParts:
    """What decides the result of calling something, besides the arguments.

    Attributes:
        starts: (module, name) of the definitions that it runs; "" as the name: the whole module.
        packages: of other distributions whose functions it runs.
        values: what it holds, by name: arguments of partials, closures, defaults.
        unknown: why its code is not known completely; empty if it is.
    """

    starts: list[tuple[str, str]] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    unknown: str = ""


def function_parts(function: Any, finder: ModuleFinder) -> FunctionParts:
    """Return what a function or class is made of.

    Args:
        function: anything that can be called.
        finder: tells the project's modules from others.
    """
    parts = FunctionParts()
    _add(function, parts, finder, set())
    return parts


def _add(thing: Any, parts: FunctionParts, finder: ModuleFinder, seen: set[int]) -> None:
    # A function may hold itself in its closure.
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, functools.partial):
        _add(thing.func, parts, finder, seen)
        for position, value in enumerate(thing.args):
            _add_value(f"argument {position}", value, parts, finder, seen)
        for name, value in thing.keywords.items():
            _add_value(f"argument {name}", value, parts, finder, seen)
    elif isinstance(thing, MethodType):
        owner = thing.__self__
        _add(thing.__func__, parts, finder, seen)
        if isinstance(owner, type):
            _add(owner, parts, finder, seen)
        else:
            kind = type(owner).__qualname__
            parts.unknown = f"a method of a {kind}, whose state is not known"
    elif isinstance(thing, FunctionType):
        _add_function(thing, parts, finder, seen)
    elif isinstance(thing, type):
        _add_definition(thing.__module__, thing.__qualname__, parts, finder)
    elif isinstance(thing, functools._lru_cache_wrapper):
        _add(thing.__wrapped__, parts, finder, seen)
    elif isinstance(thing, BuiltinFunctionType):
        parts.unknown = f"{thing.__qualname__}, which is compiled"
    else:
        kind = type(thing).__qualname__
        parts.unknown = f"an object of type {kind}, whose state is not known"


def _add_function(
    function: FunctionType, parts: FunctionParts, finder: ModuleFinder, seen: set[int]
) -> None:
    code = function.__code__
    # `functools.wraps` copies the name and module of another function.
    module = str(function.__globals__.get("__name__"))
    qualified_name = code.co_qualname
    owner = finder.owner(_top_level(module))
    if owner != PROJECT:
        _add_definition(module, qualified_name, parts, finder)
    elif not _is_in_file(code, module, finder):
        parts.unknown = f"{qualified_name}, which is not defined in a file of an imported module"
    else:
        _add_definition(module, qualified_name, parts, finder)
        if "<lambda>" in qualified_name:
            parts.values[f"{qualified_name} in {module}"] = _code_text(code)
    for name, value in _held_values(function):
        _add_value(f"{code.co_name}({name})", value, parts, finder, seen)


def _held_values(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of a function's closure and defaults."""
    code = function.__code__
    cells = function.__closure__ or ()
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # it was never assigned
            continue
    defaults = function.__defaults__ or ()
    # Defaults belong to the last of the positional parameters.
    first_default = code.co_argcount - len(defaults)
    names = code.co_varnames[first_default : code.co_argcount]
    yield from zip(names, defaults, strict=True)
    keyword_defaults = function.__kwdefaults__ or {}
    yield from keyword_defaults.items()


def _add_value(
    name: str, value: Any, parts: FunctionParts, finder: ModuleFinder, seen: set[int]
) -> None:
    if isinstance(value, ModuleType):
        module = value.__name__
        if finder.owner(_top_level(module)) == PROJECT:
            parts.starts.append((module, ""))
    elif callable(value):
        _add(value, parts, finder, seen)
    else:
        parts.values[name] = value


def _add_definition(
    module: str, qualified_name: str, parts: FunctionParts, finder: ModuleFinder
) -> None:
    top_level = _top_level(module)
    owner = finder.owner(top_level)
    name = _top_level(qualified_name)
    if owner == PROJECT:
        if name == "<lambda>":  # without a name to look for, its whole module counts
            name = ""
        parts.starts.append((module, name))
    elif owner == PYTHON:
        # Its version is recorded without the patch level.
        parts.unknown = f"{module}.{qualified_name} of the standard library"
    elif finder.spec(module) is None:
        parts.unknown = f"{module}.{qualified_name}, which is not defined in a file"
    else:
        parts.packages.append(top_level)


def _is_in_file(code: CodeType, module: str, finder: ModuleFinder) -> bool:
    """Return whether code was read from the file of its module, and not made by `exec`."""
    spec = finder.spec(module)
    if module not in sys.modules or module == "__main__":
        return False
    if spec is None or spec.origin is None:
        return False
    own_file = os.path.realpath(code.co_filename)
    return own_file == os.path.realpath(spec.origin)


def _top_level(dotted_name: str) -> str:
    first, _, _ = dotted_name.partition(".")
    return first


def _code_text(code: CodeType) -> str:
    """Return a text that tells one lambda of a module from another, wherever they stand."""
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constants.append(_code_text(constant))
        elif isinstance(constant, frozenset):  # in another order in every process
            items = sorted(map(repr, constant))
            constants.extend(items)
        else:
            constants.append(repr(constant))
    return " ".join([code.co_code.hex(), *constants, *code.co_names])
