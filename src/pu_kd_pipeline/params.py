"""Typed parameter blocks: one block a room, checked by Kedro before any node runs.

Every number lives in `conf/<environment>/parameters_<stage>.yml`; the blocks state type, range and meaning.
An unknown key is refused by name. Nothing here knows Kedro, and nothing imports torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pu_kd_pipeline.learning.selection import needs_budget

SEEDS = 2**32  # as many as every generator takes
_BITS = 63  # of a whole number, beside its sign, that torch and NumPy can count with
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


# An environment's keys are laid over those of conf/base: with null it takes one away.
Options = Annotated[dict[str, Any], AfterValidator(_given)]


class Block(BaseModel):
    """A parameter block: unknown keys are errors, values do not change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse numbers that nothing can count with, and true and false where only numbers are meant.

        YAML reads `yes`, `no`, `on` and `off` as true and false, too.
        """
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        if any(isinstance(each, bool) for each in values) and not _takes_truth_values(cls, str(info.field_name)):
            raise ValueError("input should not be true or false (nor yes, no, on or off)")
        if any(isinstance(each, int) and each.bit_length() > _BITS for each in values):
            raise ValueError("input should be a number of at most 64 bits")
        return value


def _takes_truth_values(block: type[Block], name: str) -> bool:
    def inside(annotation: Any) -> bool:
        is_block = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        return is_block or annotation in (bool, Any) or any(inside(each) for each in get_args(annotation))

    return inside(block.model_fields[name].annotation)


# --- data_ingestion ---------------------------------------------------------------------------------------------------


class ImageSource(Block):
    """One place that images come from.

    `type` picks the reader: `torchvision` (a data set by class name), `folder` (class sub-folders, or flat and
    unlabeled), `parquet` (image bytes in a column; local or any fsspec URL) or `demo` (the embedded digits).
    """

    type: Literal["torchvision", "folder", "parquet", "demo"]
    name: str | None = Field(None, description="prefix of the ids and value of the index column `source`")
    path: str | None = Field(
        None, description="folder, Parquet file or glob, or torchvision's root; fsspec URLs allowed"
    )
    dataset: str | None = Field(None, description="torchvision: class in torchvision.datasets, such as MNIST")
    options: dict[str, Any] = Field(default_factory=dict, description="torchvision: keyword arguments of that class")
    download: bool = Field(False, description="torchvision: download the files when they are missing")
    part: Literal["teacher_training", "labeled", "pool", "test"] | None = Field(None, description="demo: which part")
    labels: Literal["classes", "truth", "ignore"] = Field(
        "ignore",
        description="classes: every image has a label, which is a class of the teacher; truth: a label that is a class "
        "of the teacher marks a relevant image, any other an irrelevant one (for evaluation only); ignore: no labels",
    )
    label_map: dict[str, int] | None = Field(
        None, description="source label or class name -> class of the teacher; labels that are not listed are no class"
    )
    exclude_labels: tuple[int | str, ...] = Field((), description="leave out images with these labels or class names")
    per_class: int | None = Field(None, ge=1, description="keep this many images of each class, drawn by `seed`")
    limit: int | None = Field(None, ge=1, description="keep at most this many images, drawn by `seed`")
    share: tuple[Share, Share] = Field(
        (0.0, 1.0), description="keep ids whose hash falls in [from, to): disjoint shares of one source never overlap"
    )

    @model_validator(mode="after")
    def _type_has_what_it_needs(self) -> ImageSource:
        needed = {"torchvision": "dataset", "folder": "path", "parquet": "path", "demo": "part"}[self.type]
        if getattr(self, needed) is None:
            raise ValueError(f"a source of type {self.type!r} needs the key {needed!r}")
        if self.share[0] >= self.share[1]:
            raise ValueError(f"share must be [from, to) with from < to, got {list(self.share)}")
        if self.per_class is not None and self.labels == "ignore":
            raise ValueError("per_class needs labels: set labels to 'classes'")
        return self


class ImageStoreParams(Block):
    """How decoded images are kept on disk."""

    kind: Literal["auto", "packed", "encoded"] = Field(
        description="packed: memory-mapped uint8 arrays; encoded: compressed bytes, decoded per batch; auto: packed "
        "where the working size is at most packed_max_size_px or the store fits disk_budget_gb"
    )
    packed_max_size_px: int = Field(gt=0, description="largest working size that `auto` always packs")
    disk_budget_gb: float = Field(gt=0, description="largest packed store, in 10^9 bytes, that `auto` makes")
    shard_size: int = Field(gt=0, description="most images in one shard")
    max_image_pixels: int = Field(gt=0, description="an image that declares more pixels is quarantined undecoded")
    max_quarantined_share: Share = Field(description="a larger share of unusable images stops the run")
    n_workers: int = Field(ge=1, description="decoding threads")


class NearDuplicateParams(Block):
    """How near to an image another one must come to be its copy; a distance is 1 - the correlation of the gradients."""

    max_distance: float = Field(gt=0, le=1, description="the largest distance of a copy, whatever the images are like")
    max_ratio: float = Field(
        gt=0, le=1, description="and as a share of the distance between that image and the fifth nearest of all others"
    )


class DataIngestionParams(Block):
    """The block `data_ingestion`: where the four image stores come from."""

    seed: int = Field(ge=0, lt=SEEDS)
    labeled: tuple[ImageSource, ...] = Field(
        description="the handful of the teacher's images; [] where there is none, as for `full_unlabeled`"
    )
    pool: tuple[ImageSource, ...] = Field(min_length=1, description="the unlabeled pool; several sources are mixed")
    test: tuple[ImageSource, ...] = Field(min_length=1, description="touched once, by evaluation")
    teacher_training: tuple[ImageSource, ...] = Field(
        (), description="experiments that train a teacher: its training images"
    )
    store: ImageStoreParams
    near_duplicates: NearDuplicateParams | None = Field(description="null: only images with equal pixels are found")

    @model_validator(mode="after")
    def _truth_where_it_is_compared_with(self) -> DataIngestionParams:
        for part in ("test", "teacher_training"):
            if any(source.labels != "classes" for source in getattr(self, part)):
                raise ValueError(f"every image of {part} needs its class: set `labels: classes` on its sources")
        return self


# --- teacher ----------------------------------------------------------------------------------------------------------


class InputSpec(Block):
    """What a network expects: size, colours and normalisation of its input images."""

    size_px: int = Field(gt=0, le=16_384, description="images are resized to size_px x size_px")
    channels: Literal[1, 3]
    mean: tuple[float, ...] = Field(description="per channel, for pixels scaled to [0, 1]")
    std: tuple[float, ...] = Field(description="per channel, for pixels scaled to [0, 1]")

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> InputSpec:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} needs one value for each of the {self.channels} channels")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class TeacherParams(Block):
    """The block `teacher`: which network is compressed, and what it expects."""

    architecture: str | None = Field(
        description="a torchvision classification model, one of ours (learning/networks.py), or an importable factory "
        "`package.module:function`; null: read from the card beside the weights"
    )
    architecture_options: Options = Field(description="further keyword arguments of the architecture")
    weights: str | None = Field(
        description="safetensors, state dict, or model folder with card.json; null: train on teacher_training_images"
    )
    classes: tuple[str, ...] | int | None = Field(description="class names, or their number; null: read from the card")
    input: InputSpec | None = Field(description="null: read from the card")
    taps: tuple[str, ...] | None = Field(
        description="layers whose outputs make the descriptor; null: sensible defaults"
    )

    @model_validator(mode="after")
    def _complete_without_a_card(self) -> TeacherParams:
        if self.weights is None:
            missing = [name for name in ("architecture", "classes", "input") if getattr(self, name) is None]
            if missing:
                raise ValueError(f"without weights there is no card to read {', '.join(missing)} from: set them")
        n_classes = len(self.classes) if isinstance(self.classes, tuple) else self.classes
        if n_classes is not None and n_classes < 2:
            raise ValueError(f"a classifier needs at least two classes, got {n_classes}")
        if isinstance(self.classes, tuple) and len(set(self.classes)) != n_classes:
            raise ValueError("class names must differ from each other")
        return self


class OptimizerParams(Block):
    """An optimiser and the course of its learning rate. Weight decay is L2 in the gradient."""

    algorithm: Literal["sgd", "adam"]
    learning_rate: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1, description="SGD's momentum, Adam's first beta")
    weight_decay: float = Field(ge=0)
    schedule: Literal["constant", "step", "cosine"] = Field(
        description="step: a tenth after each quarter of the training; cosine: to zero"
    )


class AugmentationParams(Block):
    """Random views of a training batch."""

    padding_px: int = Field(ge=0, description="crops are shifted by up to this many pixels, zeros beyond the edge")
    horizontal_flip: bool


class ComputeParams(Block):
    """Where a heavy stage runs."""

    device: str = Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto: the first GPU, else the CPU")
    precision: Literal["auto", "float32", "bf16", "fastest"] = Field(
        description="auto: bf16 autocast on GPUs that have it; fastest: on CPUs that have it, too"
    )
    n_threads: int | None = Field(gt=0, description="CPU threads; null: torch's choice. Small networks want one")
    resident_limit_gb: float = Field(
        gt=0, description="training images up to this size are held on the device, 10^9 bytes"
    )
    inference_batch_size: Annotated[int, Field(gt=0)] | None = Field(
        description="null: as many as suit the device: a CPU's caches, or a few per cent of a GPU's memory"
    )


class TeacherTrainingParams(Block):
    """The block `teacher_training`: how an experiment trains its teacher."""

    seed: int = Field(ge=0, lt=SEEDS)
    n_updates: int = Field(gt=0)
    record_every: int = Field(gt=0, description="updates per record of the history")
    batch_size: int = Field(gt=1)
    optimizer: OptimizerParams
    augmentation: AugmentationParams
    compute: ComputeParams


class FeatureExtractionParams(Block):
    """The block `feature_extraction`: the one backbone pass over every image."""

    compute: ComputeParams


class RelatednessParams(Block):
    """The block `relatedness`: what the teacher alone says of the pool, and how often each image is drawn (S3)."""

    seed: int = Field(ge=0, lt=SEEDS, description="of the noise that the indicators are calibrated on")
    n_noise_images: int = Field(gt=0, description="images of uniform noise; 10,000 in the paper")
    clip: float = Field(gt=0, description="most standard deviations of noise that an indicator adds to the sum")
    sampling: Literal["preferential", "uniform"] = Field(description="uniform: every image alike, the control")
    temperature: float = Field(gt=0, description="of the exponential in the z-score of the sum; large samples evenly")
    floor: Share = Field(description="share of the draws that is even, so that no image is excluded")
    compute: ComputeParams


class ClassPriorParams(Block):
    """How the class prior is found when nobody knows it."""

    method: Literal["bbe", "dedpul", "ted", "ted_dedpul", "km2"] = Field(
        description="bbe, dedpul: read the scores of a classifier of positives against unlabeled; ted, ted_dedpul: of "
        "one that leaves likely positives out of the unlabeled as it learns; km2: reads the features, trains nothing"
    )
    n_folds: int = Field(
        ge=2, description="cross-fitting folds; each held-out fold is scored by the others' classifier"
    )
    epochs: int = Field(gt=0, description="epochs of the classifier that tells positives from unlabeled")
    n_bootstrap: int = Field(ge=20)
    level: OpenShare = Field(description="confidence level of the interval")


class PUTrainingParams(Block):
    """The block `pu_training`: the class prior and the PU classifier (Xu et al. 2019, Eq. 3-6)."""

    seed: int = Field(ge=0, lt=SEEDS)
    class_prior: OpenShare | None = Field(description="share of positives in the pool; null: estimated")
    prior_estimation: ClassPriorParams
    estimator: Literal["nnpu", "upu", "cvir"] = Field(
        description="cvir: logistic loss that ignores the class_prior of the unlabeled that score highest"
    )
    beta: float = Field(ge=0, description="nnPU tolerates a negative risk down to -beta")
    gamma: Annotated[float, Field(ge=0, le=1)] = Field(description="step size of nnPU's ascent branch")
    backbone: Literal["frozen", "full"] = Field(description="frozen: a head on cached descriptors; full: end to end")
    features: Literal["descriptor", "last_layer", "teacher_outputs", "both"] = Field(
        description="descriptor: pooled multi-scale features (the paper); last_layer: those of the last tap alone, the "
        "control; teacher_outputs: confidence, entropy, energy and margin; both: descriptor and teacher_outputs"
    )
    attention_reduction: Annotated[int, Field(gt=0)] | None = Field(
        description="r of Eq. 5; null: no attention, a linear score"
    )
    epochs: int = Field(gt=0, description="passes over the unlabeled pool")
    positive_batch_size: int = Field(gt=0, description="positives per step, drawn with replacement")
    unlabeled_batch_size: int = Field(gt=1)
    held_out_folds: int = Field(ge=0, description="folds that rank held-out positives; 0: none, and no precision rule")
    optimizer: OptimizerParams
    augmentation: AugmentationParams
    compute: ComputeParams

    @model_validator(mode="after")
    def _folds_and_features_make_sense(self) -> PUTrainingParams:
        if self.held_out_folds == 1:
            raise ValueError("held_out_folds is 0 (none) or at least 2")
        if self.backbone == "full" and self.features != "descriptor":
            raise ValueError("backbone 'full' trains the descriptor end to end: set features to 'descriptor'")
        return self


class PoolScoringParams(Block):
    """The block `pool_scoring`."""

    compute: ComputeParams


class SubsetParams(Block):
    """The block `subset_materialization`: which pool images are kept."""

    seed: int = Field(ge=0, lt=SEEDS)
    rule: Literal["nnpu", "random", "oracle", "confident", "stratified", "disagreement", "all"]
    criterion: Literal["sign", "quantile", "precision", "budget"] = Field(
        description="nnpu only. sign: score > 0; quantile: the top class_prior share; precision: down to "
        "target_precision; budget: the top `budget`"
    )
    budget: int | None = Field(gt=0, description="most pool images kept; null: no limit")
    target_precision: OpenShare = Field(description="criterion precision: lowest estimated precision of the subset")
    exclude_test_duplicates: bool = Field(
        True, description="leave pool and labeled images out of every manifest that are copies of test images"
    )

    @model_validator(mode="after")
    def _budget_where_it_is_needed(self) -> SubsetParams:
        if self.budget is None and needs_budget(self.rule, self.criterion):
            raise ValueError(
                "criterion 'budget' needs a budget" if self.rule == "nnpu" else f"rule {self.rule!r} needs a budget"
            )
        return self


class ClassWeightingParams(Block):
    """The block `class_weighting` (Eq. 7 and the set W of Eq. 9-10)."""

    seed: int = Field(ge=0, lt=SEEDS)
    clip: tuple[float, float] = Field(
        description="bounds of a class weight before the weights are rescaled to sum to K"
    )
    n_vectors: int = Field(ge=1, description="perturbed weight vectors beside the estimated one")
    epsilon: float = Field(ge=0, description="largest change of a weight")
    mode: Literal["projected", "released"] = Field(
        description="projected: two-sided and back on the simplex; released: upward only, as the authors' code"
    )

    @model_validator(mode="after")
    def _clip_is_an_interval(self) -> ClassWeightingParams:
        if not 0 < self.clip[0] <= 1 <= self.clip[1]:
            raise ValueError(f"clip must be [low, high] with 0 < low <= 1 <= high, got {list(self.clip)}")
        return self


class NoiseMatrixParams(Block):
    """The objective `noisy_kd`: the matrix of wrong pseudo-labels (DFND, Chen et al. 2021)."""

    diagonal: OpenShare = Field(description="share of the teacher's classes that are right: its accuracy")
    learns_diagonal: bool = Field(description="false: the diagonal is held, as in the released code")
    learning_rate: float = Field(gt=0, description="of the matrix's own Adam")
    pseudo_label_weight: float = Field(ge=0)


class LatentParams(Block):
    """The objective `latent` (S3): the weights of its terms."""

    logits_weight: float = Field(ge=0, description="of the mean squared error of centred logits")
    penultimate_weight: float = Field(ge=0, description="of that of unit penultimate features, summed over them")
    kl_weight: float = Field(ge=0, description="of the KL divergence at distillation.temperature; 0: none")
    shared_head: bool = Field(description="the student uses the teacher's last layer, frozen, through an adapter")

    @model_validator(mode="after")
    def _something_is_learned(self) -> LatentParams:
        if not self.logits_weight + self.penultimate_weight + self.kl_weight:
            raise ValueError("one of logits_weight, penultimate_weight and kl_weight must be above 0")
        return self


class AttentionParams(Block):
    """The objectives `attention` and `pu_critic`: where they look, and what beside the teacher's logits counts."""

    n_taps: int = Field(ge=1, description="the last taps of both networks that are matched")
    weight: float = Field(ge=0, description="beta of attention transfer (Zagoruyko & Komodakis 2017)")
    label_weight: Share = Field(description="1 - alpha: cross-entropy with labels, which every image must then have")


