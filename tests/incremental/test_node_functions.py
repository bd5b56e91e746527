"""Functions of nodes that are not plain: what they hold counts, or they run every time."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from kedro.io import DatasetError
from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.incremental.runner import _planned_reasons
from tests.incremental.projects import Project

MORE = """
import functools

def shifted(value, by):
    return {"value": value["value"] + by}

def make_shifted(by):
    def inner(value):
        return shifted(value, by)
    return inner

def make_applied(function):
    return lambda value: function(value)

def counted(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return {"value": function(*arguments)["value"] + EXTRA}
    return wrapper

EXTRA = 0

class Shifter:
    def __init__(self, by):
        self.by = by

    def __call__(self, value):
        return shifted(value, self.by)

    def method(self, value):
        return shifted(value, self.by)

    @classmethod
    def of_class(cls, value):
        return shifted(value, 1)

def plus_one(value):
    return shifted(value, 1)

def plus_two(value):
    return shifted(value, 2)

NEITHER = (plus_one, plus_two)
for _ in range(1):
    def in_a_loop(value):
        return shifted(value, 1)
exec("def made_by_exec(value):\\n    return {'value': 1}")
cached = functools.lru_cache(plus_one)
"""
Make = Callable[[Any], Any]


@pytest.fixture
def functions(project: Project) -> Callable[[], Any]:
    """Return the module of the functions, loaded as in another process."""
    import importlib

    (project.code / "more.py").write_text(MORE)

    def load() -> Any:
        project.forget_modules()
        importlib.invalidate_caches()
        return importlib.import_module(f"{project.package}.more")

    return load


def run(project: Project, function: Any) -> str | None:
    """Run a node of a function, and return the reason."""
    import importlib

    nodes = importlib.import_module(f"{project.package}.nodes")
    pipeline = Pipeline(
        [
            Node(nodes.start, "params:first", "start_value", name="start"),
            Node(function, "start_value", "right_value", name="node"),
        ]
    )
    return project.run(pipeline=pipeline).get("node")


KNOWN: dict[str, Make] = {
    "partial": lambda more: functools.partial(more.shifted, by=1),
    "closure": lambda more: more.make_shifted(1),
    "function in a closure": lambda more: more.make_applied(more.plus_one),
    "decorated": lambda more: more.counted(more.plus_one),
    "class method": lambda more: more.Shifter.of_class,
    "in a loop": lambda more: more.in_a_loop,
}
UNKNOWN: dict[str, tuple[Make, str]] = {
    "object": (lambda more: more.Shifter(1), "an object of type Shifter"),
    "bound method": (lambda more: more.Shifter(1).method, "a method of a Shifter"),
    "partial of an object": (
        lambda more: functools.partial(more.Shifter(1)),
        "an object of type Shifter",
    ),
    "compiled": (lambda _: len, "len, which is compiled"),
    "standard library": (lambda _: json.dumps, "json.dumps of the standard library"),
    "exec": (lambda more: more.made_by_exec, "made_by_exec, which is not defined in a file"),
    "partial with an object": (
        lambda more: functools.partial(more.make_applied(len)),
        "len, which is compiled",
    ),
}


@pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)
def test_a_function_that_is_known_is_skipped(project, functions, make: Make):
    assert run(project, make(functions())) is not None
    assert run(project, make(functions())) is None

    text = MORE.replace('value["value"] + by', 'value["value"] - by')
    (project.code / "more.py").write_text(text)
    reason = run(project, make(functions()))
    assert reason == f"code changed: {project.package}.more:shifted"


@pytest.mark.parametrize(("make", "reason"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_function_that_is_not_known_runs_every_time_and_says_why(
    project, functions, make: Make, reason: str
):
    for _ in range(2):
        ran = run(project, make(functions()))
        assert ran is not None
        assert ran.startswith(f"it runs every time: its function is {reason}")


def test_what_a_function_holds_counts_as_a_parameter(project, functions):
    run(project, functions().make_shifted(1))
    assert run(project, functions().make_shifted(2)) == "parameter inner(by) 1 → 2"
    run(project, functools.partial(functions().shifted, by=1))
    reason = run(project, functools.partial(functions().shifted, by=True))
    assert reason == "parameter argument by 1 → true"
    reason = run(project, functools.partial(functions().shifted, by=math.inf))
    assert reason == "parameter argument by true → inf"


def test_the_code_of_a_decorator_counts(project, functions):
    run(project, functions().counted(functions().plus_one))
    (project.code / "more.py").write_text(MORE.replace("EXTRA = 0", "EXTRA = 1"))
    more = functions()
    assert (
        run(project, more.counted(more.plus_one)) == f"code changed: {project.package}.more:EXTRA"
    )


def test_functions_of_the_same_code_are_distinguished(project, functions):
    text = MORE + "\ndef first(value):\n    return NEITHER_2[0](value)\n"
    text += "\ndef second(value):\n    return NEITHER_2[1](value)\n"
    text += "\nNEITHER_2 = (plus_one, plus_two, first, second)\n"
    (project.code / "more.py").write_text(text)
    run(project, functions().first)
    assert run(project, functions().second) is not None
    assert run(project, functions().second) is None


def test_an_argument_that_cannot_be_compared_runs_its_node_every_time(project, functions):
    for _ in range(2):
        function = functools.partial(functions().shifted, by=Fraction(1))
        with pytest.raises(DatasetError):  # JSON knows no fractions
            run(project, function)
        pipeline = Pipeline([Node(function, "start_value", "right_value", name="node")])
        [reason] = _planned_reasons(pipeline, project.catalog()).values()
        assert reason == (
            "it runs every time: argument by is of type Fraction, which cannot be compared"
        )
