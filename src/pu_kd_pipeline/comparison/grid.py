"""The grid of a comparison: which students there are, and the parameter blocks of each.

Nothing is computed here. A cell is a variant, an objective, a number of labeled images per class,
a number of updates and a seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.comparison import (
    METHODS,
    ComparisonParams,
    ComparisonVariant,
    Overrides,
)
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.overrides import with_overrides
from pu_kd_pipeline.params.pu_training import AUDIT, PUTrainingParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.validation import fault_messages
from pu_kd_pipeline.training.objectives.factory import OBJECTIVES, check_weighting_fits_rule

EXCLUSION_KEY = "exclude_test_duplicates"

# Keys of `distillation` that every student shares, or their accuracies could not be compared; only
# points of a sweep may have different `n_updates`.
SHARED_KEYS = ("seed", "objective", "n_updates", "batch_size")


@dataclass(frozen=True)
class Blocks:
    """The parameter blocks of a cell, or those of the run that the cells start from."""

    pu_training: PUTrainingParams
    subset_materialization: SubsetParams
    class_weighting: ClassWeightingParams
    distillation: DistillationParams
    relatedness: RelatednessParams

    def with_seed(self, seed: int) -> Blocks:
        """Return the blocks with the same seed in each."""
        seeded = {}
        for field in fields(self):
            block: BaseModel = getattr(self, field.name)
            seeded[field.name] = block.model_copy(update={"seed": seed})
        return Blocks(**seeded)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Cell:
    """One student of the comparison, with everything that decides its result.

    Attributes:
        labeled_per_class: None where no labeled image is drawn.
        like: the cell whose number of pool images is this one's budget.
    """

    variant: str
    method: str
    objective: str
    labeled_per_class: int | None
    seed: int
    blocks: Blocks
    is_reference: bool
    like: Cell | None = None

    def __str__(self) -> str:
        labeled = ""
        if self.labeled_per_class is not None:
            labeled = f", {self.labeled_per_class} per class"
        return f"{self.variant}, {self.objective}{labeled}, seed {self.seed}"

    @property
    def file_name(self) -> str:
        """The cell's name as a part of a file name."""
        return re.sub(r"[^\w.=]+", "-", str(self)).lower()

    @property
    def rule(self) -> str | None:
        """The selection rule; None where nothing is selected."""
        if not METHODS[self.method].selects:
            return None
        return self.blocks.subset_materialization.rule

    @property
    def needs_pu(self) -> bool:
        """Whether a PU classifier is trained for it."""
        if self.rule is None:
            return False
        return self.blocks.subset_materialization.reads_pu_score

    def identity(self) -> dict[str, Any]:
        """Return what decides the result, and nothing that does not, such as the device.

        Result files are named after it: a key that is added, removed or renamed makes every
        finished cell be computed again.
        """
        identity: dict[str, Any] = {
            "variant": self.variant,
            "method": self.method,
            "labeled_per_class": self.labeled_per_class,
            "seed": self.seed,
        }
        deciding_blocks = self._deciding_blocks()
        for name, block in deciding_blocks.items():
            left_out = _keys_without_effect(block)
            identity[name] = block.model_dump(mode="json", exclude=left_out)
        # Of the compute settings, precision alone changes results; `compute` itself is left out.
        for name, block in deciding_blocks.items():
            compute = getattr(block, "compute", None)
            if compute is not None:
                identity[f"precision of {name}"] = compute.precision
        identity["like"] = None
        if self.like is not None:
            identity["like"] = self.like.identity()
        return identity

    def _deciding_blocks(self) -> dict[str, BaseModel]:
        blocks: dict[str, BaseModel] = {"distillation": self.blocks.distillation}
        if self.needs_pu:
            blocks["pu_training"] = self.blocks.pu_training
        if self.rule is not None:
            blocks["subset_materialization"] = self.blocks.subset_materialization
        if METHODS[self.method].samples_by_relatedness:
            blocks["relatedness"] = self.blocks.relatedness
        if OBJECTIVES[self.objective].needs_class_weights:
            blocks["class_weighting"] = self.blocks.class_weighting
        return blocks