class CriticParams(Block):
    """The objective `pu_critic` (S0): the critic between teacher and student features."""

    mode: Literal["clamp", "ascent", "gan"] = Field(
        description="what happens where its negative risk falls below zero: it counts as zero, or nnPU's step back; "
        "gan: a plain critic that takes all student features for negative, the control"
    )
    class_prior: tuple[OpenShare, OpenShare] = Field(description="share of passing student features, first and last")
    weight: float = Field(ge=0, description="lambda, of the student's loss under the critic")
    ramp_updates: int = Field(ge=0, description="updates over which lambda rises from 0")
    lipschitz: float = Field(gt=0, description="scale of the critic's features: how steep its scores can be")
    learning_rate: float = Field(gt=0, description="of the critic's Adam")


# Which blocks inside of `distillation` an objective reads beside what all of them read.
OBJECTIVE_BLOCKS = {
    "kd": (),
    "robust_kd": (),
    "noisy_kd": ("noise_matrix",),
    "latent": ("latent",),
    "attention": ("attention",),
    "pu_critic": ("attention", "critic"),
}


class DistillationParams(Block):
    """The block `distillation`: the student and how it learns."""

    seed: int = Field(ge=0, lt=SEEDS)
    student_architecture: str
    student_options: Options = Field(description="further keyword arguments of the architecture")
    objective: Literal["kd", "robust_kd", "noisy_kd", "latent", "attention", "pu_critic"]
    noise_matrix: NoiseMatrixParams | None = None
    latent: LatentParams | None = None
    attention: AttentionParams | None = None
    critic: CriticParams | None = None
    temperature: float = Field(gt=0)
    n_updates: int = Field(gt=0, description="equal for every student that is compared")
    record_every: int = Field(gt=0, description="updates per record of the history")
    batch_size: int = Field(gt=1)
    held_out_share: Annotated[float, Field(ge=0, le=0.5)] = Field(
        description="share of the manifest kept out of training, to watch the agreement with the teacher"
    )
    keep: Literal["last", "best"] = Field(description="best: the record with the highest held-out agreement")
    teacher_cache: Literal["off", "exact", "views"] = Field(
        description="off: ask the teacher at every step; exact: once for every view; views: once for `cached_views` of "
        "each image, and draw from these; both only where that is less work"
    )
    cached_views: int = Field(gt=0, description="of each image, where teacher_cache is views")
    optimizer: OptimizerParams
    augmentation: AugmentationParams
    compute: ComputeParams

    @model_validator(mode="after")
    def _parts_fit_together(self) -> DistillationParams:
        if missing := [name for name in OBJECTIVE_BLOCKS[self.objective] if getattr(self, name) is None]:
            raise ValueError(f"objective {self.objective!r} needs {' and '.join(missing)} beside it")
        if self.keep == "best" and self.held_out_share == 0:
            raise ValueError("keep 'best' needs a held_out_share above 0")
        return self


