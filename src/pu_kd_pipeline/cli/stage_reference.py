"""The page of all stages, written from the pipelines and the catalog."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

INTRODUCTION = """\
# Stages

Each stage is a pipeline of its own, such as `kedro run --pipeline=pool_scoring`. Stages exchange
nothing but files.
`make reference` writes this page from [the pipelines](../src/pu_kd_pipeline/pipelines) and
[the catalog](../conf/base/catalog), and a test compares them.
"""
PARAMETERS = "params:"


@dataclass(frozen=True)
class Entry:
    """A file or folder of the catalog: its path in the data folder, and its type."""

    path: str
    type: str


def stage_page(
    pipelines: Mapping[str, Pipeline], order: Sequence[str], entries: Mapping[str, Entry]
) -> str:
    """Return the page in Markdown.

    Args:
        pipelines: name -> pipeline, also of those that join stages.
        order: names of the stages of `full`, in the order of the work.
        entries: name of each dataset of the pipelines -> its entry in the catalog.
    """
    stages = {}
    joined = {}
    for name, pipeline in pipelines.items():
        own = Pipeline([node for node in pipeline.nodes if node.namespace == name])
        if own.nodes:
            stages[name] = own
        namespaces = _namespaces(pipeline)
        if namespaces != [name]:
            joined[name] = namespaces
    in_order = {name: stages[name] for name in order}
    others = {name: stage for name, stage in stages.items() if name not in order}
    return "\n".join(
        [
            INTRODUCTION,
            "## The stages of `full`\n",
            _overview(in_order),
            "## Other stages\n",
            _overview(others),
            "## Pipelines of several stages\n",
            _joined(joined),
            "## Nodes\n",
            *[_nodes(name, stage) for name, stage in {**in_order, **others}.items()],
            "## Files\n",
            _files(stages.values(), entries),
        ]
    )


def _namespaces(pipeline: Pipeline) -> list[str]:
    """Return the stages of a pipeline, in the order of the work."""
    return list(dict.fromkeys(str(node.namespace) for node in pipeline.nodes))


def _joined(joined: Mapping[str, list[str]]) -> str:
    lines = ["| pipeline | stages |", "| --- | --- |"]
    for name, stages in joined.items():
        lines.append(f"| `{name}` | {_codes(stages)} |")
    return "\n".join(lines) + "\n"


def _overview(stages: Mapping[str, Pipeline]) -> str:
    lines = ["| stage | reads | writes | parameters |", "| --- | --- | --- | --- |"]
    for name, pipeline in stages.items():
        blocks = [key for key in pipeline.inputs() if key.startswith(PARAMETERS)]
        # The node that prints all parameters reads Kedro's whole dictionary.
        datasets = pipeline.inputs() - {*blocks, "parameters"}
        cells = [
            f"[`{name}`](#{name})",
            _codes(sorted(datasets)) or "your files",
            _codes(sorted(pipeline.all_outputs())),
            ", ".join(_block_link(block) for block in sorted(blocks)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _nodes(name: str, pipeline: Pipeline) -> str:
    lines = [
        f"### {name}\n",
        "| node | what it does | reads | writes |",
        "| --- | --- | --- | --- |",
    ]
    for node in pipeline.nodes:
        cells = [
            f"`{node.name}`",
            _summary(node),
            _codes(_inputs(node)) or "–",
            _codes(node.outputs),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _summary(node: Node) -> str:
    """Return the first paragraph of its function's docstring."""
    paragraph, _, _ = inspect.cleandoc(node.func.__doc__ or "").partition("\n\n")
    return " ".join(paragraph.split()).replace("|", "\\|")


def _inputs(node: Node) -> list[str]:
    return [name for name in node.inputs if not _is_parameter(name)]


def _is_parameter(name: str) -> bool:
    return name == "parameters" or name.startswith(PARAMETERS)


def _files(stages: Iterable[Pipeline], entries: Mapping[str, Entry]) -> str:
    written_by: dict[str, set[str]] = {}
    for pipeline in stages:
        for node in pipeline.nodes:
            for name in node.outputs:
                written_by.setdefault(name, set()).add(str(node.namespace))
    lines = [
        "| dataset | path in the data folder | type | written by |",
        "| --- | --- | --- | --- |",
    ]
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].path, item[0])):
        writers = _codes(sorted(written_by.get(name, ()))) or "–"
        lines.append(f"| `{name}` | `{entry.path}` | {entry.type} | {writers} |")
    return "\n".join(lines) + "\n"


def _block_link(key: str) -> str:
    block = key.removeprefix(PARAMETERS)
    return f"[`{block}`](parameters.md#{block})"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