def _keys_without_effect(block: BaseModel) -> set[str]:
    """Return the keys of a block that do not decide a result."""
    if isinstance(block, SubsetParams):
        # The excluded images themselves are in the name, where there are any.
        return {EXCLUSION_KEY, *block.unread_option_blocks()}
    if isinstance(block, ClassWeightingParams):
        return block.unread_keys()
    if not isinstance(block, DistillationParams):
        return {"compute", "training_workers"}
    unread = block.unread_keys()
    return {"compute", "training_workers", *unread}


def make_cells(
    params: ComparisonParams, blocks: Blocks, key: str = "comparison.variants"
) -> list[Cell]:
    """Return the cells of the grid, seed by seed.

    So an unfinished comparison is whole for its first seeds.

    Args:
        params: the comparison.
        blocks: the run's own parameter blocks, which the variants override.
        key: of the variants, for messages.

    Raises:
        InputError: a variant sets what the blocks refuse; all faults together.
    """
    faults: list[str] = []
    variants = {}
    blocks_of = {}
    for name, variant in params.variants.items():
        if variant is not None:  # null removes a variant of conf/base
            variants[name] = variant
            blocks_of[name] = _blocks_by_objective(blocks, params, f"{key}.{name}", variant, faults)
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        section = key.partition(".")[0]
        raise InputError(f"The {section} cannot be made.\n{listed}")
    grid = _Grid(params, variants, blocks_of)
    cells: list[Cell] = []
    for seed in params.seeds:
        for place in grid.places():
            cell = grid.cell(place, seed)
            cells.append(cell)
    return cells


@dataclass(frozen=True)
class _Place:
    """Where a cell stands in the grid, for any seed."""

    variant: str
    objective: str
    labeled_per_class: int | None
    n_updates: int | None
    """None: that of the variant's own blocks."""


@dataclass(frozen=True)
class _Grid:
    """The variants of a comparison, each with its parameter blocks by objective."""

    params: ComparisonParams
    variants: Mapping[str, ComparisonVariant]
    blocks_of: Mapping[str, Mapping[str, Blocks]]

    def places(self) -> Iterator[_Place]:
        """Yield the places of the cells of one seed.

        All lengths of training follow each other for the same labeled images, because the scores
        of the pool are kept no longer than that.
        """
        all_lengths = self.params.n_updates or (None,)
        for position, n_per_class in enumerate(self.params.labeled_per_class):
            for n_updates in all_lengths:
                yield from self._variants_at(n_per_class, n_updates, is_first=position == 0)

    def _variants_at(
        self, n_per_class: int, n_updates: int | None, is_first: bool
    ) -> Iterator[_Place]:
        for name, variant in self.variants.items():
            counts = variant.labeled_per_class or self.params.labeled_per_class
            is_drawn = METHODS[variant.method].labeled_images == "drawn"
            if is_drawn and n_per_class in counts:
                yield from self._objectives_at(name, n_per_class, n_updates)
            elif not is_drawn and is_first:
                # The number of labeled images changes nothing: one cell for all of them.
                yield from self._objectives_at(name, None, n_updates)

    def _objectives_at(
        self, name: str, n_per_class: int | None, n_updates: int | None
    ) -> Iterator[_Place]:
        for objective in self.blocks_of[name]:
            yield _Place(name, objective, n_per_class, n_updates)

    def cell(self, place: _Place, seed: int) -> Cell:
        """Return the cell of a seed at a place."""
        variant = self.variants[place.variant]
        by_objective = self.blocks_of[place.variant]
        blocks = by_objective.get(place.objective)
        if blocks is None:
            # Only for `like`: that variant may not have the objective, and its selection is the
            # same for all of them.
            blocks = next(iter(by_objective.values()))
        if place.n_updates is not None:
            blocks = _with_length(blocks, place.n_updates)
        like = None
        if isinstance(variant.budget, str):
            other = replace(place, variant=variant.budget)
            like = self.cell(other, seed)
        return Cell(
            variant=place.variant,
            method=variant.method,
            objective=place.objective,
            labeled_per_class=place.labeled_per_class,
            seed=seed,
            blocks=blocks.with_seed(seed),
            is_reference=variant.is_reference,
            like=like,
        )


