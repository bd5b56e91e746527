"""The blocks `teacher` and `teacher_training`."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pu_kd_pipeline.params.base import SEEDS, Block, Options
from pu_kd_pipeline.params.compute import (
    AugmentationParams,
    ComputeParams,
    OptimizerParams,
    TrainingWorkersParams,
)

_MAX_SIZE_PX = 16_384
_DEFAULT_CROP_RATIO = 0.875  # 224 of 256 px, as in most recipes for ImageNet
# So that five digits of a ratio suffice: 224 / 0.96552 is 231.9993, and meant is 224 / 232.
_ROUNDING_PX = 0.005


class InputSpec(Block):
    """The input images of a network: how they are resized, and how their values are scaled.

    A network reads (x * (high - low) / 255 + low - mean) / std of uint8 pixels x, per channel.
    """

    size_px: int = Field(
        gt=0, le=_MAX_SIZE_PX, description="images are resized to size_px x size_px"
    )
    channels: Literal[1, 3] = Field(description="1: gray; 3: colors")
    mean: tuple[float, ...] = Field(
        description="per channel, in the network's order of channels, for pixels in value_range"
    )
    std: tuple[float, ...] = Field(
        description="per channel, in the network's order of channels, for pixels in value_range"
    )
    resize: Literal["squash", "crop"] = Field(
        default="squash",
        description="squash: straight to the square, whatever the shape; crop: the shorter side "
        "becomes size_px / crop_ratio, and the square in the center is cut out",
    )
    crop_ratio: float = Field(
        default=_DEFAULT_CROP_RATIO,
        gt=0,
        le=1,
        description="with resize: crop; size of the crop as a share of the shorter side",
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = Field(
        default="bilinear", description="Pillow's filter for the resize, with antialiasing"
    )
    channel_order: Literal["rgb", "bgr"] = Field(
        default="rgb", description="bgr: as OpenCV and Caffe have the channels"
    )
    value_range: tuple[float, float] = Field(
        default=(0.0, 1.0),
        description="what black and white pixels become before mean and std, such as [0, 255]",
    )

    @property
    def shorter_side_px(self) -> int | None:
        """Shorter side of a resized image before its center is cut out; None: there is no crop.

        Rounded down, as timm does.
        """
        if self.resize == "squash":
            return None
        return math.floor(self.size_px / self.crop_ratio + _ROUNDING_PX)

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> InputSpec:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} needs one value for each of the {self.channels} channels")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self

    @model_validator(mode="after")
    def _keys_fit_each_other(self) -> InputSpec:
        if "crop_ratio" in self.model_fields_set and self.resize != "crop":
            raise ValueError(
                "crop_ratio has no effect with resize: squash: set resize: crop, or remove it"
            )
        shorter_side_px = self.shorter_side_px
        if shorter_side_px is not None and shorter_side_px > _MAX_SIZE_PX:
            raise ValueError(
                f"size_px / crop_ratio asks for a shorter side of {shorter_side_px} px, above "
                f"{_MAX_SIZE_PX}: raise crop_ratio"
            )
        if self.channel_order == "bgr" and self.channels == 1:
            raise ValueError("channel_order: bgr needs 3 channels, and channels is 1")
        low, high = self.value_range
        if low >= high:
            raise ValueError(f"value_range is [black, white], and {low:g} is not below {high:g}")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys at their default.

        Cards and fingerprints of inputs without these keys then stay what they were.
        """
        content: dict[str, Any] = serialize(self)
        for name, field in type(self).model_fields.items():
            if field.is_required() or getattr(self, name) != field.default:
                continue
            # The crop is stated in full.
            if name == "crop_ratio" and self.resize == "crop":
                continue
            content.pop(name, None)
        return content


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

    seed: int = Field(
        ge=0, lt=SEEDS, description="of the initial weights, the batches and the views"
    )
    n_updates: int = Field(gt=0, description="length of the training")
    record_every: int = Field(gt=0, description="updates per record of the history")
    batch_size: int = Field(gt=1, description="images per update")
    optimizer: OptimizerParams
    augmentation: AugmentationParams
    compute: ComputeParams
    training_workers: TrainingWorkersParams = Field(
        default_factory=TrainingWorkersParams,
        description="processes that train the teacher together",
    )

    @model_validator(mode="after")
    def _workers_have_equal_parts(self) -> TeacherTrainingParams:
        self.training_workers.check_divides(batch_size=self.batch_size)
        return self


class TeacherCheckParams(Block):
    """The block `teacher_check`: how the teacher is tested on labeled images before it is used."""

    mode: Literal["stop", "warn", "off"] = Field(
        default="stop",
        description="stop: a teacher at chance level ends the run; warn: it is only reported; "
        "off: the teacher is not tested",
    )
    max_images: int = Field(
        default=200,
        ge=1,
        description="most images of the test before the first stage, and for measuring "
        "alternatives; equally many of each class",
    )
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="draws those images")
    compute: ComputeParams