class EvaluationParams(Block):
    """The block `evaluation`: the one look at the test images."""

    latency_repeats: int = Field(gt=0, description="single-image forward passes; the median is reported")
    compute: ComputeParams


class ReportingParams(Block):
    """The block `reporting`."""

    title: str
    contact_sheet_images: int = Field(ge=1, le=200, description="images in each block of the contact sheet")


# --- comparison -------------------------------------------------------------------------------------------------------


class Overrides(Block):
    """What differs from the run's own blocks; nested keys are laid over theirs."""

    pu_training: dict[str, Any] = Field(default_factory=dict)
    subset_materialization: dict[str, Any] = Field(default_factory=dict)
    class_weighting: dict[str, Any] = Field(default_factory=dict)
    distillation: dict[str, Any] = Field(default_factory=dict)
    relatedness: dict[str, Any] = Field(default_factory=dict)


class SweepPoint(Block):
    """Where a variant stands on one of the comparison's sweeps."""

    name: str = Field(description="a key of comparison.sweeps")
    line: str = Field(description="the line that the variant is a point of")
    at: float = Field(description="its place on the axis")


class ComparisonVariant(Overrides):
    """One row of the comparison, or one point of a sweep: how a student is made."""

    method: Literal["selection", "original", "preferential", "labeled_only", "fitnet", "fskd"] = Field(
        "selection",
        description="selection: distil on the labeled images and the pool images that a rule keeps; original: on the "
        "teacher's own training images; preferential: on the whole pool and no original image, drawn by relatedness "
        "(S3); the others see the labeled images alone: labeled_only distils, fitnet (Romero et al. 2015) matches a "
        "hidden layer first, fskd (Li et al. 2018) starts from the pruned and aligned teacher",
    )
    rule: str | None = Field(None, description="short for subset_materialization.rule; needed by `selection`")
    criterion: str | None = Field(None, description="short for subset_materialization.criterion")
    budget: int | str | None = Field(
        None, description="most pool images; the name of another variant: as many as that one keeps; null: the block's"
    )
    features: str | None = Field(None, description="short for pu_training.features")
    labeled_per_class: tuple[int, ...] | None = Field(None, description="some of the comparison's; null: all of them")
    objectives: tuple[str, ...] | None = Field(
        None, description="null: those of the comparison for `selection`, plain `kd` for the other methods"
    )
    sweep: SweepPoint | None = Field(
        None, description="shown as a point of that sweep, not as a row; for one number of labeled images"
    )

    @property
    def is_reference(self) -> bool:
        """Whether it uses what its users do not have: the original images, or the pool's truth."""
        return self.method == "original" or self.rule == "oracle"

    @model_validator(mode="after")
    def _rule_belongs_to_selection(self) -> ComparisonVariant:
        given = [name for name in ("rule", "criterion", "budget", "features") if getattr(self, name) is not None]
        if self.method == "selection" and self.rule is None:
            raise ValueError("method 'selection' needs a rule")
        if self.method != "selection" and given:
            raise ValueError(f"method {self.method!r} selects nothing: remove {', '.join(given)}")
        if self.method in ("fitnet", "fskd") and self.objectives not in (None, ("kd",)):
            raise ValueError(f"method {self.method!r} is defined with the objective kd alone")
        return self


