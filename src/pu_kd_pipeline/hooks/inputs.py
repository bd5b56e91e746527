"""Input that cannot be used is refused before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.catalog import dataset_path

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline


# Stages that write what those of `full` write, too.
OTHER_SYSTEMS = frozenset({"unlabeled_distillation", "critic_distillation"})
IN_MEMORY = re.compile(r"params:|parameters$")


class InputHooks:
    """Refuses parameters that cannot be used and stages whose input is not there, before anything runs."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Check every block that the requested pipelines use."""
        from kedro.framework.project import pipelines
        from kedro.validation.type_extractor import TypeExtractor
        from kedro.validation.utils import _unwrap_optional, is_pydantic_class

        from pu_kd_pipeline.params.validation import check_parameters

        parameters = context.config_loader["parameters"]
        types = TypeExtractor(dict(pipelines)).extract_types_from_pipelines()
        models = {name: _unwrap_optional(annotation) for name, annotation in types.items()}
        texts = _configuration_texts(context)
        check_parameters(
            parameters,
            {name: model for name, model in models.items() if is_pydantic_class(model)},
            files=_files_of_blocks(texts, context.project_path),
            given=context.config_loader.runtime_params or {},
            other_names=re.findall(r"runtime_params:\s*(\w+)", "\n".join(texts.values())),
        )

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Name every saved input that is not there, and the stage that writes it."""
        missing = [
            name
            for name in sorted(pipeline.inputs())
            if not IN_MEMORY.match(name) and _is_missing(catalog, name)
        ]
        if missing:
            writers = _stages_that_write(missing)
            faults = [
                f"  - `{name}` ({dataset_path(catalog, name)}): "
                + (
                    f"written by `kedro run --pipeline={writers[name]}`"
                    if name in writers
                    else "no stage writes it"
                )
                for name in missing
            ]
            raise InputError(
                "Saved input of this run is missing.\n" + "\n".join(faults) + "\n"
                "Run what writes it first, or everything with `kedro run --pipeline=full`."
            )


def _is_missing(catalog: DataCatalog, name: str) -> bool:
    return name in catalog and not catalog.exists(name)


def _stages_that_write(names: list[str]) -> dict[str, str]:
    """Return data set -> the stage that writes it, looking in every registered pipeline."""
    from kedro.framework.project import pipelines

    pipelines.set_requested(None)  # the run that asked for one pipeline ends here
    stages = {
        name: pipelines[name]
        for name in sorted(pipelines, key=OTHER_SYSTEMS.__contains__, reverse=True)
    }
    for joined in ("full", "full_unlabeled", "__default__"):
        stages.pop(joined, None)
    return {
        name: stage
        for stage, pipeline in stages.items()
        for name in names
        if name in pipeline.all_outputs()
    }


def _configuration_texts(context: KedroContext) -> dict[Path, str]:
    """Return the files of the base and the run's environment, in the order in which later ones win."""
    loader: Any = context.config_loader
    folders = [
        Path(loader.conf_source) / env
        for env in (loader.base_env, loader.env or loader.default_run_env)
    ]
    files = [
        path for folder in folders if folder.is_dir() for path in sorted(folder.rglob("*.yml"))
    ]
    return {path: path.read_text(encoding="utf-8") for path in files}


def _files_of_blocks(texts: Mapping[Path, str], project_path: Path) -> dict[str, Path]:
    """Return block -> the parameter file that has the last word on it."""
    return {
        block: path.relative_to(project_path) if path.is_relative_to(project_path) else path
        for path, text in texts.items()
        if path.name.startswith("parameters")
        for block in re.findall(r"^(\w+):", text, flags=re.MULTILINE)
    }
