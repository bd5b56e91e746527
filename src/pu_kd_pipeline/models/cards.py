"""Cards: the description of a saved network, stored next to its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.teacher import InputSpec, OutputSpec
from pu_kd_pipeline.provenance.factories import factory_digest

WEIGHTS = "weights.safetensors"
CARD = "card.json"
Card = TypeVar("Card", bound=BaseModel)


class ModelCard(BaseModel):
    """What a classifier is and expects: all that is needed to rebuild it from its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    architecture: str
    architecture_options: dict[str, Any] = {}
    classes: tuple[str, ...]
    input: InputSpec
    taps: tuple[str, ...] | None = None  # None: the network's default layers
    origin: dict[str, Any] = {}
    # None: logits. Left out then, so that cards and fingerprints without it stay what they were.
    output: OutputSpec | None = Field(default=None, exclude_if=lambda output: output is None)
    # Of a factory `package.module:function`: its code decides the outputs as much as the weights.
    factory_code: str | None = Field(default=None, exclude_if=lambda code: code is None)

    def with_current_code(self) -> ModelCard:
        """Return the card with the digest of the factory's code as it is now."""
        code = factory_digest(self.architecture) or None
        return self.model_copy(update={"factory_code": code})

    @field_validator("classes")
    @classmethod
    def _two_classes_at_least(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        is_repeated = len(set(classes)) < len(classes)
        if len(classes) < 2 or is_repeated:
            raise ValueError("a classifier needs two classes or more, of different names")
        return classes


class PUClassifierCard(BaseModel):
    """What a PU classifier is and reads.

    With backbone `full`, `teacher` is the card of the classifier's own, fine-tuned backbone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    backbone: Literal["frozen", "full"]
    features: Literal["descriptor", "last_layer", "teacher_outputs", "both"]
    descriptor_size: int = Field(ge=0)  # 0: `teacher_outputs` reads none
    attention_reduction: int | None = Field(gt=0)
    class_prior: float = Field(ge=0, le=1)
    teacher: ModelCard
    teacher_fingerprint: str

    @model_validator(mode="after")
    def _a_descriptor_that_is_read_has_a_size(self) -> PUClassifierCard:
        if self.features != "teacher_outputs" and not self.descriptor_size:
            raise ValueError("descriptor_size must be positive unless features: teacher_outputs")
        return self


def read_card(folder: Path, kind: type[Card]) -> Card:
    """Return the card of a model folder.

    Raises:
        InputError: it is missing, unreadable, or not a card of this kind.
    """
    path = folder / CARD
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise InputError(f"{folder} is not a model folder: it has no {CARD}") from exc
    except (ValidationError, UnicodeDecodeError, OSError) as exc:
        # `PUClassifierCard` is the card of a `PUClassifier`.
        model_name = kind.__name__.removesuffix("Card")
        raise InputError(f"{path} is not the card of a {model_name}: {exc}") from exc
