"""Which code a function depends on: imports of all kinds, shadowed names, and what is ignored."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline.provenance.code_index import CodeIndex

FILES = {
    "__init__.py": "from {p}.deep.inner import exported\n",
    "deep/__init__.py": "",
    "deep/inner.py": """
LIMIT = 3

def exported(x):
    return min(x, LIMIT)

def unrelated():
    return exported(1)
""",
    "tools.py": """
from __future__ import annotations
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from {p}.kinds import Kind

def half(x):
    return x / 2

def third(x: Kind) -> float:
    return x / 3

def local(half):
    exported = half + 1
    return [third for third in (exported, math.pi)]

RULES = {{"half": half, "third": third}}
""",
    "kinds.py": """
class Base:
    size = 1

class Kind(Base):
    def run(self):
        return helper()

def helper():
    return 1

class Other:
    pass
""",
    "effects.py": """
import sys

sys.setrecursionlimit(sys.getrecursionlimit())

def plain():
    return 1
""",
    "nodes.py": """
from functools import lru_cache

from {p} import exported as renamed, tools
from {p}.effects import plain
from .deep import inner

def by_name(x):
    return renamed(x)

def by_module(x):
    return tools.half(x)

def by_submodule(x):
    return inner.LIMIT

def by_mapping(x):
    return tools.RULES[x]

def inside(x):
    from {p}.tools import half as imported
    return imported(x)

def shadowed(x, plain):
    return plain(x)

def effects():
    return plain()

@lru_cache
def decorated(x, default=inner.LIMIT):
    def nested(plain):
        return plain
    return nested(renamed)

def whole_module():
    return tools

def recursive(x):
    return other(x)

def other(x):
    return recursive(x)

def in_class_scope():
    class Local:
        plain = plain
    return Local
""",
}
KIND = {"kinds:Kind", "kinds:Base", "kinds:helper"}
# Function of nodes.py -> what it depends on, except itself.
EXPECTED = {
    "by_name": {"deep.inner:exported", "deep.inner:LIMIT"},
    "by_module": {"tools:half"},
    "by_submodule": {"deep.inner:LIMIT"},
    "by_mapping": {"tools:RULES", "tools:half", "tools:third", *KIND},
    "inside": {"tools:half"},
    "shadowed": set(),
    "effects": {"effects:plain"},
    "decorated": {"deep.inner:exported", "deep.inner:LIMIT"},
    "whole_module": {"tools:half", "tools:third", "tools:local", "tools:RULES", *KIND},
    "recursive": {"nodes:other"},
    "in_class_scope": {"effects:plain"},
}
Write = Callable[[str, str], None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    # A name of its own: modules of another test would be found under the same one.
    number = abs(hash(tmp_path)) % 10**8
    name = f"code_{number}"
    folder = tmp_path / name
    for file, text in FILES.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(p=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    # Bytecode would hide a second change within the resolution of the file's time.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    yield name, folder

    forget(name)


def forget(package: str) -> None:
    """Let the next import load the files again, as in another process."""
    for module in list(sys.modules):
        root, _, _ = module.partition(".")
        if root == package:
            del sys.modules[module]
    importlib.invalidate_caches()


def code_digests(package: str, function: str) -> dict[str, str]:
    """Return what a node depends on in a new process: name in the package -> digest of the code.

    Names of other packages, and of the function itself, are left out.
    """
    forget(package)
    nodes = importlib.import_module(f"{package}.nodes")
    found: Any = getattr(nodes, function)
    # A decorated function is a wrapper of functools.
    unwrapped = getattr(found, "__wrapped__", found)
    code = CodeIndex().code_digests(unwrapped)

    prefix = f"{package}."
    digests = {}
    for name, digest in code.items():
        if name.startswith(prefix):
            digests[name.removeprefix(prefix)] = digest
    return digests


@pytest.mark.parametrize("function", sorted(EXPECTED))
def test_what_a_function_mentions_is_found_through_every_kind_of_import(package, function):
    name, _ = package
    found = set(code_digests(name, function))

    itself = f"nodes:{function}"
    # Importing the module of the nodes runs the statements of all modules that it imports.
    assert found == {itself, "effects:<module>", *EXPECTED[function]}


def test_comments_docstrings_and_places_do_not_count_and_code_does(package):
    name, folder = package
    file = folder / "deep" / "inner.py"
    before = code_digests(name, "by_name")

    # Four more lines, so that everything below is in another place.
    documented = '# why\n\n\ndef exported(x):\n    """Cut."""\n    # how\n'
    text = FILES["deep/inner.py"].replace("def exported(x):\n", documented)
    file.write_text(text)
    assert code_digests(name, "by_name") == before

    changed_text = text.replace("LIMIT = 3", "LIMIT = 4")
    file.write_text(changed_text)
    after = code_digests(name, "by_name")
    assert after.pop("deep.inner:LIMIT") != before.pop("deep.inner:LIMIT")
    assert after == before


def test_an_empty_docstring_does_not_count(package):
    name, folder = package
    before = code_digests(name, "by_name")
    # A docstring like any other, though it is false where it is asked for.
    documented = 'exported(x):\n    """"""\n'
    text = FILES["deep/inner.py"].replace("exported(x):\n", documented)
    file = folder / "deep" / "inner.py"
    file.write_text(text)

    after = code_digests(name, "by_name")
    assert after == before


def test_the_stamp_changes_with_any_file_of_the_package(package):
    name, folder = package
    nodes = importlib.import_module(f"{name}.nodes")
    before = CodeIndex().stamp([nodes.by_name])
    # An index remembers stamps: each of these is that of another process.
    again = CodeIndex().stamp([nodes.by_name])
    assert again == before

    # The function does not use this file; the stamp only decides whether to look closer.
    file = folder / "tools.py"
    file.write_text("# empty\n")
    after = CodeIndex().stamp([nodes.by_name])
    assert after != before


def test_installed_packages_have_no_code_here():
    import numpy as np

    # Their versions are in the records instead.
    of_numpy = CodeIndex().code_digests(np.mean)
    assert of_numpy == {}
    of_standard_library = CodeIndex().code_digests(Path)
    assert of_standard_library == {}


def test_a_node_of_the_pipeline_depends_on_the_mathematics_it_uses():
    from pu_kd_pipeline.pipelines.distillation.nodes import make_distill_student
    from pu_kd_pipeline.pipelines.pu_training.nodes import train_pu_classifier

    index = CodeIndex()
    pu = set(index.code_digests(train_pu_classifier))
    student = set(index.code_digests(make_distill_student("distillation")))

    assert "pu_kd_pipeline.learning.losses.risk:pu_risk" in pu - student
    assert "pu_kd_pipeline.learning.losses.distillation:robust_kd" in student - pu
    assert "pu_kd_pipeline.learning.loop:fit" in pu & student

    # How a run is logged does not decide what it makes.
    for name in pu | student:
        module, _, _ = name.partition(":")
        assert not module.endswith((".tracking", ".hooks"))


MORE_FILES = {
    "data/table.csv": "1,2",
    "page.html.jinja": "<p>",
    "notes.txt": "nothing reads it",
    "sub/words.txt": "a b",
    "reads.py": """
