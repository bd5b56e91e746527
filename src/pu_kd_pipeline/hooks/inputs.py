"""Input that cannot be used is refused before anything runs."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.config import MissingConfigException
from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.catalog import dataset_location
from pu_kd_pipeline.hooks.engine import ENGINE
from pu_kd_pipeline.hooks.places import check_places, check_tracking_folder, check_versions
from pu_kd_pipeline.hooks.teacher_preflight import CHECK_BLOCK
from pu_kd_pipeline.incremental.runner import EXPLAINING_RUNNER
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.params.teacher import TeacherCheckParams

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline


# Kedro passes parameters as datasets of these names.
IN_MEMORY = re.compile(r"params:|parameters$")


class InputHooks:
    """Refuses unusable parameters and stages whose input is missing, before anything runs."""

    def __init__(self) -> None:
        self._loader: Any = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Check every parameter block that the requested pipelines use."""
        from kedro.framework.project import pipelines
        from kedro.validation.type_extractor import TypeExtractor
        from kedro.validation.utils import _unwrap_optional, is_pydantic_class

        from pu_kd_pipeline.params.validation import check_parameters

        loader: Any = context.config_loader
        self._loader = loader
        models = {}
        types = TypeExtractor(dict(pipelines)).extract_types_from_pipelines()
        for name, annotation in types.items():
            model = _unwrap_optional(annotation)
            if is_pydantic_class(model):
                models[name] = model
        # A test before the first node reads it, also where no node does.
        if "data_ingestion" in models:
            models.setdefault(CHECK_BLOCK, TeacherCheckParams)
        loader.use_texts(models)
        # Kedro reads the files first: its errors name the file that cannot be read.
        parameters = loader["parameters"]
        # Of trainings that workers share, too, whose nodes do not read it.
        if ENGINE in parameters:
            models.setdefault(ENGINE, EngineParams)
        if CHECK_BLOCK not in parameters and CHECK_BLOCK not in types:
            models.pop(CHECK_BLOCK, None)
        files = {}
        for block, file in loader.parameter_files.items():
            files[block] = _shown_path(file, context.project_path)
        given = loader.runtime_params
        if not given.keys() <= files.keys():
            _read_other_files(loader)
        check_parameters(
            parameters,
            models,
            files=files,
            given=given,
            # Names that only the configuration itself reads, such as `data`, are no blocks.
            other_names=loader.requested_names,
        )

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Refuse the run if its data cannot be stored where the catalog says, or is missing.

        For missing inputs, the stages that write them are named.
        """
        check_places(pipeline, catalog, writes=run_params["runner"] != EXPLAINING_RUNNER)
        check_tracking_folder(self._loader)
        check_versions(run_params.get("load_versions") or {}, catalog)
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
            lines.append(f"  - `{name}` ({dataset_location(catalog, name)}): {origin}")
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


def _read_other_files(loader: Any) -> None:
    """Read the kinds of files that may ask for names of `--params`, next to parameters."""
    for kind in ("catalog", "mlflow"):
        with suppress(MissingConfigException):
            loader[kind]


def _shown_path(file: Path, project_path: Path) -> Path:
    if file.is_relative_to(project_path):
        return file.relative_to(project_path)
    return file