class CurvesParams(Block):
    """Accuracy against updates, as panels of the comparison's plot."""

    n_images: int = Field(
        gt=0, description="of the teacher's training images, which no student sees: their accuracy makes the curves"
    )
    panels: dict[str, tuple[str, ...]] = Field(
        description="title -> the variants whose curves it has; one that is null has none"
    )


class ComparisonParams(Block):
    """The block `comparison`: a grid of variants, objectives, numbers of labeled images and seeds."""

    title: str
    labeled_per_class: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=1, description="labeled images of each class, drawn by the cell's seed from the labeled store"
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=SEEDS)], ...] = Field(
        min_length=1, description="of the labeled images, PU training, draws and student; the teacher is the same"
    )
    objectives: tuple[str, ...] = Field(min_length=1, description="of distillation")
    hint_share: OpenShare = Field(description="fitnet: share of the updates that go to the hidden layer")
    every_variant: Overrides = Field(description="what differs from the run's own blocks in all variants")
    variants: dict[str, ComparisonVariant | None] = Field(
        description="name -> variant, in the order of the table; null leaves out a variant of conf/base"
    )
    sweeps: dict[str, str] = Field(
        description="name -> label of its axis: lines of variants that differ in one number, with a table and plot each"
    )
    curves: CurvesParams | None = Field(None, description="null: students are measured in the end alone")

    @model_validator(mode="after")
    def _grid_is_one(self) -> ComparisonParams:
        for name in ("labeled_per_class", "seeds", "objectives"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must not repeat a value, got {list(getattr(self, name))}")
        known = {name: variant for name, variant in self.variants.items() if variant is not None}
        if not known:
            raise ValueError("variants must name at least one")
        for title, names in self.curves.panels.items() if self.curves else ():
            if strangers := sorted(set(names) - set(self.variants)):
                raise ValueError(f"curves.panels: {title!r} names {strangers}; variants are {', '.join(self.variants)}")
        for name, variant in known.items():
            if outside := set(variant.labeled_per_class or ()) - set(self.labeled_per_class):
                raise ValueError(f"{name}: labeled_per_class {sorted(outside)} is not among the comparison's")
            if variant.sweep is not None and variant.sweep.name not in self.sweeps:
                raise ValueError(f"{name}: sweep {variant.sweep.name!r} is not a key of comparison.sweeps")
            if variant.sweep is not None and len(variant.labeled_per_class or self.labeled_per_class) != 1:
                raise ValueError(f"{name}: a point of a sweep has one number of labeled images: set labeled_per_class")
            if isinstance(variant.budget, str):
                other = known.get(variant.budget)
                if other is None or other.method != "selection" or isinstance(other.budget, str) or other is variant:
                    raise ValueError(
                        f"{name}: budget {variant.budget!r} is not the name of a variant that selects by a budget or "
                        f"criterion of its own; variants are {', '.join(known)}"
                    )
        return self
