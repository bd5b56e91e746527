"""Checks before the first node that need more than a parameter's type: files, networks, devices.

All faults are reported together. Networks are built only where building can fail: torch takes
seconds to import, and otherwise the first node that needs it imports it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.engines.ray_cluster import import_ray
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.contradictions import contradictions
from pu_kd_pipeline.hooks.engine import engine_of
from pu_kd_pipeline.hooks.teacher_preflight import preflight_teacher
from pu_kd_pipeline.incremental.node_states import SHOWS_PARAMETERS, local_path
from pu_kd_pipeline.incremental.runner import EXPLAINING_RUNNER
from pu_kd_pipeline.incremental.staleness import RECORDS
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.data_ingestion import SOURCE_TYPES, DataIngestionParams, ImageSource
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.params.paths import is_url, resolved_path
from pu_kd_pipeline.params.pu_training import AUDIT, PUTrainingParams
from pu_kd_pipeline.params.teacher import TeacherParams

if TYPE_CHECKING:
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline

    from pu_kd_pipeline.models.cards import ModelCard


# `devices.prepare_device` never refuses these.
DEVICES_ANYWHERE = frozenset({"auto", "cpu"})
# Folders in the data folder, as Kedro numbers them; the first one is the user's.
_LAYER = re.compile(r"\d\d_")
_RAW_DATA = "01_raw"
# What is made by comparing answers with labels of the test images.
_WITH_LABELS = frozenset({"metrics", "comparison_cells"})
# What needs no labels.
_CERTIFICATE = "certificate"
AUDIT_RESULT = "pool_audit"  # the catalog entry


def check(blocks: Mapping[str, Any], data_folder: Path | None = None) -> None:
    """Check the typed parameter blocks that a run reads.

    Args:
        blocks: block name -> typed block; blocks of other types are ignored.
        data_folder: where the run writes; None: that is not checked against the sources.

    Raises:
        InputError: names every fault with its block.
    """
    faults: list[str] = []
    teacher: ModelCard | None = None
    devices: dict[str, ComputeParams] = {}
    for name, block in blocks.items():
        if isinstance(block, TeacherParams):
            teacher = _try(faults, name, partial(_teacher_card, block))
        if isinstance(block, DataIngestionParams):
            faults.extend(f"{name}.{fault}" for fault in _unusable_paths(block, data_folder))
        if hasattr(block, "compute"):
            # Most blocks share a device, which is tried once.
            devices[block.compute.device] = block.compute
        if _has_workers(block):
            _try(faults, "training_workers", partial(_check_workers, block, blocks.get("engine")))
    for device, compute in devices.items():
        if device not in DEVICES_ANYWHERE:
            _try(faults, "compute", partial(_check_device, compute))
    for name, block in blocks.items():
        if isinstance(block, EngineParams) and block.kind == "ray":
            _try(faults, name, import_ray)
        if isinstance(block, DistillationParams) and teacher is not None:
            _try(faults, name, partial(_check_student, block, teacher))
    faults.extend(contradictions(blocks))
    if len(faults) == 1:
        raise InputError(faults[0])
    if faults:
        lines = [f"- {fault}" for fault in faults]
        raise InputError("\n".join([f"{len(faults)} faults:", *lines]))


def _try(faults: list[str], name: str, function: Callable[[], Any]) -> Any:
    """Return the function's result; an `InputError` is added to the faults, with the block."""
    try:
        return function()
    except InputError as exc:
        message = str(exc)
        if not message.startswith(name):
            message = f"{name}: {message}"
        faults.append(message)
        return None


def _teacher_card(block: TeacherParams) -> ModelCard:
    from pu_kd_pipeline.models.factory import is_known_to_build, new_teacher, teacher_card

    card = teacher_card(block)
    if block.weights is None and is_known_to_build(card):
        return card
    from pu_kd_pipeline.learning.loop import seeded

    # Building draws random numbers; outside of this block, the generators stay as they are.
    with seeded(0):
        return new_teacher(block).card


def _check_student(block: DistillationParams, teacher: ModelCard) -> None:
    from pu_kd_pipeline.models.factory import is_known_to_build, student_card, untrained

    card = student_card(teacher, block.student_architecture, block.student_options, {})
    if is_known_to_build(card):
        return
    from pu_kd_pipeline.learning.loop import seeded

    with seeded(0):
        untrained(card)


def _has_workers(block: Any) -> bool:
    """Return whether a block is of a training that several workers share."""
    return hasattr(block, "training_workers") and block.training_workers.n > 1


def _check_device(compute: ComputeParams) -> None:
    from pu_kd_pipeline.devices import prepare_device

    prepare_device(compute)


def _check_workers(block: Any, engine: EngineParams | None) -> None:
    from pu_kd_pipeline.training.worker_group import check_device

    n = block.training_workers.n
    # Those of a Ray cluster have GPUs of their own.
    is_on_ray = engine is not None and engine.kind == "ray"
    check_device(block.compute, n, 0 if is_on_ray else n)


def _unusable_paths(block: DataIngestionParams, data_folder: Path | None) -> Iterator[str]:
    for part in ("labeled", "pool", "test", "teacher_training"):
        sources: tuple[ImageSource, ...] = getattr(block, part)
        for index, source in enumerate(sources):
            if source.path is None:
                continue
            fault = _fault_of_path(source.path, source)
            if fault is None and data_folder is not None:
                fault = _fault_of_place(source.path, source, data_folder)
            if fault is not None:
                yield f"{part}[{index}].path: {fault}"