from importlib.resources import files
from pathlib import Path

NAME = "page.html.jinja"

def named():
    return NAME

def next_to_it():
    return Path(__file__).parent.glob("*")

def resources():
    return files(__package__)

def reads_nothing():
    return 1
""",
    "alternatives.py": """
import {p}.dotted
from {p}.star import *

try:
    from {p}.first import choice
except ImportError:
    from {p}.second import choice

def chosen():
    return choice()

def through_dots():
    return {p}.dotted.inner()

def through_star():
    return starred()
""",
    "first.py": "def choice():\n    return 1\n",
    "second.py": "def choice():\n    return 2\n",
    "dotted.py": "def inner():\n    return 1\n",
    "star.py": "def starred():\n    return 1\n",
    "plugins.py": """
from {p} import table

def plugin():
    pass

table.ENTRIES["a"] = plugin
""",
    "table.py": "ENTRIES = {{}}\n",
    "uses_plugins.py": """
import {p}.plugins as _
from {p}.table import ENTRIES

def call():
    return ENTRIES["a"]
""",
}
EVERY_FILE = {"code:data/table.csv", "code:page.html.jinja", "code:notes.txt", "code:sub/words.txt"}


@pytest.fixture
def larger_package(package: tuple[str, Path]) -> str:
    name, folder = package
    for file, text in MORE_FILES.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(p=name))
    return name


def reached(package: str, module: str, function: str) -> set[str]:
    """Return what a function depends on; files of the package as "code:path"."""
    forget(package)
    imported = importlib.import_module(f"{package}.{module}")
    code = CodeIndex().code_digests(getattr(imported, function))
    names = set()
    for name in code:
        if name.startswith(f"{package}."):
            names.add(name.removeprefix(f"{package}."))
        elif name.startswith(f"{package}:"):
            names.add(name.replace(package, "code"))
    return names


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("named", {"reads:NAME", "code:page.html.jinja"}),
        ("next_to_it", EVERY_FILE),
        ("resources", EVERY_FILE),
        ("reads_nothing", set()),
    ],
)
def test_files_of_a_package_count_where_code_reads_them(larger_package, function, expected):
    found = reached(larger_package, "reads", function)
    assert found == {f"reads:{function}", *expected}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("chosen", {"first:choice", "second:choice"}),
        ("through_dots", {"dotted:inner"}),
        ("through_star", {"star:starred"}),
    ],
)
def test_every_way_to_the_same_name_counts(larger_package, function, expected):
    assert expected <= reached(larger_package, "alternatives", function)


def test_a_module_that_is_imported_for_what_it_does_counts(larger_package):
    found = reached(larger_package, "uses_plugins", "call")
    assert {"plugins:<module>", "plugins:plugin", "table:ENTRIES"} <= found


def test_another_source_of_a_name_is_a_change(package):
    name, folder = package
    file = folder / "tools.py"
    codes = []
    for function in ("floor", "ceil"):
        file.write_text(f"from math import {function} as half\n\nthird = half\n\nRULES = half\n")
        forget(name)
        nodes = importlib.import_module(f"{name}.nodes")
        codes.append(CodeIndex().code_digests(nodes.by_mapping))
    assert codes[0] != codes[1]
