"""What the documentation names exists: links, decisions, tests, stages, tables, outputs, code."""

from __future__ import annotations

import ast
import importlib
import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from pu_kd_pipeline.hooks.catalog import dataset_path
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.learning.selection_criteria import CRITERIA
from pu_kd_pipeline.reporting.summary import model_rows, selection_rows
from tests.documentation import (
    BRING_YOUR_OWN,
    DOCS,
    GUIDES,
    PROJECT,
    STAGES,
    START,
    environments,
    fenced,
    name_of,
    stages,
)

DECISION_SECTIONS = ["Context", "Choice", "Cost"]


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_relative_links_lead_to_files(path: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    for target in targets:
        if re.match(r"https?://|#", target):
            continue
        name, _, _ = target.partition("#")
        file = path.parent / name
        assert file.exists(), target


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_no_page_has_placeholders_or_paths_of_one_machine(path: Path) -> None:
    text = path.read_text()
    found = re.findall(r"@@|TODO|TBD|FIXME|/(?:home|root|tmp|work)/", text)
    assert found == []


def test_every_decision_is_listed_and_has_context_choice_and_cost() -> None:
    folder = PROJECT / "docs" / "decisions"
    decisions = sorted(folder.glob("[0-9]*.md"))
    list_of_decisions = (folder / "README.md").read_text()
    listed = re.findall(r"- \[(.+)\]\((.+)\)", list_of_decisions)

    assert [file for _, file in listed] == [path.name for path in decisions]

    for (title, _), path in zip(listed, decisions, strict=True):
        text = path.read_text()
        number = int(path.name[:4])
        assert title.startswith(f"{number}. ")
        assert text.startswith(f"# {title}\n")
        sections = re.findall(r"^\*\*(\w+)\.\*\*", text, flags=re.MULTILINE)
        assert sections == DECISION_SECTIONS, path.name


def test_the_worked_example_and_its_script_agree() -> None:
    files = environments(BRING_YOUR_OWN)["mine"]
    teacher = yaml.safe_load(files["parameters_teacher.yml"])["teacher"]
    folder = PROJECT / "docs" / "examples"
    constants = _constants(folder / "make_stand_ins.py")

    assert constants["CLASSES"] == teacher["classes"]
    teacher_input = teacher["input"]
    assert [constants["MEAN"]] == teacher_input["mean"]
    assert [constants["STD"]] == teacher_input["std"]
    assert constants["SIZE_PX"] == teacher_input["size_px"]

    module, _, function = teacher["architecture"].partition(":")
    source = (folder / f"{module}.py").read_text()
    script = ast.parse(source)
    names = [node.name for node in script.body if hasattr(node, "name")]

    assert function in names


def _constants(path: Path) -> dict[str, Any]:
    """Return the literal assignments of a script, which is not run for this."""
    constants: dict[str, Any] = {}
    script = ast.parse(path.read_text())
    for statement in script.body:
        if not isinstance(statement, ast.Assign):
            continue
        target = statement.targets[0]
        value = ast.literal_eval(statement.value)
        if isinstance(target, ast.Tuple):
            names = [ast.unparse(element) for element in target.elts]
            constants.update(zip(names, value, strict=True))
        else:
            constants[ast.unparse(target)] = value
    return constants


def can_be_imported_from(module: ModuleType, name: str) -> bool:
    if hasattr(module, name):
        return True
    is_package = hasattr(module, "__path__")
    return is_package and find_spec(f"{module.__name__}.{name}") is not None


def test_python_blocks_compile_and_import_what_exists() -> None:
    blocks = []
    for path in GUIDES:
        blocks += fenced("python", path)
    # Without a block, the loop below would check nothing.
    assert blocks

    for block in blocks:
        syntax_tree = ast.parse(block)
        for node in ast.walk(syntax_tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                exists = can_be_imported_from(module, alias.name)
                assert exists, f"{node.module} has no {alias.name}"


def test_the_table_of_stages_is_what_kedro_knows() -> None:
    row = re.compile(r"^\| \[`(\w+)`\]\(#\w+\) \| (.+) \| (.+) \| (.+) \|$", flags=re.MULTILINE)
    # The second table is about the other stages.
    table, _, _ = STAGES.read_text().partition("## Other stages")
    rows = row.findall(table)
    documented = {}
    for stage, reads, writes, parameters in rows:
        documented[stage] = {
            "reads": _quoted(reads),
            "writes": _quoted(writes),
            "parameters": _quoted(parameters),
        }
    known = stages()
    for stage in known.values():
        del stage["nodes"]

    # In the same order, too.
    assert list(documented) == list(known)
    assert documented == known


def _quoted(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def test_the_tables_that_a_run_prints_have_the_rows_of_the_code() -> None:
    # The values do not matter here; every quantity makes a row.
    quantities = ("accuracy", "agreement", "parameters", "flops", "latency_ms", "size_bytes")
    model = dict.fromkeys(quantities, 0.5)
    shares = ("class_prior", "precision", "recall", "auc", "gain")
    selection = dict.fromkeys(shares, 0.5)
    selection["n_selected"] = 1
    _, *rows_of_models = model_rows({"student": model})
    rows = rows_of_models + selection_rows({"selection": selection})

    printed = "\n".join(fenced("text", START))
    for title, *_ in rows:
        assert f"  {title}  " in printed


@pytest.mark.parametrize(
    ("heading", "known"), [("`rule`", RULES), ("`criterion` (rule `nnpu`)", CRITERIA)]
)
def test_the_guide_lists_every_selection_rule_and_criterion(heading: str, known: Any) -> None:
    text = BRING_YOUR_OWN.read_text()
    first_row = rf"^\| {re.escape(heading)} \| \w+ \|\n"
    # A table ends with an empty line.
    [table] = re.findall(first_row + r"(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    listed = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert set(listed) == set(known)


def test_outputs_that_the_start_page_lists_are_in_the_catalog() -> None:
    # A dataset factory has a path once it has a name, so the names come from the pipelines.
    bootstrap_project(PROJECT)
    with KedroSession.create(project_path=PROJECT) as session:
        catalog = session.load_context().catalog
    known = set()
    for pipeline in dict(pipelines).values():
        for name in pipeline.all_outputs():
            path = dataset_path(catalog, name)
            known.add(path.name)

    layouts = [block for block in fenced("text", START) if block.startswith("data/\n")]
    file_name = r"\w+\.(?:parquet|json|html)"
    folder_name = r"(?<=[ /])[a-z]+_[a-z_]+(?=/)"
    listed = set(re.findall(f"{file_name}|{folder_name}", layouts[0]))

    # Every model folder holds a card, which is not a dataset of its own.
    assert listed - known == {"card.json"}
    assert len(listed) > 15


def test_every_test_that_a_page_names_exists() -> None:
    text = (PROJECT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(\w+))?`", text)

    assert len(named) > 50

    tests = PROJECT / "tests"
    for file, name in named:
        path = tests / file
        if not path.is_file():
            # Pages leave out the folder of these tests.
            path = tests / "hostile" / file
        assert path.is_file(), file
        if name:
            assert f"def {name}(" in path.read_text(), f"{file} has no {name}"
