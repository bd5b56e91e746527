"""Checks that need more than a parameter's type, made before the first node runs: files, networks, taps, devices.

All faults are reported together. Networks are built to find out, except where that can find nothing: torch takes
seconds to import, and is left to the first node that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.learning.selection_criteria import CRITERIA
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.data_ingestion import SOURCE_TYPES, DataIngestionParams, ImageSource
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.teacher import TeacherParams

if TYPE_CHECKING:
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline

    from pu_kd_pipeline.models.cards import ModelCard


# `devices.prepare_device` never refuses these.
DEVICES_ANYWHERE = frozenset({"auto", "cpu"})


def check(blocks: Mapping[str, Any]) -> None:
    """Check the typed parameter blocks that a run reads.

    Args:
        blocks: block name -> typed block; blocks of other types are passed over.

    Raises:
        InputError: names every fault with its block.
    """
    faults: list[str] = []
    teacher: ModelCard | None = None
    for name, block in blocks.items():
        if isinstance(block, TeacherParams):
            teacher = _try(faults, name, partial(_teacher, block))
        if isinstance(block, DataIngestionParams):
            faults.extend(f"{name}.{fault}" for fault in _missing_paths(block))
    devices = {
        block.compute.device: block.compute
        for block in blocks.values()
        if hasattr(block, "compute")
    }
    for name, compute in devices.items():
        if name not in DEVICES_ANYWHERE:
            _try(faults, "compute", partial(_device, compute))
    for name, block in blocks.items():
        if isinstance(block, DistillationParams) and teacher is not None:
            _try(faults, name, partial(_student, block, teacher))
    faults.extend(_contradictions(blocks))
    if faults:
        raise InputError(
            "\n".join(faults)
            if len(faults) == 1
            else f"{len(faults)} faults:\n- " + "\n- ".join(faults)
        )


def _try(faults: list[str], name: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except InputError as exc:
        message = str(exc)
        faults.append(message if message.startswith(f"{name}") else f"{name}: {message}")
        return None


def _teacher(block: TeacherParams) -> ModelCard:
    from pu_kd_pipeline.models.factory import is_sure_to_build, new_teacher, teacher_card

    card = teacher_card(block)
    if block.weights is None and is_sure_to_build(card):
        return card
    from pu_kd_pipeline.learning.loop import seeded

    with seeded(0):
        return new_teacher(block).card


def _student(block: DistillationParams, teacher: ModelCard) -> None:
    from pu_kd_pipeline.models.factory import is_sure_to_build, student_card, untrained

    card = student_card(teacher, block.student_architecture, block.student_options, {})
    if is_sure_to_build(card):
        return
    from pu_kd_pipeline.learning.loop import seeded

    with seeded(0):
        untrained(card)


def _device(compute: ComputeParams) -> None:
    from pu_kd_pipeline.devices import prepare_device

    prepare_device(compute)


def _contradictions(blocks: Mapping[str, Any]) -> Iterator[str]:
    """Yield what one block asks for and another one denies."""
    of_type = {type(block): block for block in blocks.values()}
    subset: SubsetParams | None = of_type.get(SubsetParams)
    training: PUTrainingParams | None = of_type.get(PUTrainingParams)
    ingestion: DataIngestionParams | None = of_type.get(DataIngestionParams)
    if (
        subset
        and training
        and RULES[subset.rule].uses_criterion
        and CRITERIA[subset.criterion].needs_held_out_ranks
        and not training.held_out_folds
    ):
        yield (
            f"subset_materialization.criterion: {subset.criterion!r} is read off held-out positives, and "
            "pu_training.held_out_folds is 0: set it to 2 or more, or choose another criterion"
        )
    if (
        subset
        and ingestion
        and RULES[subset.rule].uses_truth
        and any(source.labels == "ignore" for source in ingestion.pool)
    ):
        yield (
            f"subset_materialization.rule: {subset.rule!r} needs the truth of every pool image: set `labels: truth` on each "
            "source of data_ingestion.pool, or choose another rule"
        )


def _missing_paths(block: DataIngestionParams) -> Iterator[str]:
    from pu_kd_pipeline.images.sources.files import file_system

    for part in ("labeled", "pool", "test", "teacher_training"):
        sources: tuple[ImageSource, ...] = getattr(block, part)
        for index, source in enumerate(sources):
            if source.path is None or not SOURCE_TYPES[source.type].path_must_exist:
                continue
            where = f"{part}[{index}].path"
            if "://" in source.path:
                try:
                    file_system(source.path)
                except InputError as exc:
                    yield f"{where}: {exc}"
            elif not set(source.path) & set("*?[") and not _is_there(source.path):
                yield f"{where}: there is no {source.path} (edit parameters_data_ingestion.yml)"


def _is_there(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # a name that is too long, no such user, …
        return False


class PreflightHooks:
    """Tries what parameters name (files, networks, taps, devices) before the first node runs."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Check the blocks that the run reads."""
        from pu_kd_pipeline.hooks.preflight import check

        names = sorted(name for name in pipeline.inputs() if name.startswith("params:"))
        check({name.removeprefix("params:"): catalog.load(name) for name in names})
