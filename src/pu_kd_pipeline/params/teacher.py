"""The blocks `teacher` and `teacher_training`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pu_kd_pipeline.params.base import SEEDS, Block, Options
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams, OptimizerParams


class InputSpec(Block):
    """The input images of a network: their size, colors and normalization."""

    size_px: int = Field(gt=0, le=16_384, description="images are resized to size_px x size_px")
    channels: Literal[1, 3]
    mean: tuple[float, ...] = Field(description="per channel, for pixels scaled to [0, 1]")
    std: tuple[float, ...] = Field(description="per channel, for pixels scaled to [0, 1]")

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> InputSpec:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} needs one value for each of the {self.channels} channels")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class OutputSpec(Block):
    """What a network returns, where that is not simply a tensor of logits."""

    key: str | int | None = Field(
        default=None,
        description="entry, attribute or index that holds the values, where the network returns a "
        "dict, an object or a tuple; null: it returns a tensor",
    )
    kind: Literal["logits", "probabilities", "log_probabilities"] = Field(
        default="logits",
        description="probabilities (after a softmax) are converted to logits by their logarithm",
    )


class TeacherParams(Block):
    """The block `teacher`: which network is compressed, and which input it expects."""

    architecture: str | None = Field(
        description="a torchvision classification model, one of ours "
        "(learning/networks/build.py), or an importable factory `package.module:function`; "
        "null: read from the card next to the weights"
    )
    architecture_options: Options = Field(
        description="further keyword arguments of the architecture"
    )
    weights: str | None = Field(
        description="safetensors, state dict, or model folder with card.json; "
        "null: train on teacher_training_images"
    )
    classes: tuple[str, ...] | int | None = Field(
        description="class names, or their number; null: read from the card"
    )
    input: InputSpec | None = Field(description="null: read from the card")
    taps: tuple[str, ...] | None = Field(
        description="layers whose outputs make the descriptor; null: sensible defaults"
    )
    output: OutputSpec | None = Field(
        default=None,
        description="what the network returns; null: logits, or read from the card",
    )

    @model_validator(mode="after")
    def _complete_without_a_card(self) -> TeacherParams:
        facts_of_a_card = ("architecture", "classes", "input")
        missing = [name for name in facts_of_a_card if getattr(self, name) is None]
        # With weights, the model card next to them has what is missing here.
        if self.weights is None and missing:
            raise ValueError(
                f"without weights there is no card to read {', '.join(missing)} from: set them"
            )
        return self

    @model_validator(mode="after")
    def _classes_are_a_classification(self) -> TeacherParams:
        n_classes = self.classes
        if isinstance(n_classes, tuple):
            n_classes = len(n_classes)
        if n_classes is not None and n_classes < 2:
            raise ValueError(f"a classifier needs at least two classes, got {n_classes}")
        if isinstance(self.classes, tuple) and len(set(self.classes)) != n_classes:
            raise ValueError("class names must differ from each other")
        return self


class TeacherTrainingParams(Block):
    """The block `teacher_training`: how an experiment trains its teacher."""

    seed: int = Field(ge=0, lt=SEEDS)
    n_updates: int = Field(gt=0)
    record_every: int = Field(gt=0, description="updates per record of the history")
    batch_size: int = Field(gt=1)
    optimizer: OptimizerParams
    augmentation: AugmentationParams
    compute: ComputeParams


class TeacherCheckParams(Block):
    """The block `teacher_check`: how the teacher is tested on labeled images before it is used."""

    mode: Literal["stop", "warn", "off"] = Field(
        default="stop",
        description="stop: a teacher at chance level ends the run; warn: it is only reported; "
        '"off", in quotes: the teacher is not tested',
    )
    max_images: int = Field(
        default=200,
        ge=1,
        description="most images of the test before the first stage, and for measuring "
        "alternatives; equally many of each class",
    )
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="draws those images")
    compute: ComputeParams
