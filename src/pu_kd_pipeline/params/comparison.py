"""The block `comparison`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.params.base import SEEDS, Block, OpenShare, Share
from pu_kd_pipeline.params.names import one_of
from pu_kd_pipeline.params.overrides import with_overrides


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the students of a comparison are made: every fact about a method that is read elsewhere.

    What its student starts from, where that is not a new network, is in `comparison.starts`.
    """

    description: str
    labeled_images: Literal["drawn", "original", "none"]
    """Drawn per class by the seed, the teacher's own training images, or none."""
    selects: bool = False
    """Whether a selection rule keeps pool images for it."""
    samples_by_relatedness: bool = False
    """Whether it learns from the whole pool, drawn by relatedness."""
    is_reference: bool = False
    """Whether it uses images that its users do not have."""
    has_own_start: bool = False
    """Whether its student starts from an entry of `comparison.starts`, not from a new network."""
    is_kd_only: bool = False
    """Whether it is defined with the objective `kd` alone."""
    uses_hint_share: bool = False
    """Whether `ComparisonParams.hint_share` changes its result."""


METHODS: dict[str, Method] = {
    "selection": Method(
        description="distill on the labeled images and the pool images that a rule keeps",
        labeled_images="drawn",
        selects=True,
    ),
    "original": Method(
        description="distill on the teacher's own training images",
        labeled_images="original",
        is_reference=True,
    ),
    "preferential": Method(
        description="distill on the whole pool and no original image, drawn by relatedness (S3)",
        labeled_images="none",
        samples_by_relatedness=True,
    ),
    "labeled_only": Method(
        description="distill on the labeled images alone",
        labeled_images="drawn",
    ),
    "fitnet": Method(
        description="match a hidden layer on the labeled images alone, then distill "
        "(Romero et al. 2015)",
        labeled_images="drawn",
        has_own_start=True,
        is_kd_only=True,
        uses_hint_share=True,
    ),
    "fskd": Method(
        description="start from the pruned and aligned teacher, labeled images alone "
        "(Li et al. 2018)",
        labeled_images="drawn",
        has_own_start=True,
        is_kd_only=True,
    ),
}


DIFFERS = "keys of that block that differ"


class Overrides(Block):
    """What differs from the run's own blocks; nested keys override theirs one by one."""

    pu_training: dict[str, Any] = Field(default_factory=dict, description=DIFFERS)
    subset_materialization: dict[str, Any] = Field(default_factory=dict, description=DIFFERS)
    class_weighting: dict[str, Any] = Field(default_factory=dict, description=DIFFERS)
    distillation: dict[str, Any] = Field(default_factory=dict, description=DIFFERS)
    relatedness: dict[str, Any] = Field(default_factory=dict, description=DIFFERS)


class SweepPoint(Block):
    """Where a variant stands on one of the comparison's sweeps."""

    name: str = Field(description="a key of comparison.sweeps")
    line: str = Field(description="the line that the variant is a point of")
    at: float = Field(description="its place on the axis")


# Keys of a variant that choose images: only a method that selects reads them.
_SELECTION_KEYS = ("rule", "criterion", "budget", "features")


class ComparisonVariant(Overrides):
    """One row of the comparison, or one point of a sweep: how a student is made."""

    method: Annotated[str, one_of(METHODS)] = Field(
        "selection",
        description="; ".join(f"{name}: {method.description}" for name, method in METHODS.items()),
    )
    rule: str | None = Field(
        None, description="short for subset_materialization.rule; needed by `selection`"
    )
    criterion: str | None = Field(None, description="short for subset_materialization.criterion")
    budget: int | str | None = Field(
        None,
        description="most pool images; a key of comparison.budgets; the name of another variant: "
        "as many as that one keeps; null: the block's",
    )
    features: str | None = Field(None, description="short for pu_training.features")
    labeled_per_class: tuple[int, ...] | None = Field(
        None, description="some of the comparison's; null: all of them"
    )
    objectives: tuple[str, ...] | None = Field(
        None,
        description="null: those of the comparison for `selection`, "
        "plain `kd` for the other methods",
    )
    sweep: SweepPoint | None = Field(
        None,
        description="shown as a point of that sweep, not as a row; "
        "for one number of labeled images",
    )

    @property
    def is_reference(self) -> bool:
        """Whether it uses what its users do not have: the original images, or the pool's truth."""
        if METHODS[self.method].is_reference:
            return True
        # An unknown rule is reported later, with its key, where the blocks are merged.
        rule = RULES.get(self.rule) if self.rule else None
        return rule is not None and rule.uses_truth

    @model_validator(mode="after")
    def _rule_belongs_to_selection(self) -> ComparisonVariant:
        method = METHODS[self.method]
        given = [name for name in _SELECTION_KEYS if getattr(self, name) is not None]
        if method.selects and self.rule is None:
            raise ValueError(f"method {self.method!r} needs a rule")
        if not method.selects and given:
            raise ValueError(f"method {self.method!r} selects nothing: remove {', '.join(given)}")
        if method.is_kd_only and self.objectives not in (None, ("kd",)):
            raise ValueError(f"method {self.method!r} is defined with the objective kd alone")
        return self


