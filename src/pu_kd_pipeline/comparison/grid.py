"""The grid of a comparison: which students there are, and the parameter blocks that each is made by.

Nothing is computed here. A cell is a variant, an objective, a number of labeled images per class and a seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pydantic import BaseModel, ValidationError

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.comparison import METHODS, ComparisonParams, ComparisonVariant
from pu_kd_pipeline.params.distillation import OBJECTIVE_BLOCKS, DistillationParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.validation import sentences

EXCLUDES = "exclude_test_duplicates"
SAME_FOR_ALL = (
    "seed",
    "objective",
    "n_updates",
    "batch_size",
)  # of distillation: what makes students comparable


@dataclass(frozen=True)
class Blocks:
    """The parameter blocks of a cell, or those of the run that the cells start from."""

    pu_training: PUTrainingParams
    subset_materialization: SubsetParams
    class_weighting: ClassWeightingParams
    distillation: DistillationParams
    relatedness: RelatednessParams

    def with_seed(self, seed: int) -> Blocks:
        """Return the blocks with one seed for all."""
        return Blocks(
            *(getattr(self, each.name).model_copy(update={"seed": seed}) for each in fields(self))
        )


@dataclass(frozen=True)
class Cell:
    """One student of the comparison, with everything that decides how it turns out.

    Attributes:
        labeled_per_class: None where no labeled image is used.
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
        labeled = "" if self.labeled_per_class is None else f", {self.labeled_per_class} per class"
        return f"{self.variant}, {self.objective}{labeled}, seed {self.seed}"

    @property
    def file_name(self) -> str:
        """The cell's name as a part of a file name."""
        return re.sub(r"[^\w.=]+", "-", str(self)).lower()

    @property
    def rule(self) -> str | None:
        """The selection rule; None where nothing is selected."""
        selects = METHODS[self.method].selects
        return self.blocks.subset_materialization.rule if selects else None

    @property
    def needs_pu(self) -> bool:
        """Whether a PU classifier is trained for it."""
        return self.rule is not None and RULES[self.rule].reads_pu_score

    def identity(self) -> dict[str, Any]:
        """Return what decides the result, and nothing that does not, such as the device."""
        blocks: dict[str, BaseModel] = {"distillation": self.blocks.distillation}
        if self.needs_pu:
            blocks["pu_training"] = self.blocks.pu_training
        if self.rule is not None:
            blocks["subset_materialization"] = self.blocks.subset_materialization
        if METHODS[self.method].samples_by_relatedness:
            blocks["relatedness"] = self.blocks.relatedness
        if self.objective == "robust_kd":
            blocks["class_weighting"] = self.blocks.class_weighting
        return {
            **{
                name: getattr(self, name)
                for name in ("variant", "method", "labeled_per_class", "seed")
            },
            **{
                name: block.model_dump(mode="json", exclude=_undecisive(block))
                for name, block in blocks.items()
            },
            "precision": self.blocks.distillation.compute.precision,
            "like": self.like.identity() if self.like else None,
        }


def _undecisive(block: BaseModel) -> set[str]:
    """Return the keys of a block that do not decide a result."""
    if isinstance(block, SubsetParams):
        return {EXCLUDES}  # what it excludes decides, if there is anything
    if not isinstance(block, DistillationParams):
        return {"compute"}
    of_objectives = {name for names in OBJECTIVE_BLOCKS.values() for name in names}
    return {"compute", *of_objectives.difference(OBJECTIVE_BLOCKS[block.objective])}


def cells_of(params: ComparisonParams, blocks: Blocks) -> list[Cell]:
    """Return the cells of the grid: seed by seed, so that an unfinished comparison is whole for its first seeds.

    Raises:
        InputError: a variant asks for what the blocks refuse; all faults together.
    """
    faults: list[str] = []
    variants = {name: variant for name, variant in params.variants.items() if variant is not None}
    resolved = {
        name: _resolved(blocks, params, name, variant, faults) for name, variant in variants.items()
    }
    if faults:
        raise InputError(
            "The comparison cannot be made.\n" + "\n".join(f"  - {fault}" for fault in faults)
        )

    def cell(name: str, objective: str, n_per_class: int | None, seed: int) -> Cell:
        variant, of_objectives = variants[name], resolved[name]
        made_by = of_objectives.get(objective) or next(iter(of_objectives.values()))
        like = (
            cell(variant.budget, objective, n_per_class, seed)
            if isinstance(variant.budget, str)
            else None
        )
        seeded = made_by.with_seed(seed)
        return Cell(
            name, variant.method, objective, n_per_class, seed, seeded, variant.is_reference, like
        )

    return [
        cell(*place, seed) for seed in params.seeds for place in _places(params, variants, resolved)
    ]