def _with_length(blocks: Blocks, n_updates: int) -> Blocks:
    """Return the blocks of a student with that many updates.

    They are equal to those of a run whose `distillation.n_updates` it is, so that a cell has the
    same name in both.
    """
    distillation = blocks.distillation.model_copy(update={"n_updates": n_updates})
    return replace(blocks, distillation=distillation)


def _blocks_by_objective(
    blocks: Blocks,
    params: ComparisonParams,
    key: str,
    variant: ComparisonVariant,
    faults: list[str],
) -> dict[str, Blocks]:
    """Return the blocks of a variant by objective; what is wrong with them joins the faults."""
    faults += _forbidden_overrides("comparison.every_variant", params.every_variant)
    faults += _forbidden_overrides(key, variant)
    names = [field.name for field in fields(Blocks)]
    result = {}
    for objective in _objectives_of(variant, params):
        implied = _implied_overrides(variant, objective)
        merged = {}
        for block in names:
            base: BaseModel = getattr(blocks, block)
            model = type(base)
            # The later layer wins.
            of_every_variant = getattr(params.every_variant, block)
            of_variant = getattr(variant, block)
            implied_here = implied.get(block, {})
            values = with_overrides(base.model_dump(), of_every_variant, of_variant, implied_here)
            try:
                merged[block] = model.model_validate(values)
            except ValidationError as error:
                section = key.partition(".")[0]
                where = f"the block `{section}`"
                faults += fault_messages(error, model, name=f"{key}.{block}", where=where)
        # A faulty block is missing; the faults are raised once all variants were looked at.
        if len(merged) == len(names):
            of_objective = Blocks(**merged)  # type: ignore[arg-type]
            faults += _faults_of_weighting(key, variant, objective, of_objective)
            result[objective] = of_objective
    return result


def _faults_of_weighting(
    key: str, variant: ComparisonVariant, objective: str, blocks: Blocks
) -> Iterator[str]:
    if not METHODS[variant.method].selects:
        return
    try:
        check_weighting_fits_rule(
            blocks.class_weighting, blocks.subset_materialization.rule, objective
        )
    except InputError as error:
        yield f"{key}: {error}"


def _objectives_of(variant: ComparisonVariant, params: ComparisonParams) -> Sequence[str]:
    """Return a variant's own objectives, or those that its method has by default."""
    if variant.objectives:
        return variant.objectives
    if METHODS[variant.method].selects:
        return params.objectives
    return ("kd",)


def _forbidden_overrides(where: str, overrides: Overrides) -> Iterator[str]:
    """Yield a fault for each key that is overridden although all students share it."""
    fixes = {"objective": "list `objectives`", "seed": "list `seeds`"}
    overridden = set(overrides.distillation)
    forbidden = overridden.intersection(SHARED_KEYS)
    # Points of a sweep stand on an axis, which may be the length of training.
    if isinstance(overrides, ComparisonVariant) and overrides.sweep is not None:
        forbidden.discard("n_updates")
    for name in sorted(forbidden):
        fix = fixes.get(name, f"set distillation.{name} instead")
        yield f"{where}.distillation.{name}: every student of a comparison has the same; {fix}"
    if overrides.pu_training.get("class_prior") == AUDIT:
        key = "pu_training.class_prior"
        fix = f"set {key} to {AUDIT} instead"
        yield f"{where}.{key}: the pool has one audit for all students; {fix}"
    if EXCLUSION_KEY in overrides.subset_materialization:
        key = f"subset_materialization.{EXCLUSION_KEY}"
        yield f"{where}.{key}: every student of a comparison has the same; set {key} instead"


def _implied_overrides(variant: ComparisonVariant, objective: str) -> dict[str, dict[str, Any]]:
    """Return what a variant's short keys, its method and the objective set in the blocks."""
    subset: dict[str, Any] = {"rule": variant.rule, "criterion": variant.criterion}
    subset["budget"] = variant.budget
    if isinstance(variant.budget, str):
        # The budget is known when the variant of that name has selected: any number passes the
        # checks until then.
        subset["budget"] = 1
    distillation: dict[str, Any] = {"objective": objective}
    pu_training = {"features": variant.features}
    return {
        "pu_training": _without_none(pu_training),
        "subset_materialization": _without_none(subset),
        "distillation": distillation,
    }


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
