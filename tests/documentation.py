"""The pages of the documentation, and what their code blocks show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
README = PROJECT / "README.md"
CONTRIBUTING = PROJECT / "CONTRIBUTING.md"
START = PROJECT / "docs" / "start.md"
STAGES = PROJECT / "docs" / "stages.md"
BRING_YOUR_OWN = PROJECT / "docs" / "bring_your_own.md"
CONTAINERS = PROJECT / "docs" / "containers.md"
OPERATORS = PROJECT / "docs" / "operators.md"
DOCS = [
    *(README, CONTRIBUTING, PROJECT / "SECURITY.md", PROJECT / "CHANGELOG.md"),
    *(PROJECT / "conf" / "README.md", PROJECT / ".ci" / "README.md"),
    *sorted((PROJECT / "docs").rglob("*.md")),
]
# Pages whose commands and files a reader follows step by step.
SCALE = PROJECT / "docs" / "scale.md"
GUIDES = [README, START, BRING_YOUR_OWN, CONTAINERS, OPERATORS]
FENCED_BLOCK = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    """Return the page's path in the project."""
    return path.relative_to(PROJECT).as_posix()


def fenced(language: str, path: Path) -> list[str]:
    """Return the contents of a page's fenced blocks in a language."""
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, path.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    """Return the words of every command: after a `$` in a console block, or quoted in the text."""
    lines = []
    for block in fenced("console", path):
        for line in block.splitlines():
            if line.startswith("$ "):
                lines.append(line.removeprefix("$ "))
    prose = FENCED_BLOCK.sub("", path.read_text())
    lines += re.findall(r"`((?:make|kedro|\.venv/bin/\w+) [^`]+)`", prose)
    return [shlex.split(line, comments=True) for line in lines]


def environments(path: Path) -> dict[str, dict[str, str]]:
    """Return environment -> file -> text of the YAML blocks; the first line names the file."""
    found: dict[str, dict[str, str]] = {}
    for block in fenced("yaml", path):
        named = re.match(r"# conf/(\w+)/(\w+\.yml)\n", block)
        assert named, (
            f"{name_of(path)}: a YAML block does not begin with "
            f"'# conf/<environment>/<file>.yml':\n{block}"
        )
        environment, file = named.groups()
        files = found.setdefault(environment, {})
        assert file not in files, f"{name_of(path)} shows conf/{environment}/{file} twice"
        files[file] = block
    return found


def stages() -> dict[str, dict[str, Any]]:
    """Return what each stage reads and writes, in the order of `full`, as Kedro knows it."""
    from pu_kd_pipeline.pipelines import full

    found = {}
    for stage in full.pipeline.STAGES:
        pipeline = stage.create_pipeline()
        datasets = set()
        parameters = set()
        for name in pipeline.inputs() - {"parameters"}:
            if name.startswith("params:"):
                parameters.add(name.removeprefix("params:"))
            else:
                datasets.add(name)
        name = stage.__name__.rpartition(".")[2]
        found[name] = {
            "reads": datasets,
            "writes": set(pipeline.all_outputs()),
            "parameters": parameters,
            "nodes": [node.name for node in pipeline.nodes],
        }
    return found