class CurvesParams(Block):
    """Accuracy against updates, as panels of the comparison's plot."""

    n_images: int = Field(
        gt=0,
        description="of the teacher's training images, which no student sees: "
        "their accuracy makes the curves",
    )
    panels: dict[str, tuple[str, ...]] = Field(
        description="title -> the variants whose curves it has; one that is null has none"
    )


class GapParams(Block):
    """The variants between which the others are measured, see `comparison.gap`."""

    random: str | tuple[str, ...] = Field(
        description="variants with the rule `random`: a row is compared with the one that has the "
        "nearest number of pool images"
    )
    whole_pool: str | None = Field(
        None, description="variant with the rule `all`, the second control; null: none"
    )
    goal: str = Field(description="a reference, such as the oracle or the original images")
    least_headroom: Share = Field(
        0.01,
        description="accuracy of the goal minus that of random images: where the 95 % "
        "interval is below it, the page says that little can be gained",
    )

    @property
    def random_controls(self) -> tuple[str, ...]:
        """The names of the variants of random images."""
        if isinstance(self.random, str):
            return (self.random,)
        return self.random


class ComparisonParams(Block):
    """The block `comparison`: a grid of variants, objectives, labeled images and seeds."""

    title: str = Field(description="of the page")
    labeled_per_class: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=1,
        description="labeled images of each class, drawn by the cell's seed from the labeled store",
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=SEEDS)], ...] = Field(
        min_length=1,
        description="of the labeled images, PU training, draws and student; "
        "the teacher is the same",
    )
    objectives: tuple[str, ...] = Field(min_length=1, description="of distillation")
    n_updates: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        min_length=1,
        description="lengths of training: every variant is trained with each; "
        "null: distillation.n_updates",
    )
    hint_share: OpenShare = Field(
        description="fitnet: share of the updates that go to the hidden layer"
    )
    every_variant: Overrides = Field(
        description="what differs from the run's own blocks in all variants"
    )
    variants: dict[str, ComparisonVariant | None] = Field(
        description="name -> variant, in the order of the table; "
        "null leaves out a variant of conf/base"
    )
    variant_sets: dict[str, dict[str, dict[str, Any]]] = Field(
        default_factory=dict, description="name -> variants that several environments compare"
    )
    variant_set: str | None = Field(
        None,
        description="a key of variant_sets: its variants join `variants`, which override them key "
        "by key; null: none",
    )
    budgets: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="name -> number of pool images, for budgets of variants"
    )
    sweeps: dict[str, str] = Field(
        description="name -> label of its axis: lines of variants that differ in one number, "
        "with a table and plot each"
    )
    curves: CurvesParams | None = Field(
        None, description="null: students are measured in the end alone"
    )
    gap: GapParams | None = Field(
        None, description="controls and goal: how much of what can be gained each variant gains"
    )

    @model_validator(mode="before")
    @classmethod
    def _add_set_and_budgets(cls, values: Any) -> Any:
        """Add the variants of the set, and put numbers in place of the names of budgets."""
        if not isinstance(values, Mapping):
            return values
        variants = values.get("variants")
        if not isinstance(variants, Mapping):
            return values  # reported with its key, as what it is
        of_set = _variants_of_set(values)
        merged = with_overrides(of_set, variants)
        budgets = _mapping(values, "budgets")
        taken = sorted(set(budgets) & set(merged))
        if taken:
            raise ValueError(f"budgets: {', '.join(taken)} are names of variants, too: rename them")
        resolved = {name: _with_number(variant, budgets) for name, variant in merged.items()}
        return {**values, "variants": resolved}

    @model_validator(mode="after")
    def _grid_is_consistent(self) -> ComparisonParams:
        for name in ("labeled_per_class", "seeds", "objectives", "n_updates"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must not repeat a value, got {list(values)}")
        variants = {name: variant for name, variant in self.variants.items() if variant is not None}
        if not variants:
            raise ValueError("variants must name at least one")
        self._check_panels()
        self._check_gap(variants)
        for name, variant in variants.items():
            self._check_labeled_images(name, variant)
            self._check_budget(name, variant, variants)
        return self

    def _check_panels(self) -> None:
        if self.curves is None:
            return
        for title, names in self.curves.panels.items():
            # A variant that is null may be named: an environment removes it from the panels too.
            unknown = sorted(set(names) - set(self.variants))
            if unknown:
                raise ValueError(
                    f"curves.panels: {title!r} names {unknown}; "
                    f"variants are {', '.join(self.variants)}"
                )

    def _check_gap(self, variants: dict[str, ComparisonVariant]) -> None:
        if self.gap is None:
            return
        names = self.gap.random_controls
        if not names or len(set(names)) < len(names):
            raise ValueError(f"gap.random must name each variant once, got {list(names)}")
        for name in names:
            _check_role("gap.random", name, variants, rule="random")
        if self.gap.whole_pool is not None:
            _check_role("gap.whole_pool", self.gap.whole_pool, variants, rule="all")
        goal = _check_role("gap.goal", self.gap.goal, variants)
        if not goal.is_reference:
            raise ValueError(
                f"gap.goal: {self.gap.goal!r} is no reference: name a variant with the rule "
                "`oracle` or the method `original`"
            )

    def _check_labeled_images(self, name: str, variant: ComparisonVariant) -> None:
        counts = variant.labeled_per_class or self.labeled_per_class
        outside = sorted(set(counts) - set(self.labeled_per_class))
        if outside:
            raise ValueError(f"{name}: labeled_per_class {outside} is not among the comparison's")
        if variant.sweep is None:
            return
        if variant.sweep.name not in self.sweeps:
            raise ValueError(
                f"{name}: sweep {variant.sweep.name!r} is not a key of comparison.sweeps"
            )
        if len(counts) != 1:
            raise ValueError(
                f"{name}: a point of a sweep has one number of labeled images: "
                "set labeled_per_class"
            )
        if self.n_updates is not None and "n_updates" in variant.distillation:
            raise ValueError(
                f"{name}: a point of a sweep cannot have its own distillation.n_updates where "
                "comparison.n_updates lists lengths for all variants: remove one of the two"
            )

    def _check_budget(
        self, name: str, variant: ComparisonVariant, variants: dict[str, ComparisonVariant]
    ) -> None:
        if not isinstance(variant.budget, str):
            return
        other = variants.get(variant.budget)
        # A chain of names is refused: the other variant has a number of images by itself.
        has_own_size = (
            other is not None
            and other is not variant
            and METHODS[other.method].selects
            and not isinstance(other.budget, str)
        )
        if not has_own_size:
            raise ValueError(
                f"{name}: budget {variant.budget!r} is not the name of a variant that selects by "
                "a budget or criterion of its own, nor a key of comparison.budgets; variants are "
                f"{', '.join(variants)}"
            )


def _check_role(
    key: str, name: str, variants: dict[str, ComparisonVariant], rule: str | None = None
) -> ComparisonVariant:
    """Return the variant that a key of `gap` names, after checking that it may stand there."""
    variant = variants.get(name)
    if variant is None:
        raise ValueError(f"{key}: there is no variant {name!r}; variants are {', '.join(variants)}")
    if variant.sweep is not None:
        raise ValueError(f"{key}: {name!r} is a point of a sweep: name a row of the table")
    if rule is not None and variant.rule != rule:
        raise ValueError(f"{key}: {name!r} needs the rule {rule!r}, got {variant.rule!r}")
    return variant


def _variants_of_set(values: Mapping[str, Any]) -> Mapping[str, Any]:
    name = values.get("variant_set")
    if not isinstance(name, str):
        return {}
    sets = _mapping(values, "variant_sets")
    if name not in sets:
        raise ValueError(
            f"variant_set: there is no set {name!r}; variant_sets are {', '.join(sets) or 'empty'}"
        )
    return _mapping(sets, name)


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a value, or nothing in place of what is no mapping: its field's type reports that."""
    value = values.get(name)
    if isinstance(value, Mapping):
        return value
    return {}


def _with_number(variant: Any, budgets: Mapping[str, Any]) -> Any:
    """Return a variant whose budget is a number, if it was the name of one."""
    if not isinstance(variant, Mapping):
        return variant
    budget = variant.get("budget")
    if isinstance(budget, str) and budget in budgets:
        return {**variant, "budget": budgets[budget]}
    return variant
