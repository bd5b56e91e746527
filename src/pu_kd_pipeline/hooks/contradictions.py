"""What one parameter block asks for and another one, or the stage that reads it, makes impossible.

These are found before the first node runs; the stages themselves check them again, for uses without
Kedro.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.learning.selection_criteria import CRITERIA
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.comparison import ComparisonParams
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.distillation import OPTION_BLOCKS, DistillationParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.teacher import TeacherParams
from pu_kd_pipeline.params.yardstick import YardstickParams

# Stages whose student learns from all images of a store, so that no classes are weighted.
STAGES_WITHOUT_CLASS_WEIGHTS = ("unlabeled_distillation", "critic_distillation")
# Stages whose student learns from labeled images or from the pool, not from both.
STAGES_ON_ONE_STORE = ("unlabeled_distillation", "critic_distillation")
# Stages that train on images of the pool, which have no labels.
STAGES_ON_THE_POOL = ("distillation", "unlabeled_distillation")


def contradictions(blocks: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence on each contradiction.

    Args:
        blocks: block name -> typed block, of all blocks that a run reads.
    """
    subset: SubsetParams | None = blocks.get("subset_materialization")
    training: PUTrainingParams | None = blocks.get("pu_training")
    ingestion: DataIngestionParams | None = blocks.get("data_ingestion")
    if subset is not None:
        yield from _faults_of_selection(subset, training, ingestion)
    if ingestion is not None:
        yield from _missing_images(ingestion, blocks)
    for name, block in blocks.items():
        if isinstance(block, DistillationParams):
            yield from _faults_of_objective(name, block)
            yield from _faults_of_keep(name, block, blocks.get("yardstick"))
    yield from _faults_of_weighting(blocks)
    comparison: ComparisonParams | None = blocks.get("comparison")
    if comparison is not None:
        yield from _faults_of_comparison(comparison, blocks)


def _faults_of_selection(
    subset: SubsetParams,
    training: PUTrainingParams | None,
    ingestion: DataIngestionParams | None,
) -> Iterator[str]:
    rule = RULES[subset.rule]
    needs_held_out = rule.uses_criterion and CRITERIA[subset.criterion].needs_held_out_ranks
    if needs_held_out and training and not training.held_out_folds:
        yield (
            f"subset_materialization.criterion: {subset.criterion!r} is read off held-out "
            "positives, and pu_training.held_out_folds is 0: set it to 2 or more, "
            "or choose another criterion"
        )
    pool_labels = set()
    if ingestion:
        pool_labels = {source.labels for source in ingestion.pool}
    if rule.uses_truth and "ignore" in pool_labels:
        yield (
            f"subset_materialization.rule: {subset.rule!r} needs the truth of every pool image: "
            "set `labels: truth` on each source of data_ingestion.pool, or choose another rule"
        )


def _missing_images(ingestion: DataIngestionParams, blocks: Mapping[str, Any]) -> Iterator[str]:
    if "pu_training" in blocks and not ingestion.labeled:
        yield (
            "data_ingestion.labeled: there is no source, and a PU classifier learns from labeled "
            "images: add one, or run `kedro run --pipeline=full_unlabeled`, which needs none"
        )
    teacher: TeacherParams | None = blocks.get("teacher")
    is_trained = "teacher_training" in blocks and teacher is not None and teacher.weights is None
    if is_trained and not ingestion.teacher_training:
        yield (
            "teacher.weights: there are neither weights nor training images: set it, "
            "or give data_ingestion.teacher_training a source"
        )


def _faults_of_objective(name: str, block: DistillationParams) -> Iterator[str]:
    if block.labeled_share is not None and name in STAGES_ON_ONE_STORE:
        yield (
            f"{name}.labeled_share is {block.labeled_share}, and this stage learns from images of "
            "one store, not from labeled images and a pool: set it to null"
        )
    option_blocks = OPTION_BLOCKS[block.objective]
    if name in STAGES_WITHOUT_CLASS_WEIGHTS:
        # torch is imported only where these stages are part of the run.
        from pu_kd_pipeline.training.objectives.factory import check_without_class_weights

        try:
            check_without_class_weights(block, name)
        except InputError as error:
            yield str(error)
            return
    if name == "unlabeled_distillation" and block.final_phase.share > 0:
        yield (
            f"unlabeled_distillation.final_phase.share is {block.final_phase.share}, and this "
            "stage has no labeled images to end on: set it to 0"
        )
    if name == "critic_distillation" and "critic" not in option_blocks:
        yield (
            f"critic_distillation.objective: {block.objective!r} has no critic, and this stage "
            "compares students with and without one: set it to pu_critic, or distill with the "
            "stage `distillation`"
        )
    if name in STAGES_ON_THE_POOL and block.attention is not None and "attention" in option_blocks:
        label_weight = block.attention.label_weight
        if label_weight > 0:
            yield (
                f"{name}.attention.label_weight is {label_weight}, and images of the pool have no "
                "labels: set it to 0"
            )


def _faults_of_keep(
    name: str, block: DistillationParams, yardstick: YardstickParams | None
) -> Iterator[str]:
    if block.keep == "best" and yardstick is not None and yardstick.n_images == 0:
        yield (
            f"{name}.keep: 'best' is chosen on the yardstick, and yardstick.n_images is 0: "
            "raise it, or set keep to last"
        )


def _faults_of_weighting(blocks: Mapping[str, Any]) -> Iterator[str]:
    weighting: ClassWeightingParams | None = blocks.get("class_weighting")
    subset: SubsetParams | None = blocks.get("subset_materialization")
    student: DistillationParams | None = blocks.get("distillation")
    # The variants of a comparison have rules and modes of their own.
    if "comparison" in blocks or weighting is None or subset is None or student is None:
        return
    if weighting.mode != "balanced":
        return
    # torch is imported only where there is something to check.
    from pu_kd_pipeline.training.objectives.factory import check_weighting_fits_rule

    try:
        check_weighting_fits_rule(weighting, subset.rule, student.objective)
    except InputError as error:
        yield str(error)


def _faults_of_comparison(params: ComparisonParams, blocks: Mapping[str, Any]) -> Iterator[str]:
    from pu_kd_pipeline.comparison.grid import Blocks, make_cells

    names = (
        "pu_training",
        "subset_materialization",
        "class_weighting",
        "distillation",
        "relatedness",
    )
    # A part of a pipeline may read the block of the comparison alone.
    if not all(name in blocks for name in names):
        return
    try:
        make_cells(params, Blocks(*(blocks[name] for name in names)))
    except InputError as error:
        yield str(error)
