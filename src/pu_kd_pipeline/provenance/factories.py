"""The code of factories: `package.module:function`, by which parameters and cards name networks."""

from __future__ import annotations

import ast
import json
import re
import uuid
from collections.abc import Iterable, Iterator
from importlib import metadata

from pu_kd_pipeline.provenance.code_index import CodeIndex, with_parents
from pu_kd_pipeline.provenance.fingerprint import current_index
from pu_kd_pipeline.provenance.loaded_code import why_unknown
from pu_kd_pipeline.provenance.modules import MISSING, PROJECT, PYTHON, content_digest
from pu_kd_pipeline.provenance.syntax import Import, ModuleSyntax

_FACTORY = re.compile(r"\w+(\.\w+)*:\w+")


def factory_digest(text: str) -> str:
    """Return a digest of the code of a factory; empty if the text names none.

    A factory may run anything that it imports. So all modules of the project count that its module
    imports, directly or through others, as whole files, and the versions of the distributions that
    they import. Data files that it reads are not known. Where it is not known which code runs, the
    digest differs each time.

    Args:
        text: such as `package.module:function`.
    """
    if not _FACTORY.fullmatch(text):
        return ""
    name = text.partition(":")[0]
    index = current_index()
    owner = index.finder.owner(name.partition(".")[0])
    if owner in (MISSING, PYTHON):
        return ""
    modules: list[ModuleSyntax] = []
    distributions = {owner}
    if owner == PROJECT:
        modules = _modules_loaded_by(name, index)
        if index.syntax(name) is None:
            return ""
        distributions = _distributions_of(modules, index)
    digests = {syntax.name: syntax.module.digest for syntax in modules}
    if why_unknown(digests):  # so that nothing made with it is used again
        digests["which code runs is not known"] = uuid.uuid4().hex
    versions = {}
    for distribution in sorted(distributions):
        versions[distribution] = metadata.version(distribution)
    content = json.dumps([digests, versions], sort_keys=True)
    return content_digest(content.encode())


def _modules_loaded_by(module: str, index: CodeIndex) -> list[ModuleSyntax]:
    """Return a module of the project and all others that it imports, now or later."""
    found: dict[str, ModuleSyntax] = {}
    to_visit = [module]
    while to_visit:
        name = to_visit.pop()
        syntax = index.syntax(name)
        if syntax is None or name in found:
            continue
        found[name] = syntax
        to_visit += with_parents(name)
        for imported, attribute in _imports(syntax):
            to_visit += with_parents(imported)
            # It may be a module of the package.
            to_visit.append(f"{imported}.{attribute}")
    return list(found.values())


def _distributions_of(modules: Iterable[ModuleSyntax], index: CodeIndex) -> set[str]:
    """Return the distributions that some modules import."""
    owners = set()
    for syntax in modules:
        for imported, _ in _imports(syntax):
            top_level = imported.partition(".")[0]
            owners.add(index.finder.owner(top_level))
    return owners - {PROJECT, PYTHON, MISSING}


def _imports(syntax: ModuleSyntax) -> Iterator[Import]:
    """Yield everything that a module imports, also inside of functions."""
    nodes = ast.walk(syntax.tree)
    for targets in syntax.imports_in(nodes).values():
        yield from targets
