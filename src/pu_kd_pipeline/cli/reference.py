"""Commands that write the reference pages: all stages, and all parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO, get_type_hints

import click

from pu_kd_pipeline.cli.containers import OUT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from pydantic import BaseModel

    from pu_kd_pipeline.cli.stage_reference import Entry

PARAMETERS = "params:"


@click.group()
def reference() -> None:
    """Write the pages of docs/ about stages and parameters."""


@reference.command()
@OUT
def stages(out: TextIO) -> None:
    """Write docs/stages.md: what each stage reads, does and writes."""
    from kedro.framework.project import pipelines

    from pu_kd_pipeline.cli.stage_reference import stage_page
    from pu_kd_pipeline.pipelines import full

    order = [stage.__name__.rpartition(".")[2] for stage in full.pipeline.STAGES]
    context = _base_context()
    data_folder = context.project_path / "data"
    entries = _entries(pipelines, context.catalog, str(data_folder))
    out.write(stage_page(pipelines, order, entries))


@reference.command()
@OUT
def parameters(out: TextIO) -> None:
    """Write docs/parameters.md: type, range, default and meaning of every parameter."""
    from kedro.framework.project import pipelines

    from pu_kd_pipeline.cli.parameter_reference import parameter_page

    context = _base_context()
    values = context.config_loader["parameters"]
    conf = context.project_path / "conf" / "base"
    out.write(parameter_page(_blocks(pipelines), values, conf))


def _base_context() -> Any:
    """Return the project with the configuration of conf/base alone."""
    from kedro.framework.session import KedroSession

    session: Any = KedroSession.create(env="base")
    with session:
        return session.load_context()


def _blocks(pipelines: Mapping[str, Pipeline]) -> dict[str, type[BaseModel]]:
    """Return parameter block -> its model, those of `full` first, in the order of the work."""
    found: dict[str, type[BaseModel]] = {}
    for pipeline in [pipelines["full"], *pipelines.values()]:
        for node in pipeline.nodes:
            hints = list(get_type_hints(node.func).values())
            for name, hint in zip(node.inputs, hints, strict=False):
                if name.startswith(PARAMETERS):
                    found.setdefault(name.removeprefix(PARAMETERS), hint)
    return found


def _entries(
    pipelines: Mapping[str, Pipeline], catalog: DataCatalog, data_folder: str
) -> dict[str, Entry]:
    """Return the catalog's entry of every dataset that a pipeline reads or writes."""
    from pu_kd_pipeline.cli.stage_reference import Entry
    from pu_kd_pipeline.hooks.catalog import dataset_path

    names: set[str] = set()
    for pipeline in pipelines.values():
        names |= pipeline.datasets()
    found = {}
    for name in names:
        if name == "parameters" or name.startswith(PARAMETERS):
            continue
        path = str(dataset_path(catalog, name)).removeprefix(f"{data_folder}/")
        found[name] = Entry(path, type(catalog.get(name)).__name__)
    return found
