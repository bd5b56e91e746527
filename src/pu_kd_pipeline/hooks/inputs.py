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


# Kedro passes parameters as datasets of these names.
IN_MEMORY = re.compile(r"params:|parameters$")


class InputHooks:
    """Refuses unusable parameters and stages whose input is missing, before anything runs."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Check every parameter block that the requested pipelines use."""
        from kedro.framework.project import pipelines
        from kedro.validation.type_extractor import TypeExtractor
        from kedro.validation.utils import _unwrap_optional, is_pydantic_class

        from pu_kd_pipeline.params.validation import check_parameters

        # Kedro reads the files first: its errors name the file that cannot be read.
        parameters = context.config_loader["parameters"]
        models = {}
        types = TypeExtractor(dict(pipelines)).extract_types_from_pipelines()
        for name, annotation in types.items():
            model = _unwrap_optional(annotation)
            if is_pydantic_class(model):
                models[name] = model
        texts = _configuration_texts(context)
        # Names that only the configuration itself reads, such as `data`, are no unknown parameters.
        runtime_names = re.findall(r"runtime_params:\s*(\w+)", "\n".join(texts.values()))
        check_parameters(
            parameters,
            models,
            files=_files_of_blocks(texts, context.project_path),
            given=context.config_loader.runtime_params or {},
            other_names=runtime_names,
        )

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Refuse the run if saved inputs are missing, and name the stages that write them."""
        missing = []
        for name in sorted(pipeline.inputs()):
            if not IN_MEMORY.match(name) and name in catalog and not catalog.exists(name):
                missing.append(name)
        if not missing:
            return
        writers = _writing_stages(missing)
        lines = ["Saved input of this run is missing."]
        for name in missing:
            origin = "no stage writes it"
            if name in writers:
                origin = f"written by `kedro run --pipeline={writers[name]}`"
            lines.append(f"  - `{name}` ({dataset_path(catalog, name)}): {origin}")
        lines.append("Run what writes it first, or everything with `kedro run --pipeline=full`.")
        raise InputError("\n".join(lines))


def _writing_stages(names: list[str]) -> dict[str, str]:
    """Return dataset -> the smallest pipeline that writes it, looking in every registered one."""
    from kedro.framework.project import pipelines

    # The command that asked for one pipeline ends here, so all others may be imported.
    pipelines.set_requested(None)
    writers: dict[str, str] = {}
    # Joined pipelines such as `full` come last, so that a stage is named where one exists.
    for pipeline_name in sorted(pipelines, key=lambda name: (len(pipelines[name].nodes), name)):
        written = pipelines[pipeline_name].all_outputs()
        for name in names:
            if name in written:
                writers.setdefault(name, pipeline_name)
    return writers


def _configuration_texts(context: KedroContext) -> dict[Path, str]:
    """Return the configuration files of base and environment; later ones override earlier ones."""
    loader: Any = context.config_loader
    texts = {}
    for environment in (loader.base_env, loader.env or loader.default_run_env):
        folder = Path(loader.conf_source) / environment
        if folder.is_dir():
            for path in sorted(folder.rglob("*.yml")):
                # Kedro reports files that are not UTF-8, when it reads them.
                texts[path] = path.read_text(encoding="utf-8", errors="replace")
    return texts


def _files_of_blocks(texts: Mapping[Path, str], project_path: Path) -> dict[str, Path]:
    """Return parameter block -> the last parameter file that sets it."""
    files = {}
    for path, text in texts.items():
        if not path.name.startswith("parameters"):
            continue
        shown_path = path
        if path.is_relative_to(project_path):
            shown_path = path.relative_to(project_path)
        for block in re.findall(r"^(\w+):", text, flags=re.MULTILINE):
            files[block] = shown_path
    return files