def _fault_of_path(path: str, source: ImageSource) -> str | None:
    """Return why a source cannot be read from its path, or None; no image is opened."""
    from pu_kd_pipeline.images.sources.files import expanded_ranges, file_system, local_matches
    from pu_kd_pipeline.images.sources.registry import open_source

    about = SOURCE_TYPES[source.type]
    try:
        # Whether a remote file exists is not asked: that may take long, or need credentials.
        if is_url(path):
            file_system(path)
            return None
        matches = [str(resolved_path(path))]
        if not about.path_must_exist and not os.path.lexists(matches[0]):
            return None
        if about.path_kind == "pattern":
            first_pattern = expanded_ranges(matches[0])[0]
            matches = local_matches(first_pattern)
        if not matches:
            return f"no file matches {path} (edit parameters_data_ingestion.yml)"
        fault = _fault_of_file(matches[0], path, source)
        if fault is None and about.path_must_exist:
            # It looks for its files, and opens none but a list of them.
            open_source(source, seed=0)
        return fault
    except InputError as exc:
        return str(exc)
    except (FileNotFoundError, ValueError):  # a null character
        return f"there is no {path} (edit parameters_data_ingestion.yml)"
    except OSError as exc:  # no permission, a name that is too long, links in a circle, …
        return f"{path} cannot be read ({exc.strerror}): check that it may be read"


def _fault_of_place(path: str, source: ImageSource, data_folder: Path) -> str | None:
    """Return why a source mixes with what a run writes, or None.

    The user's images may be in the data folder, such as in its `01_raw`, where no stage writes.
    """
    from pu_kd_pipeline.images.sources.files import has_wildcard, literal_part

    if is_url(path):
        return None
    pattern = resolved_path(path)
    place = Path(os.path.realpath(literal_part(str(pattern))))
    outputs = Path(os.path.realpath(data_folder))
    fix = (
        "name another folder of outputs with `data` in conf/<environment>/globals.yml (for "
        "`kedro new-env`, choose another name), or move the images"
    )
    # Other types read only the files of one folder, or those that a list names.
    is_recursive = source.type == "folder" or (has_wildcard(path) and "**" in pattern.parts)
    if is_recursive and outputs.is_relative_to(place):
        return (
            f"{path} contains the folder {data_folder} of all outputs, so that the run would write "
            f"among these images: {fix}"
        )
    if place != outputs and place.is_relative_to(outputs):
        layer = place.relative_to(outputs).parts[0]
        if _LAYER.match(layer) and layer != _RAW_DATA:
            return f"{path} is in {layer} of the folder {data_folder} of all outputs: {fix}"
    return None


def _fault_of_file(file: str, path: str, source: ImageSource) -> str | None:
    """Return what is wrong with a file or folder that `path` stands for, or None.

    Raises:
        OSError: it is missing, or it may not be read.
    """
    kind = SOURCE_TYPES[source.type].path_kind
    mode = os.stat(file).st_mode
    if stat.S_ISDIR(mode) and kind == "file":
        return f"{path} is a folder, and a source of type {source.type!r} reads one file: name it"
    if stat.S_ISDIR(mode):
        with os.scandir(file) as entries:
            next(entries, None)
        return None
    if kind == "folder":
        return (
            f"{path} is a file, and a source of type {source.type!r} reads a folder: "
            "name its folder"
        )
    if not stat.S_ISREG(mode):
        return f"{path} is neither a file nor a folder"
    with open(file, "rb"):
        return None


def _check_test_labels(pipeline: Pipeline, ingestion: DataIngestionParams | None) -> None:
    """Check that the test images have labels where they are compared with them.

    Raises:
        InputError: they have none; found here, and not after hours of training.
    """
    if ingestion is None or ingestion.has_test_labels:
        return
    measuring = [node.name for node in pipeline.nodes if _WITH_LABELS.intersection(node.outputs)]
    if measuring:
        way_out = ""
        certifying = [node.name for node in pipeline.nodes if _CERTIFICATE in node.outputs]
        if certifying:
            way_out = f", or add --to-nodes={certifying[0]}, which needs none"
        raise InputError(
            f"data_ingestion.test: `{measuring[0]}` needs labels: set `labels: classes` on its "
            f"sources{way_out}"
        )


def _check_audit(
    pipeline: Pipeline, catalog: DataCatalog, training: PUTrainingParams | None
) -> None:
    """Check that there is an audit where its class prior is asked for.

    Raises:
        InputError: there is none; found here, and not after the features were extracted.
    """
    if training is None or training.class_prior != AUDIT or AUDIT_RESULT not in pipeline.inputs():
        return
    path = local_path(catalog, AUDIT_RESULT)
    if path is None or path.exists():
        return
    raise InputError(
        f"pu_training.class_prior: {AUDIT}: the pool was not audited, there is no {path}: run "
        "`kedro run --pipelines=data_ingestion,teacher,feature_extraction,pool_audit` with the "
        "options of this run, and answer the page that it writes"
    )


class PreflightHooks:
    """Tries what parameters name (files, networks, taps, devices) before the first node runs."""

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Check the blocks that the run reads, and test a teacher that comes with weights."""
        # A report on another machine needs no image, and no weights.
        shown = pipeline.only_nodes_with_tags(SHOWS_PARAMETERS)
        blocks = {}
        for name in sorted((pipeline - shown).inputs()):
            if name.startswith("params:"):
                blocks[name.removeprefix("params:")] = catalog.load(name)
        if any(_has_workers(block) for block in blocks.values()):
            blocks.setdefault("engine", engine_of(catalog))
        data_folder = None
        if RECORDS in catalog:
            records = local_path(catalog, RECORDS)
            data_folder = records.parent if records is not None else None
        _check_test_labels(pipeline, blocks.get("data_ingestion"))
        _check_audit(pipeline, catalog, blocks.get("pu_training"))
        check(blocks, data_folder)
        if run_params["runner"] != EXPLAINING_RUNNER:
            preflight_teacher(pipeline, catalog, blocks)