def _places(
    params: ComparisonParams,
    variants: Mapping[str, ComparisonVariant],
    resolved: Mapping[str, Mapping[str, Blocks]],
) -> Iterator[tuple[str, str, int | None]]:
    """Yield variant, objective and labeled images per class of the cells of one seed."""
    for position, n_per_class in enumerate(params.labeled_per_class):
        for name, variant in variants.items():
            if METHODS[variant.method].labeled_images != "drawn":
                # the number of labeled images changes nothing: one cell instead of one per number
                if position == 0:
                    yield from ((name, objective, None) for objective in resolved[name])
                continue
            if n_per_class in (variant.labeled_per_class or params.labeled_per_class):
                yield from ((name, objective, n_per_class) for objective in resolved[name])


def _resolved(
    blocks: Blocks,
    params: ComparisonParams,
    name: str,
    variant: ComparisonVariant,
    faults: list[str],
) -> dict[str, Blocks]:
    """Return the blocks of a variant for each of its objectives; what is wrong with them joins the faults."""
    key = f"comparison.variants.{name}"
    for where, overrides in (("comparison.every_variant", params.every_variant), (key, variant)):
        for fixed in sorted(set(SAME_FOR_ALL) & set(overrides.distillation)):
            mend = (
                "list `objectives`"
                if fixed == "objective"
                else "list `seeds`"
                if fixed == "seed"
                else None
            )
            faults.append(
                f"{where}.distillation.{fixed}: every student of a comparison has the same; "
                f"{mend or f'set distillation.{fixed} instead'}"
            )
        if EXCLUDES in overrides.subset_materialization:
            faults.append(
                f"{where}.subset_materialization.{EXCLUDES}: every student of a comparison has the same; "
                f"set subset_materialization.{EXCLUDES} instead"
            )
    result = {}
    for objective in variant.objectives or (
        params.objectives if METHODS[variant.method].selects else ("kd",)
    ):
        made, laid_over = {}, _laid_over_by(variant, objective)
        for block in (each.name for each in fields(Blocks)):
            base: BaseModel = getattr(blocks, block)
            layers = [
                getattr(params.every_variant, block),
                getattr(variant, block),
                laid_over.get(block, {}),
            ]
            try:
                made[block] = type(base).model_validate(
                    laid_over_each_other(base.model_dump(), *layers)
                )
            except ValidationError as error:
                faults += sentences(
                    error, type(base), name=f"{key}.{block}", where="the block `comparison`"
                )
        if len(made) == len(fields(Blocks)):
            result[objective] = Blocks(**made)  # type: ignore[arg-type]
    return result


def _laid_over_by(variant: ComparisonVariant, objective: str) -> dict[str, dict[str, Any]]:
    """Return what a variant's short keys, its method and the objective mean for the blocks."""
    # the budget of a variant that is like another one is known when that one has selected: any passes the checks
    budget = 1 if isinstance(variant.budget, str) else variant.budget
    subset = {"rule": variant.rule, "criterion": variant.criterion, "budget": budget}
    distillation: dict[str, Any] = {"objective": objective}
    if not METHODS[variant.method].has_held_out_images:
        distillation |= {"held_out_share": 0.0, "keep": "last"}  # too few images to keep any out
    return {
        "pu_training": {"features": variant.features} if variant.features is not None else {},
        "subset_materialization": {
            name: value for name, value in subset.items() if value is not None
        },
        "distillation": distillation,
    }


def laid_over_each_other(base: Mapping[str, Any], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping with the keys of each layer laid over it, nested mappings key by key."""
    result = dict(base)
    for layer in layers:
        for key, value in layer.items():
            is_nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = laid_over_each_other(result[key], value) if is_nested else value
    return result
